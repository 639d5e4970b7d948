"""What a container uses: a few small files of its cgroups, read as they are.

Sources: kernel, admin-guide/cgroup-v1 (cpuacct, memory, pids, blkio-controller) and cgroup-v2;
`/proc/PID/net/dev` for the network namespace. Memory is counted as Docker does, without the file
cache that the kernel can drop at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.runtime.cgroups import CgroupMode, Cgroups

_MOST = 1 << 16
_UNLIMITED = 1 << 60
"""Bytes from which on a memory limit of version 1 is none."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Counters and levels at one moment; bytes, and nanoseconds of CPU time."""

    cpu: int = 0
    memory: int = 0
    memory_limit: int = 0
    """0: none."""
    pids: int = 0
    pids_limit: int = 0
    """0: none."""
    net_received: int = 0
    net_sent: int = 0
    block_read: int = 0
    block_written: int = 0


class FigureFiles:
    """Where a container's figures are found, put together once, with what does not change."""

    __slots__ = (
        *("_block", "_cpu", "_memory", "_memory_stat", "_pids"),
        *("_memory_limit", "_pids_limit", "_v2"),
    )

    def __init__(self, cgroups: Cgroups, container_id: str) -> None:
        def folder(controller: str) -> str:
            return f"{cgroups.folder(controller, container_id)}/"

        self._v2 = cgroups.hierarchy.mode is CgroupMode.V2
        memory, pids = folder("memory"), folder("pids")
        if self._v2:
            self._cpu, self._block = memory + "cpu.stat", memory + "io.stat"
            self._memory, limit = memory + "memory.current", memory + "memory.max"
        else:
            self._cpu = folder("cpuacct") + "cpuacct.usage"
            self._block = folder("blkio") + "blkio.throttle.io_service_bytes"
            self._memory = memory + "memory.usage_in_bytes"
            limit = memory + "memory.limit_in_bytes"
        self._memory_stat = memory + "memory.stat"
        self._pids = pids + "pids.current"
        most = _number(_text(limit))
        self._memory_limit = most if most < _UNLIMITED else 0
        self._pids_limit = _number(_text(pids + "pids.max"))

    def read(self, pid: int) -> Figures:
        """The figures now, where `pid` is the container's first process. What cannot be read is
        0."""
        received, sent = _network(_text(f"/proc/{pid}/net/dev"))
        cpu, memory = _text(self._cpu), _number(_text(self._memory))
        stat = _text(self._memory_stat)
        if self._v2:
            nanoseconds = _keyed(cpu, "usage_usec") * 1000
            cached = _keyed(stat, "inactive_file")
            read, written = _io_stat(_text(self._block))
        else:
            nanoseconds = _number(cpu)
            cached = _keyed(stat, "total_inactive_file")
            read, written = _io_service(_text(self._block))
        return Figures(
            cpu=nanoseconds,
            memory=max(memory - cached, 0),
            memory_limit=self._memory_limit,
            pids=_number(_text(self._pids)),
            pids_limit=self._pids_limit,
            net_received=received,
            net_sent=sent,
            block_read=read,
            block_written=written,
        )


def node_memory() -> int:
    """Bytes of memory that the node has (proc_meminfo(5))."""
    return _keyed(Path("/proc/meminfo").read_bytes(), "MemTotal:") * 1024


def _text(path: str) -> bytes:
    """A small file; nothing when it is not there. Without Python's file objects, which cost more
    than the kernel's work."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _MOST)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _number(text: bytes) -> int:
    return int(text) if text.strip().isdigit() else 0


def _keyed(text: bytes, key: str) -> int:
    """The number after a key at the beginning of a line."""
    word = key.encode()
    at = 0 if text.startswith(word + b" ") else text.find(b"\n" + word + b" ") + 1
    if at == 0 and not text.startswith(word + b" "):
        return 0
    fields = text[at : at + 80].split(None, 2)
    return int(fields[1])


def _network(text: bytes) -> tuple[int, int]:
    """Bytes received and sent by all interfaces but the loopback."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(b":")
        if name.strip() != b"lo":
            fields = rest.split()
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


def _io_stat(text: bytes) -> tuple[int, int]:
    """Bytes read and written of version 2's `8:0 rbytes=1 wbytes=2 …`."""
    read = written = 0
    for field in text.split():
        key, _, value = field.partition(b"=")
        if key == b"rbytes":
            read += int(value)
        elif key == b"wbytes":
            written += int(value)
    return read, written


def _io_service(text: bytes) -> tuple[int, int]:
    """Bytes read and written of version 1's `8:0 Read 1`, a line a device and kind."""
    read = written = 0
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] == b"Read":
            read += int(fields[2])
        elif len(fields) == 3 and fields[1] == b"Write":
            written += int(fields[2])
    return read, written
