# SPDX-License-Identifier: Apache-2.0
"""The node's image store: loading, names, removal and restarts."""

# ruff: noqa: ASYNC221, ASYNC240 (a test may block its own loop)

from __future__ import annotations

import asyncio
import bz2
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from imagekit import Layout, digest_of, entry, tar
from storekit import BASE, ONE, TWO, fetch_of, left_over, no_fetch

from orchestrator.agent.images.image_errors import ImageError, ImageInUse
from orchestrator.agent.images.image_spec import Platform
from orchestrator.agent.images.staging import IncomingBlob
from orchestrator.agent.images.store import ImageStore

pytestmark = pytest.mark.root


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def test_loaded_images_are_ready_also_after_a_restart(layout: Layout, root: Path) -> None:
    digest = layout.image([BASE, ONE], "hello:1", process={"Cmd": ["/one"], "Env": ["A=b"]})
    async with ImageStore(root) as store:
        image = await store.load(layout.archive())
        assert store.changed.is_set()
        assert (image.id, image.names) == (digest, ("hello:1",))
        assert image.layers == (digest_of(BASE), digest_of(ONE))
        assert image.created_at == pytest.approx(1714979289.123456)
        blobs = (root / "blobs/sha256").iterdir()
        assert image.size == sum(path.stat().st_size for path in blobs)
        local = await store.ensure(digest, no_fetch)
        assert [sorted(os.listdir(path)) for path in local.layers] == [["base"], ["one"]]
        assert (local.config.command, local.config.env) == (("/one",), ("A=b",))
    async with ImageStore(root) as store:
        assert store.inventory() == (image,)
        assert store.resolve("docker.io/library/hello:1") == digest
        assert store.resolve(digest) == digest
        assert store.resolve("hello:2") is None
        assert await store.ensure(digest, no_fetch) == local


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
async def test_archives_in_each_format(layout: Layout, root: Path, form: str) -> None:
    digest = layout.image([ONE], "quay.io/a/b:2", blobs=[gzip.compress(ONE)])
    archive = layout.finish() if form == "folder" else layout.archive()
    compress = {"tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}
    if form in compress:
        archive.write_bytes(compress[form](archive.read_bytes()))
    elif form == "tar.zst":
        packed = subprocess.run(["zstd", "-qc", archive], capture_output=True, check=True).stdout
        archive.write_bytes(packed)
    async with ImageStore(root) as store:
        assert (await store.load(archive)).names == ("quay.io/a/b:2",)
        local = await store.ensure(digest, no_fetch)
        assert (local.layers[0] / "one").read_bytes() == b"1"
    assert not left_over(root)


async def test_a_given_name_replaces_the_archives(layout: Layout, root: Path) -> None:
    layout.image([ONE], "theirs:1")
    async with ImageStore(root) as store:
        assert (await store.load(layout.archive(), "ours")).names == ("ours:latest",)
        layout.image([TWO], "second:1")
        with pytest.raises(ImageError, match="holds 2 images"):
            await store.load(layout.archive(), "ours")
        assert len(store.inventory()) == 1
        await store.load(layout.archive())
        assert {n for i in store.inventory() for n in i.names} == {
            "ours:latest",
            "theirs:1",
            "second:1",
        }


async def test_a_name_moves_to_the_image_that_got_it_last(layout: Layout, root: Path) -> None:
    first, second = layout.image([ONE]), layout.image([TWO])
    async with ImageStore(root) as store:
        await store.load(layout.archive())
        await store.tag(first, "x:1")
        await store.tag(second, "x:1")
        assert store.resolve("x:1") == second
        assert {i.id: i.names for i in store.inventory()} == {first: (), second: ("x:1",)}


async def test_the_nodes_platform_is_loaded_from_an_index(layout: Layout, root: Path) -> None:
    entries = []
    for layer, architecture in ((ONE, "s390x"), (TWO, "riscv64")):
        digest = layout.image([layer], architecture=architecture, listed=False)
        size = layout.path(digest).stat().st_size
        platform = {"os": "linux", "architecture": architecture}
        entries.append({"digest": digest, "size": size, "platform": platform})
    index = {"schemaVersion": 2, "manifests": entries}
    described = layout.blob(json.dumps(index).encode())
    layout.entries.append(
        described | {"annotations": {"org.opencontainers.image.ref.name": "multi:1"}}
    )
    async with ImageStore(root, Platform("linux", "riscv64")) as store:
        image = await store.load(layout.archive())
        assert (image.id, image.names) == (entries[1]["digest"], ("multi:1",))
        fetched: list[str] = []
        local = await store.ensure(described["digest"], fetch_of(layout, fetched))
        assert local.digest == entries[1]["digest"]
        assert fetched == [described["digest"]]
    async with ImageStore(root / "other", Platform("linux", "amd64")) as store:
        with pytest.raises(ImageError, match="linux/amd64: it has linux/riscv64, linux/s390x"):
            await store.load(layout.archive())
        assert not store.inventory()
    assert not list((root / "other/blobs/sha256").iterdir())


async def test_an_image_of_another_platform_is_rejected(layout: Layout, root: Path) -> None:
    digest = layout.image([ONE], "x:1", architecture="s390x")
    async with ImageStore(root) as store:
        with pytest.raises(ImageError, match="it has linux/s390x"):
            await store.load(layout.archive())
        with pytest.raises(ImageError, match="it has linux/s390x"):
            await store.ensure(digest, fetch_of(layout, []))


async def test_invalid_archives_change_nothing(tmp_path: Path, root: Path) -> None:
    text, other, lacking = tmp_path / "t.txt", tmp_path / "o.tar", tmp_path / "no.tar"
    text.write_text("hello")
    other.write_bytes(ONE)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tar(entry("index.json", b"{" * 5000))[:3000])
    async with ImageStore(root) as store:
        for path, words in (
            (text, "this is not an image archive"),
            (other, "this is not an image archive"),
            (lacking, "no such file"),
            (cut, "cut off or damaged|index.json|not JSON"),
            (tmp_path, "is not an image archive"),
        ):
            with pytest.raises(ImageError, match=words) as caught:
                await store.load(path)
            assert "\n" not in str(caught.value)
        assert not store.inventory()
    assert not left_over(root)


@pytest.mark.parametrize("damage", ["flip", "cut", "lacking"])
async def test_a_damaged_archive_leaves_nothing(layout: Layout, root: Path, damage: str) -> None:
    layout.image([BASE, ONE], "x:1")
    path = layout.path(digest_of(ONE))
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        case "cut":
            path.write_bytes(data[:-1])
        case _:
            path.unlink()
    async with ImageStore(root) as store:
        with pytest.raises(ImageError, match=r"damaged|lacks its file"):
            await store.load(layout.archive())
        assert not store.inventory()
    assert not left_over(root)
    assert not list((root / "blobs/sha256").iterdir())


def docker_archive(path: Path, layers: list[bytes], names: list[str]) -> Path:
    config = json.dumps(
        {"rootfs": {"diff_ids": [digest_of(layer) for layer in layers]}, "config": {}}
    ).encode()
    entries = [entry(f"{number}/layer.tar", layer) for number, layer in enumerate(layers)]
    # Docker before version 25 stored a layer that it had met before as a link.
    link = tarfile.TarInfo("again/layer.tar")
    link.type, link.linkname = tarfile.SYMTYPE, "../0/layer.tar"
    paths = [f"{number}/layer.tar" for number in range(1, len(layers))]
    manifest = [{"Config": "c.json", "RepoTags": names, "Layers": ["again/layer.tar", *paths]}]
    path.write_bytes(
        tar(
            *entries,
            (link, b""),
            entry("c.json", config),
            entry("manifest.json", json.dumps(manifest).encode()),
        )
    )
    return path


async def test_an_old_docker_archive_gets_a_stable_digest(tmp_path: Path, root: Path) -> None:
    archive = docker_archive(tmp_path / "d.tar", [BASE, ONE], ["docker.io/library/x:1", "y:2"])
    async with ImageStore(root) as store:
        image = await store.load(archive)
        assert image.names == ("x:1", "y:2")
        assert await store.load(archive) == image
        local = await store.ensure(image.id, no_fetch)
        assert [os.listdir(path) for path in local.layers] == [["base"], ["one"]]


async def test_removal_keeps_parts_of_other_images(layout: Layout, root: Path) -> None:
    first, second = layout.image([BASE, ONE], "x:1"), layout.image([BASE, TWO], "y:1")
    async with ImageStore(root) as store:
        await store.load(layout.archive())
        for digest in (first, second):
            await store.ensure(digest, no_fetch)
        await store.tag(first, "x:2")
        await store.remove("x:2", in_use={first})  # only a name: the image keeps x:1
        with pytest.raises(ImageInUse, match="x:1"):
            await store.remove("x:1", in_use={first})
        assert store.resolve("x:1") == first
        await store.remove("x:1")
        assert [image.id for image in store.inventory()] == [second]
        layers = {path.name for path in (root / "layers").iterdir()}
        assert layers == {digest_of(d).removeprefix("sha256:") for d in (BASE, TWO)}
        assert store.blob_path(digest_of(ONE)) is None
        with pytest.raises(ImageError, match="no such image on this node: x:1"):
            await store.remove("x:1")
        await store.ensure(first, fetch_of(layout, []))
        await store.remove(first)
        await store.remove(second)
        assert not store.inventory()
    for kind in ("layers", "blobs/sha256", "tmp"):
        assert not list((root / kind).iterdir())


async def test_removal_waits_for_running_work(layout: Layout, root: Path) -> None:
    first, second = layout.image([BASE, ONE], "x:1"), layout.image([BASE, TWO])
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(blob: IncomingBlob) -> None:
        if blob.digest == digest_of(TWO):
            begun.set()
            await go.wait()
        blob.write(layout.path(blob.digest).read_bytes())

    async with ImageStore(root) as store:
        await store.ensure(first, fetch_of(layout, []))
        at_work = asyncio.create_task(store.ensure(second, slow))
        await begun.wait()
        await store.remove(first)
        go.set()
        local = await at_work
        assert (local.layers[0] / "base").exists()
        assert store.blob_path(digest_of(ONE)) is None


async def test_a_store_is_locked(root: Path) -> None:
    async with ImageStore(root):
        with pytest.raises(ImageError, match="another process uses"):
            async with ImageStore(root):
                pass
    async with ImageStore(root):
        pass


KILLED = """
import asyncio, sys
from pathlib import Path
from orchestrator.agent.images.store import ImageStore
async def stuck(blob):
    blob.write(b"half")
    print("half", flush=True)
    await asyncio.Event().wait()
async def main():
    async with ImageStore(Path(sys.argv[1])) as store:
        await store.ensure("sha256:" + "a" * 64, stuck)
asyncio.run(main())
"""


async def test_leftovers_of_a_killed_process_are_removed_at_the_next_start(
    layout: Layout, root: Path
) -> None:
    layout.image([BASE], "x:1")
    async with ImageStore(root) as store:
        await store.load(layout.archive())
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(root), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    await child.wait()
    half = root / "tmp" / "layer" / "sub"
    half.mkdir(parents=True)  # as if a layer had been half unpacked
    (root / "layers" / ("b" * 64)).mkdir()  # and another image's removal half done
    assert len(left_over(root)) == 2
    async with ImageStore(root) as store:
        assert not left_over(root)
        assert not list((root / "layers").iterdir())
        assert [image.names for image in store.inventory()] == [("x:1",)]


async def test_a_damaged_index_is_reported(root: Path) -> None:
    root.mkdir()
    (root / "index.json").write_text("{")
    with pytest.raises(ImageError, match=r"index\.json is damaged"):
        async with ImageStore(root):
            pass
