"""Docker's flags and commands that Orc does not have, with what to use instead.

Data: whoever types one is told in one line, in place of "no such option".
"""

from __future__ import annotations

from collections.abc import Mapping

_BLOCK_IO = "the kernel's weights and rates of block devices are not set by container"
_REAL_TIME = "real-time scheduling is not given to containers"
_OWN = "each container has its own; for a look at the node's, use --rootfs host"

_CONTAINER = {
    "--annotation": "use --label",
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
    "--disable-content-trust": "signatures are checked as each node's policy.json says",
    "--gpus": "use --device for each of its devices",
    "--ipc": _OWN,
    "--isolation": "that is Windows'; there is --runtime",
    "--kernel-memory": "use --memory, which counts the kernel's too",
    "--link": "containers of one network find each other by name; use --network",
    "--link-local-ip": "use --ip",
    "--log-driver": "output is kept on the node; read it by 'orc logs', or ship it from there",
    "--log-opt": "output is kept on the node; read it by 'orc logs', or ship it from there",
    "--memory-reservation": "use --reserve-memory",
    "--memory-swappiness": "use --memory-swap",
    "--oom-kill-disable": "use --oom-score-adj, or give more --memory",
    "--pid": _OWN,
    "--platform": "a node runs its own platform; choose one by --constraint node.platform.arch==…",
    "--use-api-socket": "mount the socket with -v",
    "--uts": "each container has its own; see --hostname and --domainname",
}

_BUILD = {
    "--cache-from": "layers are cached on each node; --node builds where the cache is",
    "--cache-to": "layers are cached on each node; --node builds where the cache is",
    "--load": "an image that was built is in the cluster at once",
    "--output": "use 'orc save' or 'orc export' afterwards",
    "-o": "use 'orc save' or 'orc export' afterwards",
    "--push": "use 'orc push' afterwards",
    "--rm": "nothing is left of a build's containers",
    "--ssh": "keys stay with you; give a build what it needs with --secret",
    "--squash": "write one RUN, or copy from an earlier stage",
}

FLAGS: Mapping[str, Mapping[str, str]] = {
    "run": _CONTAINER,
    "create": _CONTAINER,
    "build": _BUILD,
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
        "--disable-content-trust": "signatures are checked as each node's policy.json says",
    },
    "push": {
        "--all-tags": "name the tags one by one",
        "-a": "name the tags one by one",
        "--disable-content-trust": "signatures are checked as each node's policy.json says",
    },
    "rmi": {"--no-prune": "layers that an image shares are kept anyway"},
}
"""Command → flag → what to do instead."""

COMMANDS: Mapping[str, str] = {
    "buildx": "use 'orc build'",
    "checkpoint": "checkpoints are not kept; 'orc pause' freezes a container",
    "compose": "use 'orc stack deploy -c FILE NAME'",
    "manifest": "use 'orc image inspect'",
    "plugin": "volume and network plugins are found by themselves where their sockets are",
    "search": "search at the registry; 'orc pull' takes any name",
    "swarm": "use 'orc cluster'",
    "trust": "signatures are checked as each node's policy.json says",
    "update": "use 'orc service update', or make the container anew with other flags",
}
"""Docker's commands that are not ours."""


def advice(command: str, flag: str) -> str | None:
    """What to do instead of a flag of Docker's; None for what is none."""
    return FLAGS.get(command, {}).get(flag)
