# SPDX-License-Identifier: Apache-2.0
"""Removal of a host's cgroups, which unlike everything else outlive its namespaces."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from orchestrator.dev.devplan import DevError


def hierarchies(mountinfo: str) -> list[Path]:
    """Mount points of all cgroup hierarchies, v1 and v2, from /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            found.append(Path(before.split()[4]))
    return found


def remove_cgroups(ours: Callable[[str], bool], within: float = 5.0) -> None:
    """Remove every top-level cgroup whose name is `ours`, and kill its processes.

    No-op without one. Raises DevError if one is still busy after `within` seconds.
    """
    deadline = time.monotonic() + within
    for top in _tops(ours):
        while not _remove_tree(top):
            if time.monotonic() > deadline:
                raise DevError(f"cgroup {top} is still in use: see its cgroup.procs")
            time.sleep(0.01)


def thaw(ours: Callable[[str], bool]) -> None:
    """Thaw all cgroups: a process in a frozen v1 freezer cgroup cannot be killed."""
    for top in _tops(ours):
        # Containers may end meanwhile: a walk passes over what has gone.
        for folder, _, files in os.walk(top):
            if "freezer.state" in files:
                state = Path(folder, "freezer.state")
                _tolerate(partial(state.write_text, "THAWED"))


def _tops(ours: Callable[[str], bool]) -> Iterator[Path]:
    for hierarchy in hierarchies(Path("/proc/self/mountinfo").read_text()):
        with os.scandir(hierarchy) as entries:
            yield from [Path(e.path) for e in entries if e.is_dir() and ours(e.name)]


def _tolerate(act: Callable[[], object]) -> bool:
    """Whether `act` succeeded. A missing cgroup or process counts as success, a busy one as
    failure."""
    try:
        act()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
            return True
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def _remove_tree(top: Path) -> bool:
    """One attempt, from the leaves up; False if processes in it are still exiting."""
    gone = True
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            pids = (Path(folder) / "cgroup.procs").read_text().split()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            continue
        for pid in map(int, pids):
            # 0 is a process outside of our PID namespace, which cannot be ours.
            if pid:
                _tolerate(partial(os.kill, pid, signal.SIGKILL))
        gone = _tolerate(partial(os.rmdir, folder)) and gone
    return gone
