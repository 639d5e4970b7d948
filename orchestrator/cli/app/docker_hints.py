"""Docker's flags and commands that Orc does not have, with what to use instead.

Data: whoever types one is told in one line, in place of "no such option".
"""

from __future__ import annotations

from collections.abc import Mapping

_BLOCK_IO = "the kernel's weights and rates of block devices are not set by container"
_REAL_TIME = "real-time scheduling is not given to containers"
_TRUST = "signatures are checked as each node's policy.json says"

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
    "--cgroupns": "each container has a cgroup namespace of its own",
    "--cpu-count": "use --cpus",
    "--cpu-percent": "use --cpus",
    "--cpu-period": "use --cpus, which is quota divided by period",
    "--cpu-quota": "use --cpus, which is quota divided by period",
    "--cpu-rt-period": _REAL_TIME,
    "--cpu-rt-runtime": _REAL_TIME,
    "--cpuset-mems": "use --cpuset-cpus; memory follows the CPUs",
    "--device-cgroup-rule": "use --device, with the rights that it needs",
    "--disable-content-trust": _TRUST,
    "--isolation": "that is Windows'; there is --runtime",
    "--kernel-memory": "use --memory, which counts the kernel's too",
    "--link": "containers of one network find each other by name; use --network",
    "--link-local-ip": "use --ip",
    "--memory-reservation": "use --reserve-memory",
    "--memory-swappiness": "use --memory-swap",
    "--oom-kill-disable": "use --oom-score-adj, or give more --memory",
    "--io-maxbandwidth": "that is Windows'",
    "--io-maxiops": "that is Windows'",
    "--use-api-socket": "mount the socket with -v",
    "--uts": "each container has its own; see --hostname and --domainname",
}

_BUILD = {
    "--cache-to": "layers are cached on each node; --node builds where the cache is",
    "--load": "an image that was built is in the cluster at once",
    "--rm": "nothing is left of a build's containers",
    "--ssh": "keys stay with you; give a build what it needs with --secret",
    "--cgroup-parent": "the agent keeps the cgroups; limit by --cpus, --memory and --pids-limit",
    "--cpuset-mems": "use --cpuset-cpus; memory follows the CPUs",
    "--security-opt": "a build's RUN has Docker's own seccomp profile and capabilities",
    "--compress": "the context is sent as it is",
    "--disable-content-trust": _TRUST,
    "--force-rm": "nothing is left of a build's containers",
    "--isolation": "that is Windows'",
    "--squash": "write one RUN, or copy from an earlier stage",
}

_SERVICE = {
    "--credential-spec": "that is Windows'",
    "--isolation": "that is Windows'",
    "--tty": "a terminal is for one user; see 'orc run -it'",
    "-t": "a terminal is for one user; see 'orc run -it'",
}
_SCOPE = "a network spans all nodes; one node's own is the network bridge"
_SEALED = "secrets are in the cluster's store, sealed"
_ONE_MANAGER = "a host is a manager by 'orc cluster init', and a node by 'orc cluster join'"
_CLUSTER_VOLUME = "that is for Docker's cluster volumes; a volume here has a node, a driver, a size"

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
        "--checkpoint": "checkpoints are not kept; 'orc pause' freezes a container",
        "--checkpoint-dir": "checkpoints are not kept; 'orc pause' freezes a container",
    },
    "rm": {
        "--link": "there are no links; see 'orc network disconnect'",
        "-l": "there are none",
    },
    "logs": {"--details": "see 'orc inspect' for a container's labels and variables"},
    "pull": {
        "--all-tags": "name the tags one by one",
        "-a": "name the tags one by one",
        "--platform": "a node pulls for its own platform; choose one by --node",
        "--disable-content-trust": _TRUST,
    },
    "push": {
        "--all-tags": "name the tags one by one",
        "-a": "name the tags one by one",
        "--disable-content-trust": _TRUST,
    },
    "rmi": {"--no-prune": "layers that an image shares are kept anyway"},
    "history": dict.fromkeys(("--human", "-H"), "sizes are for people; --format json has bytes"),
    "import": {"--platform": "an image is of the platform of its node; choose one by --node"},
    "volume create": dict.fromkeys(
        (
            *("--availability", "--group", "--limit-bytes", "--required-bytes", "--scope"),
            *("--secret", "--sharing", "--topology-preferred", "--topology-required", "--type"),
        ),
        _CLUSTER_VOLUME,
    ),
    "volume ls": {"--cluster": _CLUSTER_VOLUME},
    "network create": {
        "--aux-address": "addresses of hosts are not a container network's; see --ip-range",
        "--config-from": "write the options of the network itself",
        "--config-only": "write the options of the network itself",
        "--ingress": "published ports need no network of their own",
        "--scope": _SCOPE,
    },
    "network connect": {
        "--link": "containers of one network find each other by name",
        "--link-local-ip": "use --ip",
    },
    "network inspect": {"--verbose": "all is shown", "-v": "all is shown"},
    "service create": _SERVICE,
    "service update": {**_SERVICE, "--rollback": "use 'orc service rollback'"},
    "service logs": {
        "--details": "see 'orc inspect' for a container's labels and variables",
        "--no-resolve": "use --raw for lines without names",
        "--no-task-ids": "lines have a task's name, such as web.3; --raw leaves it out",
        "--no-trunc": "nothing is cut",
    },
    "service ps": {"--no-resolve": "--format json has the ids"},
    "node ps": {"--no-resolve": "--format json has the ids"},
    "stack ps": {"--no-resolve": "--format json has the ids"},
    "secret create": {"--driver": _SEALED, "-d": _SEALED},
    "builder prune": {
        "--filter": "the cache of a node is emptied as a whole; see --node",
        "--keep-storage": "the cache of a node is emptied as a whole; see --node",
    },
    "context create": {
        "--description": "a context has its name alone",
        "--docker": "use --endpoint, --ca, --cert and --key",
        "--from": "a context is a file in ~/.config/orc/contexts, which can be copied",
    },
    "context rm": dict.fromkeys(("--force", "-f"), "contexts go without a question"),
    "node update": {"--role": _ONE_MANAGER},
}
"""Command → flag → what to do instead."""

_DRAIN = "use 'orc node update --availability drain NODE'"
_ACTIVATE = "use 'orc node update --availability active NODE'"

COMMANDS: Mapping[str, str] = {
    "builder build": "use 'orc build'",
    "buildx": "use 'orc build'",
    "checkpoint": "checkpoints are not kept; 'orc pause' freezes a container",
    "compose": "use 'orc stack deploy -c FILE NAME'",
    "context update": "use 'orc context rm' and 'orc context create'",
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
    "node demote": _ONE_MANAGER,
    "node promote": _ONE_MANAGER,
    "plugin": "volume and network plugins are found by themselves where their sockets are",
    "search": "search at the registry; 'orc pull' takes any name",
    "swarm": "use 'orc cluster'",
    "swarm ca": "certificates are renewed by themselves; see 'orc cluster info'",
    "swarm init": "use 'orc cluster init --advertise ADDRESS'",
    "swarm join": "use 'orc cluster join --token TOKEN ADDRESS'",
    "swarm join-token": "use 'orc cluster token worker'",
    "swarm leave": "stop the agent of the node, then use 'orc node rm NAME'",
    "swarm unlock": _SEALED,
    "swarm unlock-key": _SEALED,
    "swarm update": "use 'orc cluster update'",
    "trust": _TRUST,
    "volume update": _CLUSTER_VOLUME,
}
"""Commands of Docker, and the most usual of kubectl, that are not ours, as one or two words."""


_ALIASES = {"image ls": "images", "image rm": "rmi"}


def advice(path: str, flag: str) -> str | None:
    """What to do instead of a flag of Docker's; None for what is none. `path`: the command's words
    behind `orc`."""
    path = _ALIASES.get(path, path.removeprefix("container ").removeprefix("image "))
    return FLAGS.get(path, {}).get(flag)
