# SPDX-License-Identifier: Apache-2.0
"""Ranges of host user ids, one for each container with a user namespace.

A range is a symbolic link in a folder on disk: its name is the first id, its target the container.
Creating a link is atomic, so two containers never hold the same range, also when the agent is
killed at any point, unless they share it: then the second container has its own link, `ID.shared`,
to the range.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure

SIZE = 65_536
"""Ids per range: all that an image can use."""
FIRST = 100_000
"""The first id that Debian, too, assigns to user namespaces."""
HIGHEST = (1 << 32) - 2
"""The kernel's highest user id."""
BUILD_IDS = range(0x6FC0_0000, 0x7000_0000)
"""Ids for image builds, 64 ranges, which no container gets."""
_SHARED = ".shared"
"""Suffix of a link from a container to the range that it shares."""
_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))


@dataclass(frozen=True, slots=True)
class IdRange:
    """The ids `first` to `first + SIZE - 1` of the host, which are 0 to SIZE - 1 inside."""

    first: int


class IdRanges:
    """Allocates the ranges of this node; each is held until its containers are removed."""

    def __init__(
        self,
        folder: Path,
        first: int = FIRST,
        last: int = HIGHEST,
        taken: Iterable[tuple[int, int]] = (),
    ) -> None:
        """`folder` is made by `open`. Ranges lie between the ids `first` and `last` and do not
        overlap those `taken`: pairs of a first id and a number of ids."""
        self._folder = folder
        self._first, self._last = first, last
        self._taken = (*taken, (BUILD_IDS.start, len(BUILD_IDS)))
        self._held: dict[str, IdRange] = {}

    def open(self) -> None:
        """Read the allocated ranges. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in os.scandir(self._folder):
            if entry.name.isdecimal():
                self._held[os.readlink(entry.path)] = IdRange(int(entry.name))
            elif entry.name.endswith(_SHARED):
                container_id = entry.name.removesuffix(_SHARED)
                self._held[container_id] = IdRange(int(os.readlink(entry.path)))

    def held(self) -> frozenset[str]:
        """The containers that hold a range."""
        return frozenset(self._held)

    def find(self, container_id: str) -> IdRange | None:
        """The range of a container."""
        return self._held.get(container_id)

    def allocate(self, container_id: str) -> IdRange:
        """The range of a container, a newly allocated one if it has none. Raises RuntimeFailure."""
        if (there := self._held.get(container_id)) is not None:
            return there
        used = {found.first for found in self._held.values()}
        for first in range(self._first, self._last - SIZE + 2, SIZE):
            if first in used or any(
                begin < first + SIZE and first < begin + count for begin, count in self._taken
            ):
                continue
            try:
                os.symlink(container_id, self._folder / str(first))
            except FileExistsError:
                continue
            self._held[container_id] = found = IdRange(first)
            return found
        raise RuntimeFailure(
            f"all ranges of user ids on this node are held by {len(self._held)} containers; "
            "remove some, or run it with --userns host"
        )

    def share(self, container_id: str, other: str) -> None:
        """Let a container share the range of another one."""
        found = self._held[other]
        if self._held.get(container_id) != found:
            os.symlink(str(found.first), self._sharing(container_id))
            self._held[container_id] = found

    def release(self, container_id: str) -> None:
        """Release a container's range; no-op when it has none. A shared range becomes free when all
        containers have released it."""
        if (found := self._held.pop(container_id, None)) is None:
            return
        if found not in self._held.values():
            # In this order: a crash in between may leak a range, but never duplicates it.
            self._sharing(container_id).unlink(missing_ok=True)
            (self._folder / str(found.first)).unlink(missing_ok=True)
            return
        link = self._folder / str(found.first)
        if os.readlink(link) == container_id:
            heir = next(id for id, held in self._held.items() if held == found)
            made = self._folder / f"{found.first}.new"
            made.unlink(missing_ok=True)
            made.symlink_to(heir)
            made.rename(link)
            self._sharing(heir).unlink(missing_ok=True)
        self._sharing(container_id).unlink(missing_ok=True)

    def _sharing(self, container_id: str) -> Path:
        return self._folder / f"{container_id}{_SHARED}"


def subordinate_ids() -> tuple[tuple[int, int], ...]:
    """Ranges that the host assigned to its users (subuid(5), subgid(5)): first id and number."""
    found = set()
    for path in _SUBORDINATE:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            _, *numbers = line.split(":")
            if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
                found.add((int(numbers[0]), int(numbers[1])))
    return tuple(sorted(found))
