# SPDX-License-Identifier: Apache-2.0
"""Layers are shared, unpacked while they arrive, and discarded when damaged."""

# ruff: noqa: ASYNC110 (a test may look for files)

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
from pathlib import Path

import pytest
from imagekit import Layout, digest_of, entry, tar
from storekit import BASE, ONE, TWO, fetch_of, left_over, no_fetch

from orchestrator.agent.images import blobstore
from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.layers.unpack import unpack_layer
from orchestrator.agent.images.staging import IncomingBlob
from orchestrator.agent.images.store import ImageStore

pytestmark = pytest.mark.root


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The diff ids that were really unpacked, in order."""
    calls: list[str] = []

    async def counted(
        blob: Path, folder: Path, diff_id: str, limit: int, whole: asyncio.Event | None = None
    ) -> None:
        calls.append(diff_id)
        await unpack_layer(blob, folder, diff_id, limit, whole)

    monkeypatch.setattr(blobstore, "unpack_layer", counted)
    return calls


async def test_images_share_layers_and_waiters_share_work(
    layout: Layout, root: Path, unpacked: list[str]
) -> None:
    first, second = layout.image([BASE, ONE]), layout.image([TWO, BASE])
    fetched: list[str] = []
    async with ImageStore(root) as store:
        fetch = fetch_of(layout, fetched)
        results = await asyncio.gather(
            *(store.ensure(digest, fetch) for digest in (first, second) * 4)
        )
    assert results[0].layers[0] == results[1].layers[1]
    assert sorted(unpacked) == sorted(map(digest_of, (BASE, ONE, TWO)))
    assert len(fetched) == len(set(fetched)) == 2 + 2 + 3
    assert len(list((root / "layers").iterdir())) == 3


async def test_a_cancelled_waiter_does_not_affect_others(layout: Layout, root: Path) -> None:
    digest = layout.image([BASE])
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(blob: IncomingBlob) -> None:
        begun.set()
        await go.wait()
        blob.write(layout.path(blob.digest).read_bytes())

    async with ImageStore(root) as store:
        impatient = asyncio.create_task(store.ensure(digest, slow))
        patient = asyncio.create_task(store.ensure(digest, slow))
        await begun.wait()
        impatient.cancel()
        await asyncio.wait([impatient])
        go.set()
        assert (await patient).digest == digest


PACKED = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "zstd": lambda data: (
        subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout
    ),
}


@pytest.mark.parametrize("kind", PACKED)
async def test_a_layer_is_unpacked_while_it_arrives(layout: Layout, root: Path, kind: str) -> None:
    layer = tar(entry("early", b"1"), entry("late", os.urandom(4 << 20)))
    digest = layout.image([layer], blobs=[PACKED[kind](layer)])

    async def slow(blob: IncomingBlob) -> None:
        data = layout.path(blob.digest).read_bytes()
        if len(data) > 1 << 20:
            blob.write(data[:-1000])
            while not list((root / "tmp").glob("*/early")):
                await asyncio.sleep(0.01)
            data = data[-1000:]
        blob.write(data)

    async with ImageStore(root) as store:
        local = await store.ensure(digest, slow)
        assert (local.layers[0] / "late").stat().st_size == 4 << 20
    assert not left_over(root)


async def test_content_unpacked_from_a_restarted_blob_is_not_used(
    layout: Layout, root: Path
) -> None:
    digest = layout.image([BASE])

    async def second_thoughts(blob: IncomingBlob) -> None:
        data = layout.path(blob.digest).read_bytes()
        if blob.digest == digest_of(BASE):
            blob.write(tar(entry("evil", b"x" * 2000))[:2048])
            while not list((root / "tmp").glob("*/evil")):
                await asyncio.sleep(0.01)
            blob.restart()
        blob.write(data)

    async with ImageStore(root) as store:
        local = await store.ensure(digest, second_thoughts)
        assert os.listdir(local.layers[0]) == ["base"]
    assert not left_over(root)


async def test_a_wrong_diff_id_of_one_image_does_not_affect_others(
    layout: Layout, root: Path
) -> None:
    honest, liar = layout.image([BASE]), layout.image([TWO], blobs=[BASE])
    async with ImageStore(root) as store:
        fetch = fetch_of(layout, fetched := [])
        said, local = await asyncio.gather(
            store.ensure(liar, fetch), store.ensure(honest, fetch), return_exceptions=True
        )
        assert isinstance(said, ImageError)
        assert f"the image's config says {digest_of(TWO)}" in str(said)
        assert not isinstance(local, BaseException)
        assert os.listdir(local.layers[0]) == ["base"]
        assert fetched.count(digest_of(BASE)) == 1
        assert [image.id for image in store.inventory()] == [honest]


async def test_a_layer_with_an_opaque_root_hides_lower_layers(layout: Layout, root: Path) -> None:
    anew = tar(entry(".wh..wh..opq"), entry("anew", b"1"))
    digest = layout.image([BASE, anew, TWO])
    async with ImageStore(root) as store:
        local = await store.ensure(digest, fetch_of(layout, []))
        assert [os.listdir(folder) for folder in local.layers] == [["anew"], ["two"]]
        assert store.layers(digest) == local.layers


async def test_a_source_that_sends_too_much_is_rejected(layout: Layout, root: Path) -> None:
    digest = layout.image([BASE])

    async def floods(blob: IncomingBlob) -> None:
        while True:
            blob.write(bytes(1 << 20))

    async with ImageStore(root) as store:
        with pytest.raises(ImageError, match="is damaged: it has over"):
            await store.ensure(digest, floods)
    assert not left_over(root)


async def test_a_broken_download_leaves_no_files_and_can_be_repeated(
    layout: Layout, root: Path
) -> None:
    digest = layout.image([BASE])

    async def cut(blob: IncomingBlob) -> None:
        blob.write(layout.path(blob.digest).read_bytes()[:-1])

    async def breaks(blob: IncomingBlob) -> None:
        await cut(blob)
        raise ImageError("the other node has gone")

    async def false_layer(blob: IncomingBlob) -> None:
        data = layout.path(blob.digest).read_bytes()
        blob.write(data if blob.digest != digest_of(BASE) else b"x" * len(data))

    async with ImageStore(root) as store:
        for fetch, words in (
            (cut, "is damaged"),
            (breaks, "has gone"),
            (false_layer, "its digest is"),
        ):
            with pytest.raises(ImageError, match=words):
                await store.ensure(digest, fetch)
            assert not left_over(root)
            assert store.blob_path(digest_of(BASE)) is None
            assert not store.inventory()
        assert (await store.ensure(digest, fetch_of(layout, []))).digest == digest
        assert [image.id for image in store.inventory()] == [digest]


async def test_a_layer_with_another_digest_than_the_configs_is_never_used(
    layout: Layout, root: Path
) -> None:
    digest = layout.image([ONE], "x:1", blobs=[gzip.compress(TWO)])
    async with ImageStore(root) as store:
        await store.load(layout.archive())
        with pytest.raises(ImageError, match="the image's config says"):
            await store.ensure(digest, no_fetch)
    assert not list((root / "layers").iterdir())
    assert not left_over(root)


async def test_a_blob_damaged_on_disk_is_fetched_again(layout: Layout, root: Path) -> None:
    digest = layout.image([BASE], "x:1")
    fetched: list[str] = []
    async with ImageStore(root) as store:
        await store.load(layout.archive())
        blob = store.blob_path(digest_of(BASE))
        assert blob is not None
        blob.write_bytes(bytes(len(BASE)))
        local = await store.ensure(digest, fetch_of(layout, fetched))
        assert fetched == [digest_of(BASE)]
        assert (local.layers[0] / "base").read_bytes() == b"base" * 1000


async def test_an_image_with_a_truncated_blob_is_dropped_at_start(
    layout: Layout, root: Path
) -> None:
    layout.image([BASE, ONE], "x:1")
    whole = layout.image([BASE, TWO], "y:1")
    async with ImageStore(root) as store:
        await store.load(layout.archive())
        blob = store.blob_path(digest_of(ONE))
        assert blob is not None
    os.truncate(blob, 10)
    async with ImageStore(root) as store:
        assert [image.id for image in store.inventory()] == [whole]
        assert store.resolve("x:1") is None
    assert not blob.exists()
