"""Images that go when the disk is full: the least recently used first, and none that is needed.

What builds have left to be quick the next time goes before any image.

What is needed: the images of all containers on this node, also of those that are stopped; those
that were used a moment ago, since a container may be on its way; and what was built, loaded or
imported here, because nobody else need have it. All others came from a registry or from another
node, and come from there again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.images.errors import ImageError
from orchestrator.agent.images.store import ImageStore

log = logging.getLogger(__name__)

PERIOD = 10.0
"""Seconds between two looks at the disk."""
YOUNG = 120.0
"""Seconds after its last use for which an image stays."""


@dataclass(frozen=True, slots=True)
class DiskThresholds:
    """Percents of the file system in use, as `df` counts them."""

    high: int = 85
    """From here on, images go."""
    low: int = 80
    """Until it is at most this."""


@dataclass(frozen=True, slots=True)
class Disk:
    """How full a file system is, in bytes."""

    used: int
    free: int

    @property
    def percent(self) -> float:
        return 100 * self.used / max(1, self.used + self.free)


def disk_of(folder: Path) -> Disk:
    """The file system that a folder is on."""
    found = shutil.disk_usage(folder)
    return Disk(found.used, found.free)


class ImageGarbageCollector:
    """Keeps a store's file system below a mark."""

    def __init__(
        self,
        store: ImageStore,
        marks: DiskThresholds,
        needed: Callable[[], Collection[str]],
        clock: Callable[[], float],
        disk: Callable[[], Disk],
        spare: Callable[[], Awaitable[int]],
    ) -> None:
        """`needed`: digests of the images that stay whatever happens; `clock`: seconds since the
        epoch, as the store's file system counts them; `spare` frees what is easily missed, and
        returns how many bytes that were."""
        self._spare = spare
        self._spared = False
        self._store = store
        self._marks = marks
        self._needed = needed
        self._clock = clock
        self._disk = disk
        self._complained = False

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.relieve()
            await asyncio.sleep(PERIOD)

    async def relieve(self) -> tuple[str, ...]:
        """Remove images if the disk is over the high mark, until it is not over the low one. The
        digests of those that went, in order."""
        needed = frozenset(self._needed())
        for digest in needed:
            self._store.touch(digest)
        before = self._disk()
        if before.percent < self._marks.high:
            self._complained = self._spared = False
            return ()
        await self._empty_cache(before)
        gone: list[str] = []
        for digest, used in self._candidates(needed):
            disk = self._disk()
            if disk.percent <= self._marks.low or not self._store.swept:
                break
            try:
                await self._store.remove(digest, self._needed())
            except ImageError:
                continue  # somebody has taken or removed it in this moment
            gone.append(digest)
            log.warning(
                "the disk is %d%% full: image removed",
                disk.percent,
                extra={"image": digest, "idle_seconds": round(self._clock() - used)},
            )
        after = self._disk()
        if after.percent >= self._marks.high and not self._complained and self._store.swept:
            self._complained = True
            log.error(
                "the disk of the images is %d%% full, and no image may be removed: "
                "free some space, or give the node a larger disk",
                after.percent,
            )
        return tuple(gone)

    async def _empty_cache(self, before: Disk) -> None:
        """Free what builds have left, once for each time that the disk has filled."""
        if self._spared:
            return
        try:
            freed = await self._spare()
        except ImageError as error:
            log.info("the build cache stays: %s", error)
            return
        self._spared = True
        if freed:
            log.warning(
                "the disk is %d%% full: build cache emptied", before.percent, extra={"freed": freed}
            )

    def _candidates(self, needed: Collection[str]) -> list[tuple[str, float]]:
        """Images that may go and when each was used last, the least recently used first."""
        limit = self._clock() - YOUNG
        used = [
            (self._store.last_used(image.id), image.id)
            for image in self._store.inventory()
            if image.id not in needed and not self._store.made_here(image.id)
        ]
        return [(digest, at) for at, digest in sorted(used) if at <= limit]
