"""The node's image store: whole or nothing, once or never."""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC240 (a test may block its own loop, and look for files)

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

from orchestrator.agent.images import blobstore
from orchestrator.agent.images.errors import ImageError, ImageInUse
from orchestrator.agent.images.incoming import Fetch, Incoming
from orchestrator.agent.images.manifest import Platform
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.unpack import unpack_layer

pytestmark = pytest.mark.root

BASE = tar(entry("base", b"base" * 1000))
ONE = tar(entry("one", b"1"))
TWO = tar(entry("two", b"2"))


async def no_fetch(blob: Incoming) -> None:
    raise AssertionError(f"{blob.digest} was fetched")


def fetch_of(layout: Layout, fetched: list[str]) -> Fetch:
    async def fetch(blob: Incoming) -> None:
        fetched.append(blob.digest)
        await asyncio.sleep(0)
        blob.write(layout.path(blob.digest).read_bytes())

    return fetch


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def left_over(root: Path) -> list[Path]:
    return list((root / "tmp").iterdir())


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


async def test_what_was_loaded_is_listed_and_ready_and_still_there_after_a_restart(
    layout: Layout, root: Path
) -> None:
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
async def test_archives_in_each_form(layout: Layout, root: Path, form: str) -> None:
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


async def test_a_given_name_takes_the_place_of_the_archives(layout: Layout, root: Path) -> None:
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


async def test_the_nodes_platform_is_taken_from_an_index(layout: Layout, root: Path) -> None:
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


async def test_an_image_of_another_platform_is_refused(layout: Layout, root: Path) -> None:
    digest = layout.image([ONE], "x:1", architecture="s390x")
    async with ImageStore(root) as store:
        with pytest.raises(ImageError, match="it has linux/s390x"):
            await store.load(layout.archive())
        with pytest.raises(ImageError, match="it has linux/s390x"):
            await store.ensure(digest, fetch_of(layout, []))


async def test_what_is_no_image_archive_is_refused_and_changes_nothing(
    tmp_path: Path, root: Path
) -> None:
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


async def test_an_old_docker_archive_gets_the_same_digest_each_time(
    tmp_path: Path, root: Path
) -> None:
    archive = docker_archive(tmp_path / "d.tar", [BASE, ONE], ["docker.io/library/x:1", "y:2"])
    async with ImageStore(root) as store:
        image = await store.load(archive)
        assert image.names == ("x:1", "y:2")
        assert await store.load(archive) == image
        local = await store.ensure(image.id, no_fetch)
        assert [os.listdir(path) for path in local.layers] == [["base"], ["one"]]


async def test_images_share_layers_and_all_who_wait_share_the_work(
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


async def test_one_who_leaves_does_not_end_the_work_of_the_others(
    layout: Layout, root: Path
) -> None:
    digest = layout.image([BASE])
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(blob: Incoming) -> None:
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
async def test_a_layer_is_unpacked_while_it_comes(layout: Layout, root: Path, kind: str) -> None:
    layer = tar(entry("early", b"1"), entry("late", os.urandom(4 << 20)))
    digest = layout.image([layer], blobs=[PACKED[kind](layer)])

    async def slow(blob: Incoming) -> None:
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


async def test_what_was_unpacked_of_a_blob_that_began_wrong_is_not_used(
    layout: Layout, root: Path
) -> None:
    digest = layout.image([BASE])

    async def second_thoughts(blob: Incoming) -> None:
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


async def test_an_image_that_lies_about_a_layer_does_not_spoil_it_for_others(
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


async def test_a_layer_that_begins_anew_hides_all_below_it(layout: Layout, root: Path) -> None:
    anew = tar(entry(".wh..wh..opq"), entry("anew", b"1"))
    digest = layout.image([BASE, anew, TWO])
    async with ImageStore(root) as store:
        local = await store.ensure(digest, fetch_of(layout, []))
        assert [os.listdir(folder) for folder in local.layers] == [["anew"], ["two"]]
        assert store.layers(digest) == local.layers


async def test_a_source_that_sends_too_much_is_stopped(layout: Layout, root: Path) -> None:
    digest = layout.image([BASE])

    async def floods(blob: Incoming) -> None:
        while True:
            blob.write(bytes(1 << 20))

    async with ImageStore(root) as store:
        with pytest.raises(ImageError, match="is damaged: it has over"):
            await store.ensure(digest, floods)
    assert not left_over(root)


async def test_a_broken_download_leaves_nothing_and_the_next_one_works(
    layout: Layout, root: Path
) -> None:
    digest = layout.image([BASE])

    async def cut(blob: Incoming) -> None:
        blob.write(layout.path(blob.digest).read_bytes()[:-1])

    async def breaks(blob: Incoming) -> None:
        await cut(blob)
        raise ImageError("the other node has gone")

    async def false_layer(blob: Incoming) -> None:
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


async def test_a_layer_that_is_not_what_the_config_says_is_never_used(
    layout: Layout, root: Path
) -> None:
    digest = layout.image([ONE], "x:1", blobs=[gzip.compress(TWO)])
    async with ImageStore(root) as store:
        await store.load(layout.archive())
        with pytest.raises(ImageError, match="the image's config says"):
            await store.ensure(digest, no_fetch)
    assert not list((root / "layers").iterdir())
    assert not left_over(root)


async def test_a_blob_that_the_disk_damaged_is_fetched_anew(layout: Layout, root: Path) -> None:
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


async def test_an_image_whose_blob_was_cut_is_dropped_at_start(layout: Layout, root: Path) -> None:
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


async def test_removal_keeps_what_others_need(layout: Layout, root: Path) -> None:
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


async def test_removal_waits_for_those_at_work(layout: Layout, root: Path) -> None:
    first, second = layout.image([BASE, ONE], "x:1"), layout.image([BASE, TWO])
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(blob: Incoming) -> None:
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


async def test_a_store_has_one_user(root: Path) -> None:
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


async def test_a_kill_in_the_middle_leaves_nothing_after_the_next_start(
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


async def test_a_damaged_index_says_so(root: Path) -> None:
    root.mkdir()
    (root / "index.json").write_text("{")
    with pytest.raises(ImageError, match=r"index\.json is damaged"):
        async with ImageStore(root):
            pass
