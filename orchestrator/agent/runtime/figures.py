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


def read_figures(cgroups: Cgroups, container_id: str, pid: int) -> Figures:
    """The figures of a container whose first process is `pid`. What cannot be read is 0."""
    received, sent = _network(_text(f"/proc/{pid}/net/dev"))
    if cgroups.hierarchy.mode is CgroupMode.V2:
        folder = f"{cgroups.folder('', container_id)}/"
        cpu = _keyed(_text(folder + "cpu.stat"), "usage_usec") * 1000
        memory = _number(_text(folder + "memory.current"))
        memory -= _keyed(_text(folder + "memory.stat"), "inactive_file")
        limit = _number(_text(folder + "memory.max"))
        pids_folder = folder
        read, written = _io_stat(_text(folder + "io.stat"))
    else:
        cpu = _number(_text(f"{cgroups.folder('cpuacct', container_id)}/cpuacct.usage"))
        folder = f"{cgroups.folder('memory', container_id)}/"
        memory = _number(_text(folder + "memory.usage_in_bytes"))
        memory -= _keyed(_text(folder + "memory.stat"), "total_inactive_file")
        limit = _number(_text(folder + "memory.limit_in_bytes"))
        pids_folder = f"{cgroups.folder('pids', container_id)}/"
        folder = f"{cgroups.folder('blkio', container_id)}/"
        read, written = _io_service(_text(folder + "blkio.throttle.io_service_bytes"))
    return Figures(
        cpu=cpu,
        memory=max(memory, 0),
        memory_limit=limit if limit < _UNLIMITED else 0,
        pids=_number(_text(pids_folder + "pids.current")),
        pids_limit=_number(_text(pids_folder + "pids.max")),
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
