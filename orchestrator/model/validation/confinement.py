# SPDX-License-Identifier: Apache-2.0
"""Confinement of containers: parsing capabilities, devices, ulimits, sysctls, tmpfs and profiles.

Each `parse_*` parses the text of a flag and raises ValueError with one line for the user. The forms
are Docker's (`docker run --help`). Pure; shared by the CLI, the manager and the agent.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass

from orchestrator.model.formats.cdi_names import is_cdi
from orchestrator.model.names import check_hostname
from orchestrator.model.specs import Ulimit
from orchestrator.model.units import parse_memory

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""Every capability by its number (capabilities(7), Linux 5.9)."""

ALL = "ALL"

ULIMITS = frozenset(
    {
        *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice"),
        *("nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
    }
)
"""Names of setrlimit(2) limits that Docker accepts."""

RUNTIMES = ("crun", "runc", "youki", "runsc", "kata-runtime")
"""OCI runtimes that a container may request; a node may configure others."""

TMPFS_OPTIONS = frozenset(
    {
        *("rw", "ro", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async"),
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime"),
        *("dirsync", "remount", "mand", "nomand", "huge"),
        *("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"),
    }
)

_IPC_SYSCTLS = frozenset(
    {
        *("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem"),
        *("kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"),
    }
)
_CPUS = re.compile(r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*", re.ASCII)
_DNS_OPTION = re.compile(r"[a-z0-9-]+(?::\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the host in the container."""

    host: str
    """Its path, or the name of a CDI device, which implies the other fields."""
    container: str
    access: str
    """Of `r`, `w` and `m` (mknod)."""

    def __str__(self) -> str:
        if not self.container:
            return self.host
        return f"{self.host}:{self.container}:{self.access}"


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """An empty file system in memory."""

    path: str
    options: tuple[str, ...]


def parse_capability(text: str) -> str:
    """`net_admin`, `CAP_NET_ADMIN` or `all`, as `CAP_NET_ADMIN` or `ALL`."""
    name = text.strip().upper()
    if name == ALL:
        return ALL
    name = f"CAP_{name.removeprefix('CAP_')}"
    if name not in CAPABILITIES:
        raise ValueError(f"capability {text!r} is unknown; write such as NET_ADMIN, or ALL")
    return name


def parse_device(text: str) -> Device:
    """`HOST`, `HOST:CONTAINER`, `HOST:rwm` or `HOST:CONTAINER:rwm`, or `VENDOR/CLASS=DEVICE`."""
    if is_cdi(text):
        return Device(text, "", "")
    parts = text.split(":")
    host, container, access = parts[0], "", "rwm"
    if len(parts) == 2 and _is_access(parts[1]):
        access = parts[1]
    elif len(parts) in (2, 3):
        container = parts[1]
        access = parts[2] if len(parts) == 3 else access
    container = container or host
    if len(parts) > 3 or not host.startswith("/dev/") or not container.startswith("/"):
        raise ValueError(
            f"device {text!r} is not of the form /dev/NAME[:/dev/NAME][:rwm], such as /dev/fuse"
        )
    if not _is_access(access) or ".." in (host + container).split("/"):
        raise ValueError(f"device {text!r} asks for {access!r}; access is made of r, w and m")
    return Device(host, container, access)


def _is_access(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def parse_ulimit(text: str) -> Ulimit:
    """`NAME=SOFT[:HARD]`; -1 or `unlimited` is no limit."""
    name, _, values = text.partition("=")
    soft_text, colon, hard_text = values.partition(":")
    name = name.strip().lower().removeprefix("rlimit_")
    if name not in ULIMITS:
        raise ValueError(f"ulimit {text!r} names no limit; known are {', '.join(sorted(ULIMITS))}")
    try:
        soft = _limit(soft_text)
        hard = _limit(hard_text) if colon else soft
    except ValueError:
        raise ValueError(
            f"ulimit {text!r} is not of the form NAME=SOFT[:HARD], such as nofile=1024:4096"
        ) from None
    return checked_ulimit(Ulimit(name, soft, hard))


def _limit(text: str) -> int:
    return -1 if text == "unlimited" else int(text)


def checked_ulimit(limit: Ulimit) -> Ulimit:
    """The limit itself. Raises ValueError if it cannot be set."""
    if limit.name not in ULIMITS:
        raise ValueError(f"ulimit {limit.name!r} is unknown; such as nofile or nproc are")
    if min(limit.soft, limit.hard) < -1:
        raise ValueError(f"ulimit {limit.name} is negative; -1 is no limit")
    if limit.hard != -1 and not 0 <= limit.soft <= limit.hard:
        raise ValueError(
            f"ulimit {limit.name} has a soft limit of {limit.soft} above the hard one of "
            f"{limit.hard}; lower the first or raise the second"
        )
    return limit


def check_sysctl(name: str) -> None:
    """Raise ValueError for a kernel setting that also affects other containers or the host."""
    if name in _IPC_SYSCTLS or name.startswith(("fs.mqueue.", "net.")):
        if re.fullmatch(r"[A-Za-z0-9_.*/-]+", name) and ".." not in name:
            return
        raise ValueError(f"sysctl {name!r} is not a name such as net.core.somaxconn")
    raise ValueError(
        f"sysctl {name!r} is not the container's own; net.*, fs.mqueue.* and the kernel's "
        "msg*, sem and shm* are"
    )


def is_ipc(name: str) -> bool:
    """Whether a kernel setting is of an IPC namespace."""
    return name in _IPC_SYSCTLS or name.startswith("fs.mqueue.")


def parse_tmpfs(text: str) -> Tmpfs:
    """`PATH[:OPTION,…]`, such as `/run:size=64m,mode=755`."""
    path, _, rest = text.partition(":")
    options = tuple(option for option in rest.split(",") if option)
    if not path.startswith("/") or ".." in path.split("/") or path.strip("/") == "":
        raise ValueError(
            f"tmpfs {text!r} is not of the form /PATH[:OPTIONS], such as /run:size=64m"
        )
    for option in options:
        key, _, value = option.partition("=")
        if key not in TMPFS_OPTIONS:
            raise ValueError(f"tmpfs {path} has the unknown option {option!r}; such as size=64m is")
        if key == "size" and not value.endswith("%"):
            parse_memory(value, f"tmpfs {path} size")
    return Tmpfs(path, options)


def parse_host(text: str) -> str:
    """`NAME:IP` (Docker's `--add-host`, also with `=`), checked. An IPv6 address may be in
    brackets."""
    name, _, address = text.replace("=", ":", 1).partition(":")
    address = address.removeprefix("[").removesuffix("]")
    try:
        check_hostname(name)
        ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"host {text!r} is not of the form NAME:IP, such as db:10.0.0.7") from None
    return f"{name}:{address}"


def check_address(text: str) -> None:
    """Raise ValueError for an invalid address of a name server."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"dns server {text!r} is not an IP address") from None


def check_domain(text: str) -> None:
    """Raise ValueError for an invalid search domain; `.` clears the list."""
    if text != "." and not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", text):
        raise ValueError(f"dns search domain {text!r} is not a name such as example.org")


def check_dns_option(text: str) -> None:
    """Raise ValueError for an option that is not of the form of resolv.conf(5)."""
    if not _DNS_OPTION.fullmatch(text):
        raise ValueError(f"dns option {text!r} is not such as ndots:2 or rotate")


def check_cpus(text: str) -> None:
    """Raise ValueError for an invalid list of CPUs."""
    if not _CPUS.fullmatch(text):
        raise ValueError(f"cpuset {text!r} is not of the form 0-2,4")
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise ValueError(f"cpuset {text!r} has the range {part}, which runs backwards")


def check_apparmor(name: str) -> None:
    """Raise ValueError for an invalid name of an AppArmor profile."""
    if not re.fullmatch(r"[A-Za-z0-9/][A-Za-z0-9_./+-]{0,254}", name):
        raise ValueError(f"{name!r} is no name of an AppArmor profile")


def check_seccomp(text: str) -> None:
    """Raise ValueError for a seccomp profile that is not in Docker's and Podman's format."""
    try:
        profile = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the seccomp profile is not JSON: {error}") from None
    if not isinstance(profile, dict) or not isinstance(profile.get("defaultAction"), str):
        raise ValueError("the seccomp profile has no defaultAction, so it is none")
    rules = profile.get("syscalls") or []
    if not all(
        isinstance(rule, dict) and isinstance(rule.get("names"), list) and "action" in rule
        for rule in rules
    ):
        raise ValueError("a rule of the seccomp profile lacks its names or its action")
