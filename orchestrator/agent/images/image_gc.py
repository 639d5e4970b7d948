# SPDX-License-Identifier: Apache-2.0
"""Image garbage collection: removes unused images when the disk is full, least recently used first.

The build cache is removed before any image.

Images are kept that any container on this node uses, also a stopped one; that were used recently,
since a container may be about to start; and that were built, loaded or imported here, because they
may exist nowhere else. All others can be pulled again from a registry or another node.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.store import ImageStore

log = logging.getLogger(__name__)

PERIOD = 10.0
"""Seconds between two checks of the disk."""
YOUNG = 120.0
"""Seconds after its last use for which an image is kept."""


@dataclass(frozen=True, slots=True)
class DiskThresholds:
    """Usage of the file system in percent, as in `df`."""

    high: int = 85
    """Usage that starts a collection."""
    low: int = 80
    """Usage that ends it."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The usage of a file system, in bytes."""

    used: int
    free: int

    @property
    def percent(self) -> float:
        return 100 * self.used / max(1, self.used + self.free)


def disk_of(folder: Path) -> Disk:
    """The file system of a folder."""
    found = shutil.disk_usage(folder)
    return Disk(found.used, found.free)


class ImageGarbageCollector:
    """Keeps the usage of a store's file system below a threshold."""

    def __init__(
        self,
        store: ImageStore,
        marks: DiskThresholds,
        needed: Callable[[], Collection[str]],
        clock: Callable[[], float],
        disk: Callable[[], Disk],
        spare: Callable[[], Awaitable[int]],
    ) -> None:
        """`needed`: digests of images in use; `clock`: seconds since the epoch, as in the store's
        file system; `spare` frees caches and returns how many bytes that were."""
        self._spare = spare
        self._spared = False
        self._store = store
        self._marks = marks
        self._needed = needed
        self._clock = clock
        self._disk = disk
        self._complained = False

    async def run(self) -> None:
        """Check periodically, until cancelled."""
        while True:
            await self.relieve()
            await asyncio.sleep(PERIOD)

    async def relieve(self) -> tuple[str, ...]:
        """If the disk is above the high threshold, remove images until it is below the low one.
        Returns their digests, in order."""
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
                continue  # used or removed just now
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
        """Empty the build cache, once each time that the disk has filled."""
        if self._spared:
            return
        try:
            freed = await self._spare()
        except ImageError as error:
            log.info("build cache not emptied: %s", error)
            return
        self._spared = True
        if freed:
            log.warning(
                "the disk is %d%% full: build cache emptied", before.percent, extra={"freed": freed}
            )

    def _candidates(self, needed: Collection[str]) -> list[tuple[str, float]]:
        """Removable images and when each was last used, least recently used first."""
        limit = self._clock() - YOUNG
        used = [
            (self._store.last_used(image.id), image.id)
            for image in self._store.inventory()
            if image.id not in needed and not self._store.made_here(image.id)
        ]
        return [(digest, at) for at, digest in sorted(used) if at <= limit]
