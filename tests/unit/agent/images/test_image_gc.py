# SPDX-License-Identifier: Apache-2.0
"""Garbage collection of images on a real disk that fills up: order and exceptions."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from imagekit import Layout, entry, small_disk, tar

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_gc import (
    YOUNG,
    Disk,
    DiskThresholds,
    ImageGarbageCollector,
    disk_of,
)
from orchestrator.agent.images.staging import FetchBlob, IncomingBlob
from orchestrator.agent.images.store import ImageStore

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, 96) as folder:
        yield folder


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def fetch_of(layout: Layout) -> FetchBlob:
    async def fetch(blob: IncomingBlob) -> None:
        blob.write(layout.path(blob.digest).read_bytes())

    return fetch


def image(layout: Layout, number: int) -> str:
    """An image that takes 10 MiB of a store: its blob, and what is unpacked of it."""
    return layout.image([tar(entry(f"file-{number}", os.urandom(5 * MIB)))])


def used_ago(store: ImageStore, digest: str, seconds: float) -> None:
    path = store.blob_path(digest)
    assert path is not None
    os.utime(path, (time.time() - seconds, time.time() - seconds))


async def _nothing() -> int:
    return 0


def under(
    store: ImageStore,
    folder: Path,
    needed: set[str],
    marks: DiskThresholds,
    spare: Callable[[], Awaitable[int]] = _nothing,
) -> ImageGarbageCollector:
    return ImageGarbageCollector(
        store, marks, lambda: needed, time.time, partial(disk_of, folder), spare
    )


async def test_least_recently_used_images_are_removed_down_to_the_low_mark(
    disk: Path, layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    async with ImageStore(disk / "images") as store:
        made, runs, oldest, older, young = (image(layout, number) for number in range(5))
        await store.load(layout.finish())
        for digest in (runs, oldest, older, young):
            # As if they had come from a registry: what was loaded stays in any case.
            await store.remove(digest)
            await store.ensure(digest, fetch_of(layout), f"web:{digest[-12:]}")
        for digest, hours in ((made, 9), (runs, 8), (older, 2), (oldest, 3)):
            used_ago(store, digest, hours * 3600)
        full = disk_of(disk).percent
        pressure = under(store, disk, {runs}, DiskThresholds(high=int(full), low=int(full) - 8))
        assert await pressure.relieve() == (oldest,)
        assert disk_of(disk).percent <= full - 8
        # Nothing more while it is below the high mark.
        assert await pressure.relieve() == ()
        pressure = under(store, disk, {runs}, DiskThresholds(high=20, low=1))
        assert await pressure.relieve() == (older,)
        assert {i.id for i in store.inventory()} == {made, runs, young}
        assert "image removed" in caplog.text
        # All that is left is needed, new, or nowhere else; that is said once.
        assert await pressure.relieve() == ()
        assert await pressure.relieve() == ()
        said = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert [r.getMessage().count("no image may be removed") for r in said] == [1]
    async with ImageStore(disk / "images") as store:
        # Where an image began is still known after a restart.
        used_ago(store, made, 9 * 3600)
        used_ago(store, young, YOUNG + 60)
        assert await under(store, disk, set(), DiskThresholds(20, 1)).relieve() == (young,)
        assert {i.id for i in store.inventory()} == {made, runs}


async def test_the_build_cache_is_pruned_first_and_once(disk: Path, layout: Layout) -> None:
    left = disk / "left"
    left.write_bytes(os.urandom(10 * MIB))
    emptied = 0

    async def spare() -> int:
        nonlocal emptied
        emptied += 1
        if emptied == 1:
            raise ImageError("a build is under way")
        left.unlink(missing_ok=True)
        return 10 * MIB

    async with ImageStore(disk / "images") as store:
        digest = image(layout, 1)
        await store.ensure(digest, fetch_of(layout))
        used_ago(store, digest, 3600)
        full = int(disk_of(disk).percent)
        pressure = under(store, disk, {digest}, DiskThresholds(full, full), spare)
        assert await pressure.relieve() == ()
        assert await pressure.relieve() == ()
        assert disk_of(disk).percent < full
        assert emptied == 2
        # Below the mark it is let alone, and what is needed stays.
        assert await pressure.relieve() == ()
        assert emptied == 2
        assert [each.id for each in store.inventory()] == [digest]
        # Over it again, with nothing left to free, it is asked once.
        pressure = under(store, disk, {digest}, DiskThresholds(1, 1), spare)
        assert await pressure.relieve() == ()
        assert await pressure.relieve() == ()
        assert emptied == 3


async def test_an_image_counts_as_used_until_its_container_is_removed(
    disk: Path, layout: Layout
) -> None:
    async with ImageStore(disk / "images") as store:
        served, idle = image(layout, 1), image(layout, 2)
        for digest, hours in ((served, 9), (idle, 1)):
            await store.ensure(digest, fetch_of(layout))
            used_ago(store, digest, hours * 3600)
        assert await under(store, disk, {served}, DiskThresholds(99, 98)).relieve() == ()
        # Its container has ended a moment ago.
        assert await under(store, disk, set(), DiskThresholds(2, 1)).relieve() == (idle,)


def test_percentages_match_df() -> None:
    assert Disk(used=85, free=15).percent == 85
    assert Disk(used=0, free=0).percent == 0
