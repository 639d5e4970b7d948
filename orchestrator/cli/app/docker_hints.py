# SPDX-License-Identifier: Apache-2.0
"""Docker's flags and commands that Orc does not have, with what to use instead.

Data: the hint is printed in one line, in place of "no such option".
"""

from __future__ import annotations

from collections.abc import Mapping

_BLOCK_IO = "weights and rates of block devices cannot be set per container"
_REAL_TIME = "containers cannot use real-time scheduling"
_TRUST = "signatures are checked by each node's policy.json"

_CONTAINER = {
    "--attach": "stdout and stderr are attached, stdin by -i; redirect what is not wanted",
    "-a": "stdout and stderr are attached, stdin by -i; redirect what is not wanted",
    "--blkio-weight": _BLOCK_IO,
    "--blkio-weight-device": _BLOCK_IO,
    "--device-read-bps": _BLOCK_IO,
    "--device-read-iops": _BLOCK_IO,
    "--device-write-bps": _BLOCK_IO,
    "--device-write-iops": _BLOCK_IO,
    "--cgroup-parent": "the agent keeps the cgroups; limit by --cpus, --memory and --pids-limit",
    "--cgroupns": "each container has its own cgroup namespace",
    "--cpu-count": "use --cpus",
    "--cpu-percent": "use --cpus",
    "--cpu-period": "use --cpus, which is quota divided by period",
    "--cpu-quota": "use --cpus, which is quota divided by period",
    "--cpu-rt-period": _REAL_TIME,
    "--cpu-rt-runtime": _REAL_TIME,
    "--cpuset-mems": "use --cpuset-cpus; memory follows the CPUs",
    "--device-cgroup-rule": "use --device with permissions",
    "--disable-content-trust": _TRUST,
    "--isolation": "Windows only; see --runtime",
    "--kernel-memory": "use --memory, which includes kernel memory",
    "--link": "containers of one network find each other by name; use --network",
    "--link-local-ip": "use --ip",
    "--memory-reservation": "use --reserve-memory",
    "--memory-swappiness": "use --memory-swap",
    "--oom-kill-disable": "use --oom-score-adj, or raise --memory",
    "--io-maxbandwidth": "Windows only",
    "--io-maxiops": "Windows only",
    "--use-api-socket": "mount the socket with -v",
    "--uts": "each container has its own UTS namespace; see --hostname and --domainname",
}

_BUILD = {
    "--cache-to": "layers are cached on each node; --node builds where the cache is",
    "--load": "a built image is in the cluster immediately",
    "--rm": "a build's containers are always removed",
    "--ssh": "SSH keys are not forwarded; use --secret",
    "--cgroup-parent": "the agent keeps the cgroups; limit by --cpus, --memory and --pids-limit",
    "--cpuset-mems": "use --cpuset-cpus; memory follows the CPUs",
    "--security-opt": "a build's RUN has Docker's own seccomp profile and capabilities",
    "--compress": "the context is sent uncompressed",
    "--disable-content-trust": _TRUST,
    "--force-rm": "a build's containers are always removed",
    "--isolation": "Windows only",
    "--squash": "write one RUN, or copy from an earlier stage",
}

_SERVICE = {
    "--credential-spec": "Windows only",
    "--isolation": "Windows only",
    "--tty": "a service has no terminal; see 'orc run -it'",
    "-t": "a service has no terminal; see 'orc run -it'",
}
_SCOPE = "networks span all nodes; the network bridge is local to each node"
_SEALED = "secrets are stored encrypted in the cluster"
_CLUSTER_VOLUME = "cluster volumes (CSI) are not supported; use --driver"

FLAGS: Mapping[str, Mapping[str, str]] = {
    "run": _CONTAINER,
    "create": _CONTAINER,
    "build": _BUILD,
    "update": {
        flag: _CONTAINER[flag]
        for flag in (
            *("--blkio-weight", "--cpu-period", "--cpu-quota", "--cpu-rt-period"),
            *("--cpu-rt-runtime", "--cpuset-mems", "--memory-reservation"),
        )
    },
    "start": {
        "--checkpoint": "checkpoints are not supported; 'orc pause' freezes a container",
        "--checkpoint-dir": "checkpoints are not supported; 'orc pause' freezes a container",
    },
    "rm": {
        "--link": "links are not supported; see 'orc network disconnect'",
        "-l": "not supported",
    },
    "logs": {"--details": "see 'orc inspect' for a container's labels and variables"},
    "pull": {
        "--all-tags": "name each tag",
        "-a": "name each tag",
        "--platform": "nodes pull for their own platform; choose one with --node",
        "--disable-content-trust": _TRUST,
    },
    "push": {
        "--all-tags": "name each tag",
        "-a": "name each tag",
        "--disable-content-trust": _TRUST,
    },
    "rmi": {"--no-prune": "shared layers are kept anyway"},
    "history": dict.fromkeys(
        ("--human", "-H"), "sizes are human-readable; --format json has bytes"
    ),
    "import": {"--platform": "images have the platform of their node; choose one with --node"},
    "volume create": dict.fromkeys(
        (
            *("--availability", "--group", "--limit-bytes", "--required-bytes", "--scope"),
            *("--secret", "--sharing", "--topology-preferred", "--topology-required", "--type"),
        ),
        _CLUSTER_VOLUME,
    ),
    "volume ls": {"--cluster": _CLUSTER_VOLUME},
    "network create": {
        "--aux-address": "exclude addresses with --ip-range",
        "--config-from": "set the options on the network itself",
        "--config-only": "set the options on the network itself",
        "--ingress": "published ports need no ingress network",
        "--scope": _SCOPE,
    },
    "network connect": {
        "--link": "containers of one network find each other by name",
        "--link-local-ip": "use --ip",
    },
    "network inspect": {"--verbose": "output is not truncated", "-v": "output is not truncated"},
    "service create": _SERVICE,
    "service update": {**_SERVICE, "--rollback": "use 'orc service rollback'"},
    "service logs": {
        "--details": "see 'orc inspect' for a container's labels and variables",
        "--no-resolve": "use --raw for lines without names",
        "--no-task-ids": "lines have a task's name, such as web.3; --raw leaves it out",
        "--no-trunc": "output is not truncated",
    },
    "service ps": {"--no-resolve": "--format json has the ids"},
    "node ps": {"--no-resolve": "--format json has the ids"},
    "stack ps": {"--no-resolve": "--format json has the ids"},
    "secret create": {"--driver": _SEALED, "-d": _SEALED},
    "builder prune": {
        "--filter": "a node's cache is removed as a whole; see --node",
        "--keep-storage": "a node's cache is removed as a whole; see --node",
    },
    "context create": {
        "--description": "contexts have no description",
        "--docker": "use --endpoint, --ca, --cert and --key",
        "--from": "a context is a file in ~/.config/orc/contexts, which can be copied",
    },
    "context update": {
        "--description": "contexts have no description",
        "--docker": "use --endpoint",
    },
    "context rm": dict.fromkeys(("--force", "-f"), "contexts are removed without confirmation"),
    "node update": {"--role": "use 'orc node promote' and 'orc node demote'"},
}
"""Command → flag → alternative."""

_DRAIN = "use 'orc node update --availability drain NODE'"
_ACTIVATE = "use 'orc node update --availability active NODE'"

COMMANDS: Mapping[str, str] = {
    "builder build": "use 'orc build'",
    "buildx": "use 'orc build'",
    "checkpoint": "checkpoints are not supported; 'orc pause' freezes a container",
    "compose": "use 'orc stack deploy -c FILE NAME'",
    "manifest": "use 'orc image inspect'",
    **dict.fromkeys(("node drain", "node cordon", "drain"), _DRAIN),
    "cordon": "use 'orc node update --availability pause NODE'",
    "node pause": "use 'orc node update --availability pause NODE'",
    **dict.fromkeys(("node activate", "node uncordon", "uncordon"), _ACTIVATE),
    "apply": "use 'orc stack deploy -c FILE NAME'",
    "delete": "use 'orc service rm', 'orc stack rm' or 'orc rm'",
    "describe": "use 'orc inspect NAME'",
    "get": "use 'orc service ls', 'orc node ls', 'orc ps' and the like",
    "get nodes": "use 'orc node ls'",
    "get pods": "use 'orc ps', or 'orc service ps SERVICE'",
    "get services": "use 'orc service ls'",
    "rollout": "use 'orc service update' and 'orc service rollback'",
    "scale": "use 'orc service scale SERVICE=REPLICAS'",
    "plugin": "volume and network plugins are discovered by their sockets",
    "search": "search at the registry; 'orc pull' takes any name",
    "swarm": "use 'orc cluster'",
    "swarm ca": "use 'orc cluster ca rotate' or 'orc cluster ca external'",
    "swarm init": "use 'orc cluster init --advertise ADDRESS'",
    "swarm join": "use 'orc cluster join --token TOKEN ADDRESS'",
    "swarm join-token": "use 'orc cluster token worker'",
    "swarm leave": "use 'orc cluster leave' on the host",
    "swarm unlock": "use 'orc cluster unlock'",
    "swarm unlock-key": "use 'orc cluster unlock-key'",
    "swarm update": "use 'orc cluster update'",
    "trust": _TRUST,
    "volume update": _CLUSTER_VOLUME,
}
"""Commands of Docker, and common ones of kubectl, that Orc does not have, as one or two words."""


_ALIASES = {"image ls": "images", "image rm": "rmi"}


def advice(path: str, flag: str) -> str | None:
    """The alternative to a flag of Docker's; None for an unknown flag. `path`: the command's words
    after `orc`."""
    path = _ALIASES.get(path, path.removeprefix("container ").removeprefix("image "))
    return FLAGS.get(path, {}).get(flag)
