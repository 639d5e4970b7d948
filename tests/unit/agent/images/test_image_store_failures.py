# SPDX-License-Identifier: Apache-2.0
"""The image store on a full disk, with oversized layers, and after a kill of the agent."""

# ruff: noqa: ASYNC110 (what is waited for is a file)

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from imagekit import Layout, entry, small_disk, tar

from orchestrator.agent.images.image_errors import ImageError, NoSpace
from orchestrator.agent.images.staging import FetchBlob, IncomingBlob
from orchestrator.agent.images.store import ImageStore

pytestmark = pytest.mark.root

MIB = 1 << 20
SMALL = tar(entry("small", b"small"))
NOISE = tar(entry("noise", os.urandom(40 * MIB)))
ZEROS = tar(entry("first", b"1"), *(entry(f"zeros-{n}", bytes(8 * MIB)) for n in range(5)))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, 32) as folder:
        yield folder


def fetch_of(layout: Layout) -> FetchBlob:
    async def fetch(blob: IncomingBlob) -> None:
        data = layout.path(blob.digest).read_bytes()
        for start in range(0, len(data), MIB):
            await asyncio.to_thread(blob.write, data[start : start + MIB])

    return fetch


def content(root: Path) -> list[str]:
    folders = ("tmp", "layers", "blobs/sha256")
    return [path.name for folder in folders for path in (root / folder).iterdir()]


@pytest.mark.parametrize("where", ["pull", "unpack"])
async def test_a_full_disk_is_one_error_and_frees_all_space(
    layout: Layout, disk: Path, where: str
) -> None:
    small = layout.image([SMALL])
    large = layout.image(
        [SMALL, NOISE] if where == "pull" else [SMALL, ZEROS],
        blobs=None if where == "pull" else [SMALL, gzip.compress(ZEROS)],
    )
    async with ImageStore(disk / "images") as store:
        with pytest.raises(NoSpace, match=r"no space left on this node's disk .*orc image prune"):
            await store.ensure(large, fetch_of(layout))
        async with asyncio.timeout(60):
            while content(disk / "images"):  # an unpacker that is told to end takes a moment
                await asyncio.sleep(0.01)
        local = await store.ensure(small, fetch_of(layout))
        assert (local.layers[0] / "small").read_bytes() == b"small"
    # What there was before the disk was full is still whole.
    async with ImageStore(disk / "images") as store:
        with pytest.raises(NoSpace):
            await store.ensure(large, fetch_of(layout))
        assert [image.id for image in store.inventory()] == [small]
        assert (local.layers[0] / "small").read_bytes() == b"small"


async def test_a_layer_bomb_leaves_nothing(layout: Layout, tmp_path: Path) -> None:
    bomb = layout.image([ZEROS], blobs=[gzip.compress(ZEROS)])
    root = tmp_path / "store"
    async with ImageStore(root, max_layer=4 * MIB) as store:
        with pytest.raises(ImageError, match="unpacks to more than 4 MiB"):
            await store.ensure(bomb, fetch_of(layout))
        assert store.inventory() == ()
    assert [path.name for path in (root / "tmp").iterdir()] == []
    assert list((root / "layers").iterdir()) == []


KILLED = """
import asyncio, sys
from pathlib import Path
from orchestrator.agent.images.store import ImageStore
blobs, root, digest = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
async def fetch(blob):
    blob.write((blobs / blob.digest.removeprefix("sha256:")).read_bytes())
async def main():
    async with ImageStore(root) as store:
        await store.ensure(digest, fetch)
asyncio.run(main())
"""


async def test_an_agent_killed_while_unpacking_leaves_no_files(
    layout: Layout, tmp_path: Path
) -> None:
    many = tar(*(entry(f"d{n % 50}/f{n}", os.urandom(600)) for n in range(20_000)))
    digest = layout.image([many], blobs=[gzip.compress(many, 1)])
    layout.finish()
    root = tmp_path / "store"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED),
        *(str(layout.root / "blobs" / "sha256"), str(root), digest),
    )
    while not list(root.glob("tmp/*/d7/f7")):
        assert child.returncode is None
        await asyncio.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    await child.wait()
    async with ImageStore(root) as store:
        assert list((root / "tmp").iterdir()) == []
        assert list((root / "layers").iterdir()) == []
        assert store.inventory() == ()
        local = await store.ensure(digest, fetch_of(layout))
        assert len(list(local.layers[0].glob("*/*"))) == 20_000
