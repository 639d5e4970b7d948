"""Ranges of user ids, one for each container that has users of its own.

A range is a symbolic link in a folder on disk: its name is the first id, what it points to is the
container. The kernel makes a link or says that there is one, so that no two containers ever hold
the same range, whenever the agent is killed, unless they are to share it: then the second has a
link of its own, `ID.shared`, to the range.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure

SIZE = 65_536
"""Ids of a range: what an image can name."""
FIRST = 100_000
"""Where Debian, too, begins to give ids to others than the system's own users."""
HIGHEST = (1 << 32) - 2
"""The last id that the kernel takes."""
BUILD_IDS = range(0x6FC0_0000, 0x7000_0000)
"""Ids for image builds, 64 ranges, which no container gets."""
_SHARED = ".shared"
"""Ends the name of a link of a container to the range that it shares."""
_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))


@dataclass(frozen=True, slots=True)
class IdRange:
    """The ids `first` to `first + SIZE - 1` of the host, which are 0 to SIZE - 1 inside."""

    first: int


class IdRanges:
    """The ranges of this node; each is held until its containers are removed."""

    def __init__(
        self,
        folder: Path,
        first: int = FIRST,
        last: int = HIGHEST,
        taken: Iterable[tuple[int, int]] = (),
    ) -> None:
        """`folder` is made by `open`. Ranges lie between the ids `first` and `last`, and miss what
        is `taken`: pairs of a first id and a number of ids."""
        self._folder = folder
        self._first, self._last = first, last
        self._taken = (*taken, (BUILD_IDS.start, len(BUILD_IDS)))
        self._held: dict[str, IdRange] = {}

    def open(self) -> None:
        """Read what is held. Raises OSError."""
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
        """What a container holds."""
        return self._held.get(container_id)

    def hold(self, container_id: str) -> IdRange:
        """The range of a container, a free one if it has none. Raises RuntimeFailure."""
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
        """Have a container hold the range that another one holds."""
        found = self._held[other]
        if self._held.get(container_id) != found:
            os.symlink(str(found.first), self._sharing(container_id))
            self._held[container_id] = found

    def release(self, container_id: str) -> None:
        """Give a container's range back; fine when it has none. One that is shared is free when all
        have given it back."""
        if (found := self._held.pop(container_id, None)) is None:
            return
        if found not in self._held.values():
            # First: a range whose link is left can only be lost, not given to two.
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
    """What the host has given to users of its own (subuid(5), subgid(5)): first id and number."""
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
