"""The pure part: from a container and the facts of its node to the OCI runtime's `config.json`.

Source: the OCI runtime-spec 1.0 (config.md, config-linux.md); where that leaves a choice, Docker's
defaults, so that an image behaves as its author saw it, with no new privileges besides.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.agent.runtime.base import Container, RuntimeFailure
from orchestrator.agent.runtime.ocimounts import merged, root_propagation
from orchestrator.agent.runtime.rootfs import ImageFiles
from orchestrator.agent.runtime.seccomp import SeccompProfile
from orchestrator.agent.runtime.users import User, resolve_user
from orchestrator.model.specs import SHARES_PER_CORE

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_PIDS_LIMIT = 4096
"""Most processes in a container whose spec does not say."""
LEAST_MEMORY = 6 << 20
"""Bytes below which the OCI runtime itself does not fit into the container's limit."""
LONGEST_HOSTNAME = 64
QUOTA_PERIOD = 100_000
"""Microseconds over which a CPU limit is counted."""
_LEAST_QUOTA = 1000
_LEAST_WEIGHT, _MOST_WEIGHT = 2, 262_144

DEFAULT_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""Docker's default set."""

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_HARMLESS = ("nosuid", "noexec", "nodev")
_MOUNTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", "proc", _HARMLESS),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/dev/shm", "tmpfs", "shm", (*_HARMLESS, "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", _HARMLESS),
    ("/sys", "sysfs", "sysfs", (*_HARMLESS, "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", (*_HARMLESS, "relatime", "ro")),
)

ETC_FILES = ("hostname", "hosts", "resolv.conf")
"""Files that the agent writes for each container and mounts into `/etc`."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the configuration needs to know of the node."""

    swap_accounting: bool = True
    """Whether the kernel can limit swap; without, memory alone is limited."""
    oom_score_adj: int = 0
    """What containers get: the agent's own value if that is above 0 (it cannot be lowered without
    CAP_SYS_RESOURCE), else 0, so that no container inherits the agent's protection."""
    pids_limit: int = DEFAULT_PIDS_LIMIT
    nameservers: tuple[str, ...] = ()
    """Those of the host, for a container that names none."""
    search: tuple[str, ...] = field(default=())
    """The host's DNS search domains, used with its nameservers."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where on the host the parts of a container are."""

    root: Path
    """The mount point of its root."""
    etc: Path
    """The folder that holds `ETC_FILES`."""
    cgroup: str
    """Its cgroup within each tree."""


def arguments(container: Container) -> list[str]:
    """The process's argv: an entrypoint of the spec's own makes the image's command void.

    Raises RuntimeFailure when neither spec nor image says what to run.
    """
    spec, image = container.spec.container, container.image.config
    if spec.entrypoint:
        argv = [*spec.entrypoint, *spec.command]
    else:
        argv = [*image.entrypoint, *(spec.command or image.command)]
    if not argv or not argv[0]:
        raise RuntimeFailure("the image names no command; give one after the image's name")
    return argv


def hostname(container: Container) -> str:
    """What the container calls itself: as told, else the first 12 characters of its id.

    Raises RuntimeFailure when it is longer than the kernel takes.
    """
    name = container.hostname or container.spec.container.hostname or container.id[:12]
    if len(name.encode()) > LONGEST_HOSTNAME:
        raise RuntimeFailure(f"the hostname `{name}` is longer than {LONGEST_HOSTNAME} characters")
    return name


def environment(container: Container, home: str) -> list[str]:
    """`KEY=value` of the process: defaults, the node's, the image's, then the spec's; a later one
    wins, and a key alone in the spec takes the variable away."""
    variables = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname(container)}
    if container.spec.container.tty:
        variables["TERM"] = "xterm"
    for entry in (*container.env, *container.image.config.env, *container.spec.container.env):
        key, equals, value = entry.partition("=")
        if equals:
            variables[key] = value
        else:
            variables.pop(key, None)
    variables.setdefault("HOME", home)
    return [f"{key}={value}" for key, value in variables.items()]


def workdir(container: Container) -> str:
    """The process's working folder, absolute; relative ones count from `/`."""
    chosen = container.spec.container.workdir or container.image.config.workdir
    return posixpath.normpath(posixpath.join("/", chosen)).replace("//", "/")


def etc_files(container: Container, node: NodeFacts) -> dict[str, str]:
    """The texts of `ETC_FILES`."""
    name = hostname(container)
    hosts = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
    ]
    if container.address:
        hosts.append(f"{container.address}\t{name}")
    servers = container.nameservers or node.nameservers
    resolver = [f"nameserver {server}" for server in servers]
    if node.search and not container.nameservers:
        resolver.append(f"search {' '.join(node.search)}")
    return {
        "hostname": f"{name}\n",
        "hosts": _lines(hosts),
        "resolv.conf": _lines(resolver),
    }


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def resources(container: Container, node: NodeFacts) -> dict[str, Any]:
    """The limits that the kernel enforces (config-linux.md, "Control groups").

    CPU weight is told as version 1 shares, which the OCI runtime turns into a weight on version 2.
    Raises RuntimeFailure when the memory limit is too small for anything to start.
    """
    spec = container.spec
    cpu: dict[str, int] = {"shares": min(max(spec.weight, _LEAST_WEIGHT), _MOST_WEIGHT)}
    if spec.limit.shares:
        quota = spec.limit.shares * QUOTA_PERIOD // SHARES_PER_CORE
        cpu |= {"quota": max(quota, _LEAST_QUOTA), "period": QUOTA_PERIOD}
    result: dict[str, Any] = {
        # Devices are denied but for the usual ones, which the OCI runtime adds: with CAP_MKNOD a
        # container could else make the host's disk and read it.
        "devices": [{"allow": False, "access": "rwm"}],
        "cpu": cpu,
        "pids": {"limit": spec.container.pids_limit or node.pids_limit},
    }
    if limit := spec.limit.memory:
        if limit < LEAST_MEMORY:
            raise RuntimeFailure(
                f"the memory limit of {limit} bytes is too small to start a container; "
                f"give at least {LEAST_MEMORY >> 20} MiB"
            )
        # `swap` counts memory and swap together, so equal values leave no swap.
        result["memory"] = {"limit": limit} | ({"swap": limit} if node.swap_accounting else {})
    return result


def process(container: Container, node: NodeFacts, user: User) -> dict[str, Any]:
    """The first process (config.md, "Process")."""
    held = list(DEFAULT_CAPABILITIES) if user.uid == 0 else []
    return {
        "terminal": container.spec.container.tty,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "umask": 0o022,
            "additionalGids": list(user.groups),
        },
        "args": arguments(container),
        "env": environment(container, user.home),
        "cwd": workdir(container),
        # Another user than root holds none, and gets none without a set-user-id program.
        "capabilities": {
            "bounding": list(DEFAULT_CAPABILITIES),
            "effective": held,
            "permitted": held,
        },
        "noNewPrivileges": True,
        "oomScoreAdj": node.oom_score_adj,
    }


def namespaces(container: Container) -> list[dict[str, str]]:
    """Everything of its own; the network namespace is joined when the network made one."""
    own = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    network = {"type": "network"}
    if container.netns is not None:
        network["path"] = str(container.netns)
    return [*own, network]


def config(
    container: Container, node: NodeFacts, places: Places, files: ImageFiles
) -> dict[str, Any]:
    """The whole runtime configuration but for `linux.seccomp`, which `render` adds.

    Raises RuntimeFailure for whatever the user has to change.
    """
    user_name = container.spec.container.user or container.image.config.user
    user = resolve_user(user_name, files.passwd, files.group)
    mounts: list[dict[str, Any]] = [
        {"destination": where, "type": kind, "source": source, "options": list(options)}
        for where, kind, source, options in _MOUNTS
    ]
    mounts += [
        {
            "destination": f"/etc/{name}",
            "type": "bind",
            "source": str(places.etc / name),
            "options": ["bind", "rprivate", "rw"],
        }
        for name in ETC_FILES
    ]
    propagation = root_propagation(container.mounts)
    return {
        "ociVersion": "1.0.2",
        "process": process(container, node, user),
        "root": {"path": str(places.root), "readonly": container.spec.container.read_only},
        "hostname": hostname(container),
        "mounts": merged(mounts, container.mounts, idmapped=False),
        "annotations": {"orc.name": container.name} | container.labels,
        "linux": {
            "cgroupsPath": places.cgroup,
            "namespaces": namespaces(container),
            "resources": resources(container, node),
            # As Docker: in a network namespace of its own there is nobody to protect from a
            # user that takes port 80 or pings.
            "sysctl": {
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv4.ping_group_range": "0 2147483647",
            },
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        }
        | ({"rootfsPropagation": propagation} if propagation else {}),
    }


def render(document: dict[str, Any], seccomp: SeccompProfile) -> str:
    """The text of `config.json`: the document with the ready-made seccomp part put in."""
    rest = {key: value for key, value in document.items() if key != "linux"}
    head = json.dumps(rest, separators=(",", ":"))[:-1]
    linux = json.dumps(document["linux"], separators=(",", ":"))[:-1]
    return f'{head},"linux":{linux},"seccomp":{seccomp.text}}}}}'
