# SPDX-License-Identifier: Apache-2.0
"""Processes from outside: who belongs to a host, what they hold in memory, what CPU they used."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RUN = "ORC_BENCH_RUN"
"""Environment variable: the number of the run, which its names bear."""


def run_number() -> int:
    """The id of the process that began this run, as this machine numbers it."""
    return int(os.environ.get(RUN) or os.getpid())


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Process:
    """A process as this machine numbers it."""

    pid: int
    parent: int
    argv: tuple[str, ...]

    @property
    def program(self) -> str:
        """Its first word without folders."""
        return self.argv[0].rpartition("/")[2] if self.argv else ""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `pss` counts a page that several processes share by its share, so sums are right."""

    rss: int = 0
    pss: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss)


def descendants(root: int) -> list[Process]:
    """All processes below one, itself included, that live now.

    By the parents that all processes name: a list of children may lack some while others end
    (proc(5)).
    """
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                # The name before the last parenthesis may contain anything.
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                below.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[Process] = []
    open_ones = [(root, 0)]
    while open_ones:
        pid, parent = open_ones.pop()
        with suppress(FileNotFoundError, ProcessLookupError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            found.append(Process(pid, parent, tuple(command.split("\0")[:-1])))
        open_ones += [(child, pid) for child in below.get(pid, ())]
    return found


def children(pid: int) -> Iterator[int]:
    """The ids of a process's own children."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            yield from map(int, (task / "children").read_text().split())


def memory(processes: Iterable[Process]) -> Memory:
    """What they hold together; those that have ended meanwhile hold nothing."""
    total = Memory()
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += Memory(_field(text, "Rss"), _field(text, "Pss"))
    return total


def kernel_memory() -> int:
    """Bytes that the kernel holds for itself, for all of the machine: slabs, stacks, page tables,
    per-CPU data, and whatever else is counted nowhere (`vmalloc`)."""
    text = Path("/proc/meminfo").read_text()
    names = ("Slab", "KernelStack", "PageTables", "Percpu", "VmallocUsed")
    return sum(_field(text, name) for name in names)


def cpu_seconds(processes: Iterable[Process]) -> float:
    """CPU time that they have used so far, to the nanosecond (`schedstat`)."""
    total = 0
    for process in processes:
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _field(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.M)
    return int(found[1]) * 1024 if found else 0
