# SPDX-License-Identifier: Apache-2.0
"""Diagnostic data of a host: kernel, network, programs, logs of Orc's daemons.

Collection changes nothing and takes a few seconds at most. If data is not available, its file gives
the reason. `packed` and `unpacked` convert to and from messages, compressed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.pb import support_pb2
from orchestrator.supportbundle.redaction import cleaned, scrubbed

LOG_BYTES = 1 << 20
"""Default size in bytes of a log's tail."""
COMMAND_BYTES = 1 << 20
"""Maximum size in bytes of a program's output."""
COMMAND_TIMEOUT = 5.0
"""Timeout of a program in seconds."""

_FILES = (
    *("/etc/os-release", "/proc/version", "/proc/cmdline", "/proc/uptime", "/proc/loadavg"),
    *("/proc/meminfo", "/proc/cgroups", "/proc/filesystems", "/proc/modules", "/proc/net/dev"),
    *("/proc/self/mountinfo", "/proc/self/cgroup", "/proc/pressure/cpu", "/proc/pressure/memory"),
    *("/proc/pressure/io", "/etc/resolv.conf", "/proc/net/snmp", "/proc/net/netstat"),
    "/proc/sys/net/netfilter/nf_conntrack_count",
    "/proc/sys/net/netfilter/nf_conntrack_max",
)
_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "network/address": ("ip", "-details", "address"),
    "network/link": ("ip", "-details", "-statistics", "link"),
    "network/route": ("ip", "route", "show", "table", "all"),
    "network/route6": ("ip", "-6", "route", "show", "table", "all"),
    "network/rule": ("ip", "rule"),
    "network/neighbour": ("ip", "neighbour"),
    "network/fdb": ("bridge", "fdb"),
    "network/nftables": ("nft", "list", "ruleset"),
    "network/sockets": ("ss", "--summary"),
    "network/listening": ("ss", "-lntup"),
    "network/wireguard": ("wg", "show"),
    "kernel/log": ("dmesg", "--ctime"),
    "kernel/sysctl": ("sysctl", "net.ipv4", "net.bridge", "net.netfilter", "kernel.pid_max"),
    "host/disks": ("df", "--human-readable", "--print-type"),
    "host/inodes": ("df", "--inodes"),
    "host/processes": ("ps", "-eo", "pid,ppid,stat,etime,rss,pcpu,comm"),
}
"""File → the command that prints it. `wg show` hides private keys; `ps` omits arguments of
processes."""
_PROGRAMS = ("crun", "runc", "conmon", "skopeo", "buildah", "nft", "ip", "etcd", "aardvark-dns")


@dataclass(frozen=True, slots=True)
class Fact:
    """A file of the bundle."""

    name: str
    """A relative path."""
    text: str
    """Without secrets."""


def host() -> Iterator[Fact]:
    """Data from the kernel and programs of this host."""
    yield Fact("host/orc.txt", _about())
    for path in _FILES:
        if (text := _read(Path(path))) is not None:
            yield Fact(f"{_folder(path)}/{Path(path).name}.txt", text)
    for name, command in _COMMANDS.items():
        yield Fact(f"{name}.txt", _printed(command))
    versions = "".join(f"{name}: {_version(name)}\n" for name in _PROGRAMS)
    yield Fact("host/programs.txt", versions)


def _folder(path: str) -> str:
    return "network" if "/net/" in path else "kernel" if path.startswith("/proc") else "host"


def _about() -> str:
    lines = {
        "orc": __version__,
        "python": platform.python_version(),
        "hostname": platform.node(),
        "kernel": f"{platform.release()} {platform.machine()}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processors": os.cpu_count(),
        "user": os.geteuid(),
    }
    return "".join(f"{name}: {value}\n" for name, value in lines.items())


def _read(path: Path) -> str | None:
    try:
        return scrubbed(path.read_text(errors="replace"))
    except OSError:
        return None  # this kernel does not have it


def _printed(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed\n"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(command)}: {error}\n"
    text = done.stdout[-COMMAND_BYTES:].decode(errors="replace")
    if done.returncode:
        text += f"[status {done.returncode}] {done.stderr[-4096:].decode(errors='replace')}"
    return f"$ {' '.join(command)}\n{scrubbed(text)}"


def _version(program: str) -> str:
    if shutil.which(program) is None:
        return "not installed"
    flag = "-V" if program == "ip" else "--version"
    lines = _printed((program, flag)).splitlines()[1:]
    return lines[0] if lines else "no output"


def own_log(daemon: str, size: int = LOG_BYTES) -> Fact:
    """The tail of this process's log, whose unit is `orc-DAEMON`."""
    return Fact(f"log/{daemon}.log", _log_of("self", f"orc-{daemon}.service", size))


def _log_of(pid: str, unit: str, size: int) -> str:
    """The log of a process: its stderr, if that is a file, else the journal."""
    stderr = f"/proc/{pid}/fd/2"
    try:
        if stat.S_ISREG(os.stat(stderr).st_mode):
            return tail(Path(stderr), size)
        target = os.readlink(stderr)
    except OSError as error:
        return f"cannot read the log: {error.strerror}\n"
    return (
        journal(unit, size) or f"the log goes to {target}; the journal has no entries of {unit}\n"
    )


def journal(unit: str, size: int = LOG_BYTES) -> str:
    """The tail of a unit's log in systemd's journal; empty without entries."""
    if shutil.which("journalctl") is None:
        return ""
    command = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=20000"]
    try:
        done = subprocess.run(
            [*command, f"--unit={unit}"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=4 * COMMAND_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return scrubbed(_whole_lines(done.stdout, size))


def tail(path: Path, size: int = LOG_BYTES) -> str:
    """The last lines of a file, redacted; a line with the error if it cannot be read."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size - 1))
            return scrubbed(_whole_lines(file.read(size + 1), size))
    except OSError as error:
        return f"cannot read {path}: {(error.strerror or str(error)).lower()}\n"


def _whole_lines(data: bytes, size: int) -> str:
    if len(data) > size:
        # A truncated first line could contain a part of a secret that is not recognised.
        data = data[-size:].partition(b"\n")[2]
    return data.decode(errors="replace")


def daemons(size: int = LOG_BYTES) -> Iterator[Fact]:
    """Logs of all of Orc's daemons on this host: from the journal, also of stopped ones, and from
    files of running ones."""
    for name in ("manager", "agent"):
        if text := journal(f"orc-{name}.service", size):
            yield Fact(f"log/{name}.log", text)
    for pid in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int):
        daemon = _daemon(pid)
        if daemon and stat.S_ISREG(_mode(f"/proc/{pid}/fd/2")):
            target = Path(os.readlink(f"/proc/{pid}/fd/2")).name
            text = tail(Path(f"/proc/{pid}/fd/2"), size)
            yield Fact(f"log/{daemon}-{pid}.log", f"[{target}]\n{text}")


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _daemon(pid: str) -> str:
    """`manager` or `agent` if the process is one, else empty."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    for at, word in enumerate(words[:3]):
        if word.rpartition(b"/")[2] == b"orc" and at + 1 < len(words):
            name = words[at + 1].decode(errors="replace")
            return name if name in ("manager", "agent") else ""
    return ""


def document(name: str, value: Any, known: Iterable[str] = ()) -> Fact:
    """A document as a JSON file, redacted."""
    return Fact(name, json.dumps(cleaned(value, known), indent=2, ensure_ascii=False) + "\n")


def packed(facts: Iterable[Fact]) -> support_pb2.SupportFacts:
    """Facts as a message."""
    return support_pb2.SupportFacts(
        files=[
            support_pb2.SupportFile(name=fact.name, data=zlib.compress(fact.text.encode()))
            for fact in facts
        ]
    )


def unpacked(facts: support_pb2.SupportFacts) -> Iterator[Fact]:
    """Facts from a message; a corrupt one becomes a file with the error."""
    for file in facts.files:
        try:
            yield Fact(file.name, zlib.decompress(file.data).decode(errors="replace"))
        except zlib.error as error:
            yield Fact(file.name, f"corrupt data: {error}\n")
