# SPDX-License-Identifier: Apache-2.0
"""The control groups of containers, on hosts with cgroup version 1, 2 or both.

crun creates a container's cgroup and writes its limits. This module finds and freezes the processes
of a container, reads whether the OOM killer has killed one, and removes leftovers after a crash.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.linux.kernelfiles import keyed, number, read_text

_ROOT = Path("/sys/fs/cgroup")
BUILDS = "builds"
"""Name of the cgroup, next to those of containers, that contains the cgroups of builds."""


class CgroupMode(Enum):
    """Which cgroup versions the host mounts."""

    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"
    """The controllers on version 1, and a version 2 tree in addition."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The mounted cgroup file systems."""

    mode: CgroupMode
    roots: tuple[Path, ...]
    """A folder for each tree that can hold a container's cgroup."""
    memory: Path | None
    """The tree of the memory controller."""
    tracking: Path
    """The tree by which a container's processes are found."""
    freezer: Path | None = None
    """The tree by which processes are frozen."""
    unified: Path | None = None
    """On a hybrid host: the version 2 tree."""
    controllers: Mapping[str, Path] = field(default_factory=dict)
    """On version 1: the tree of each controller."""


def parse_mounts(mountinfo: str) -> Hierarchy:
    """Determine the cgroup version from the text of `/proc/self/mountinfo` (proc(5)).

    Raises RuntimeFailure when no cgroup file system is mounted at /sys/fs/cgroup.
    """
    v1: list[tuple[Path, list[str]]] = []
    v2: list[Path] = []
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        place = Path(fields.split(" ")[4])
        if not place.is_relative_to(_ROOT):
            continue
        if kind == "cgroup2":
            v2.append(place)
        elif kind == "cgroup":
            v1.append((place, options.split(",")))
    if _ROOT in v2:
        return Hierarchy(CgroupMode.V2, (_ROOT,), _ROOT, _ROOT, _ROOT)
    if not v1:
        raise RuntimeFailure(
            "no cgroup file system is mounted at /sys/fs/cgroup, so containers cannot be limited; "
            "mount one with `mount -t cgroup2 none /sys/fs/cgroup`"
        )
    by_controller = {name: place for place, options in v1 for name in options}
    tracking = by_controller.get("pids") or v1[0][0]
    return Hierarchy(
        mode=CgroupMode.HYBRID if v2 else CgroupMode.V1,
        # crun also makes plain folders at `unified` where the tree is not mounted (any more).
        roots=(*(place for place, _ in v1), _ROOT / "unified"),
        memory=by_controller.get("memory"),
        controllers=by_controller,
        tracking=tracking,
        freezer=by_controller.get("freezer"),
        unified=v2[0] if v2 else None,
    )


def detect() -> Hierarchy:
    """The cgroups of this host in the calling thread's mount namespace. Raises RuntimeFailure."""
    return parse_mounts(Path("/proc/thread-self/mountinfo").read_text())


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The cgroups of this agent's containers, which have a common parent."""

    hierarchy: Hierarchy
    parent: str
    """Absolute within each tree, such as `/orc`."""

    def path(self, container_id: str) -> str:
        """The container's cgroup, as in the OCI configuration's `cgroupsPath`."""
        return f"{self.parent}/{container_id}"

    def folder(self, controller: str, container_id: str) -> Path:
        """The container's cgroup in the tree of a controller; on version 2 the same for all."""
        root = self.hierarchy.controllers.get(controller, self.hierarchy.tracking)
        return self._folder(root, container_id)

    def _folder(self, root: Path, name: str) -> Path:
        return root / self.parent.lstrip("/") / name

    def ids(self) -> set[str]:
        """Containers that have a cgroup in any tree."""
        found: set[str] = set()
        for root in self.hierarchy.roots:
            try:
                with os.scandir(self._folder(root, "")) as entries:
                    found.update(entry.name for entry in entries if entry.is_dir())
            except FileNotFoundError:
                continue
        found.discard(BUILDS)
        return found

    def pids(self, container_id: str) -> list[int]:
        """All processes of a container, in the PID namespace of the caller."""
        found: list[int] = []
        for folder in _tree(self._folder(self.hierarchy.tracking, container_id)):
            try:
                text = (folder / "cgroup.procs").read_text()
            except OSError:
                continue
            found.extend(int(pid) for pid in text.split())
        return found

    def kill(self, container_id: str) -> None:
        """Send SIGKILL to every process of a container. Returns before they have ended.

        cgroup v2 does it in one step (`cgroup.kill`, Linux 5.14). Otherwise processes are killed
        until no new one appears; those that fork faster end with the PID namespace.
        """
        if self.hierarchy.mode is CgroupMode.V2:
            try:
                (self._folder(_ROOT, container_id) / "cgroup.kill").write_text("1")
                return
            except OSError:
                # An older kernel, or the cgroup is missing: fall back to the loop.
                pass
        killed: set[int] = set()
        for _ in range(100):
            fresh = [pid for pid in self.pids(container_id) if pid > 0 and pid not in killed]
            if not fresh:
                break
            for pid in fresh:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            killed.update(fresh)
        if killed and self.freezing(container_id):
            # Version 1 does not deliver signals to frozen processes.
            self.freeze(container_id, False)

    def freeze(self, container_id: str, frozen: bool) -> None:
        """Freeze or thaw every process of a container. Returns before all are. Raises OSError."""
        if (place := self._freezer(container_id)) is None:
            raise OSError("this host has no cgroup freezer")
        v2 = self.hierarchy.mode is CgroupMode.V2
        try:
            place.write_text(str(int(frozen)) if v2 else "FROZEN" if frozen else "THAWED")
        except FileNotFoundError:
            if frozen:
                raise

    def freezing(self, container_id: str) -> bool:
        """Whether a container's processes are frozen or being frozen."""
        place = self._freezer(container_id)
        try:
            return place is not None and place.read_text().strip() in ("1", "FROZEN", "FREEZING")
        except OSError:
            return False

    def frozen(self, container_id: str) -> bool:
        """Whether every process of a container is frozen."""
        if (place := self._freezer(container_id)) is None:
            return False
        try:
            if self.hierarchy.mode is CgroupMode.V2:
                return "frozen 1" in place.with_name("cgroup.events").read_text().splitlines()
            return place.read_text().strip() == "FROZEN"
        except OSError:
            return False

    def _freezer(self, container_id: str) -> Path | None:
        v2 = self.hierarchy.mode is CgroupMode.V2
        if self.hierarchy.freezer is None:
            return None
        folder = self._folder(self.hierarchy.freezer, container_id)
        return folder / ("cgroup.freeze" if v2 else "freezer.state")

    def oom_kills(self, container_id: str) -> int:
        """Number of processes of a container killed by the OOM killer."""
        v2 = self.hierarchy.mode is CgroupMode.V2
        name = "memory.events" if v2 else "memory.oom_control"
        return keyed(self._memory_file(container_id, name), "oom_kill")

    def reached_memory_limit(self, container_id: str) -> bool:
        """Whether a container has ever used as much memory as its limit allows."""
        if self.hierarchy.mode is CgroupMode.V2:
            return keyed(self._memory_file(container_id, "memory.events"), "max") > 0
        names = ("memory.failcnt", "memory.memsw.failcnt")
        return any(number(self._memory_file(container_id, name)) for name in names)

    def _memory_file(self, container_id: str, name: str) -> bytes:
        """A file of the memory controller; empty if there is none."""
        if self.hierarchy.memory is None:
            return b""
        return read_text(str(self._folder(self.hierarchy.memory, container_id) / name))

    def remove(self, container_id: str) -> bool:
        """Remove a container's cgroups; False while one of them has a process."""
        return all(_remove_tree(self._folder(root, container_id)) for root in self.hierarchy.roots)

    def remove_empty(self) -> None:
        """Remove the parent if it is empty."""
        for root in self.hierarchy.roots:
            with suppress(OSError):
                self._folder(root, "").rmdir()

    def remove_parent(self) -> bool:
        """Remove the parent and the empty cgroups below it; False when a process still runs."""
        gone = all([self.remove(name) for name in self.ids()])
        for root in self.hierarchy.roots:
            folder = self._folder(root, "")
            # A nested parent, such as `/orc/node-1`, is removed level by level while empty.
            while folder != root and gone:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    break
                folder = folder.parent
        return gone


def _tree(folder: Path) -> Iterator[Path]:
    """A cgroup and all below it, deepest first."""
    try:
        with os.scandir(folder) as entries:
            children = [Path(entry.path) for entry in entries if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return
    for child in children:
        yield from _tree(child)
    yield folder


def _remove_tree(top: Path) -> bool:
    for folder in _tree(top):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.ENOTEMPTY and _drop_plain(folder):
                continue
            return False
    return True


def _drop_plain(folder: Path) -> bool:
    """Remove an ordinary folder that crun took for a cgroup: on a hybrid host it writes
    `cgroup.procs` as an ordinary file where the version 2 tree was mounted."""
    try:
        for entry in folder.iterdir():
            entry.unlink()
        folder.rmdir()
    except OSError:
        return False
    return True


_FREEZE_TIMEOUT, _FREEZE_POLL = 5.0, 0.002
"""Seconds until all processes of a container must be frozen, and between checks."""


async def freeze(cgroups: Cgroups, container_id: str) -> None:
    """Wait until all processes are frozen. Raises RuntimeFailure, and then they are thawed."""
    _set_frozen(cgroups, container_id, frozen=True)
    until = asyncio.get_running_loop().time() + _FREEZE_TIMEOUT
    while not cgroups.frozen(container_id):
        if asyncio.get_running_loop().time() > until:
            thaw(cgroups, container_id)
            raise RuntimeFailure("it could not be paused: some processes did not freeze; try again")
        await asyncio.sleep(_FREEZE_POLL)


def thaw(cgroups: Cgroups, container_id: str) -> None:
    """Resume all processes. Raises RuntimeFailure."""
    _set_frozen(cgroups, container_id, frozen=False)


def _set_frozen(cgroups: Cgroups, container_id: str, *, frozen: bool) -> None:
    try:
        cgroups.freeze(container_id, frozen)
    except OSError as error:
        word = "paused" if frozen else "resumed"
        raise RuntimeFailure(f"it could not be {word}: {error.strerror or error}") from error
