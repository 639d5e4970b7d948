# SPDX-License-Identifier: Apache-2.0
"""Containers see the tree that an image's layers describe, compared with another tool."""

from __future__ import annotations

import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from imagekit import Layout, digest_of, entry, folder, hardlink, symlink, tar
from storekit import no_fetch
from treekit import by_umoci, container_tree, here, read_only_tree

from orchestrator.agent.images.store import ImageStore

pytestmark = pytest.mark.root

Entry = tuple[tarfile.TarInfo, bytes]

BASE = tar(
    folder("etc"),
    entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
    folder("d", mode=0o1777),
    entry("d/one", b"1"),
    entry("d/two", b"2"),
    folder("d/sub"),
    entry("d/sub/deep", b"deep"),
)
EMPTY = tar()
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
AS_FILE = tar(entry("d", b"a file now"))
AS_FOLDER = tar(folder("d", mode=0o700), entry("d/new", b"new"))
CHANGE = tar(folder("d", mode=0o1777), entry("d/one", b"changed"), entry("d/.wh.two"))
OPAQUE = tar(folder("d"), entry("d/.wh..wh..opq"), entry("d/only", b"only"))
GONE = tar(entry(".wh.d"))


def sparse() -> bytes:
    """A tar with a file of 5 GiB that is nearly all holes."""
    made = tarfile.TarInfo("big")
    made.type, made.size = tarfile.REGTYPE, 1024 + 6
    # GNU tar's format 1.0: the map of the pieces, a block, comes before their content.
    made.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "big",
        "GNU.sparse.realsize": str(5 << 30),
    }
    pieces = f"2\n{4 << 30}\n6\n{5 << 30}\n0\n".encode().ljust(512, b"\0")
    made.size = 512 + 6
    return tar((made, pieces + b"middle"), entry("after", b"after"))


CASES = {
    "the same layer twice": [BASE, CHANGE, CHANGE],
    "the same layer again above a change": [BASE, CHANGE, BASE],
    "the same layer above and below": [CHANGE, BASE, CHANGE, BASE, CHANGE],
    "the same layer above what removed its files": [BASE, GONE, BASE],
    "the same removal twice": [BASE, GONE, BASE, GONE],
    "the same opaque folder twice": [BASE, OPAQUE, AS_FOLDER, OPAQUE],
    "the same file in place of a folder twice": [BASE, AS_FILE, AS_FOLDER, AS_FILE],
    "empty layers": [EMPTY, BASE, EMPTY, EMPTY, CHANGE, EMPTY],
    "nothing but an empty layer": [EMPTY],
    "a folder replaced by a file": [BASE, AS_FILE],
    "a folder replaced by a file and back": [BASE, AS_FILE, AS_FOLDER],
    "a folder replaced by a link and back": [BASE, tar(symlink("d", "etc")), AS_FOLDER],
    "an opaque folder": [BASE, OPAQUE],
    "an opaque folder, filled again": [BASE, OPAQUE, CHANGE],
    "an opaque root": [BASE, tar(entry(".wh..wh..opq"), entry("only", b"only")), CHANGE],
    "removals of what is not there": [
        BASE,
        tar(
            entry(".wh.never"),
            folder("new"),
            entry("new/.wh.ghost"),
            entry("new/file", b"x"),
            folder("d", mode=0o1777),
            entry("d/.wh.never"),
            folder("d/sub"),
            entry("d/sub/.wh..wh..opq"),
            entry("d/sub/.wh.deep"),
        ),
    ],
    "removals in the lowest layer": [
        tar(entry(".wh.never"), folder("new"), entry("new/.wh.ghost")),
        tar(folder("other")),
    ],
    "hard links across folders": [
        BASE,
        tar(
            folder("p"),
            entry("p/f", b"linked", mode=0o755, xattrs={"user.note": b"\0\xff"}),
            folder("q"),
            hardlink("q/f", "p/f"),
            symlink("q/s", "../p/f"),
            hardlink("s", "q/s"),
            hardlink("f", "q/f"),
        ),
        tar(folder("p"), entry("p/f", b"no longer")),
    ],
    "attributes": [
        tar(
            folder("x", xattrs={"user.folder": b"1"}),
            entry("x/cap", b"x", mode=0o755, xattrs={"security.capability": CAPABILITY}),
            entry("x/setuid", b"x", mode=0o6755, owner=(1234, 70000), mtime=-5),
            entry("x/note", b"x", xattrs={"user.note": b"\0\xff\n=", "trusted.note": b"kept"}),
            entry("x/null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            entry("x/fifo", kind=tarfile.FIFOTYPE, mode=0o600),
        ),
    ],
    "names that are not UTF-8": [
        tar(
            folder("n"),
            *(
                entry(f"n/{os.fsdecode(name)}", b"x")
                for name in (b"\xff\xfe", b"caf\xe9", b"a:b,c\\d", b'"q"\n', b"\xc3\xa9", b" ")
            ),
            entry("n/" + os.fsdecode(b"\xe9" * 200), b"long"),
            symlink("n/link", os.fsdecode(b"\xff\xfe")),
            hardlink("n/hard", "n/" + os.fsdecode(b"\xff\xfe")),
        ),
        tar(folder("n"), entry("n/.wh." + os.fsdecode(b"caf\xe9"))),
    ],
}


@pytest.mark.parametrize("case", CASES)
async def test_container_sees_the_tree_of_its_layers(tmp_path: Path, case: str) -> None:
    layout = Layout(tmp_path / "layout")
    digest = layout.image(CASES[case], "image")
    found = await here(layout, digest, tmp_path)
    assert found == by_umoci(layout, "image", tmp_path / "reference")


async def test_a_sparse_file_of_more_than_4_gib(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    digest = layout.image([BASE, sparse()], "image")
    async with ImageStore(tmp_path / "store") as store:
        await store.load(layout.finish())
        image = await store.ensure(digest, no_fetch)
        big = image.layers[-1] / "big"
        assert big.stat().st_size == 5 << 30
        assert big.stat().st_blocks * 512 < 1 << 20
        with big.open("rb") as file:
            file.seek(4 << 30)
            assert file.read(7) == b"middle\0"
        assert (image.layers[-1] / "after").read_bytes() == b"after"


NAMES = ("a", "b", "c")


def random_layer(rng: random.Random, prefix: str = "", depth: int = 0) -> Iterator[Entry]:
    """What a tool writes of changes in a small tree: folders before what is in them, removals
    first."""
    kinds = ("nothing", "nothing", "file", "removed", "folder", "folder", "opaque", "link")
    chosen = {name: rng.choice(kinds if depth < 2 else kinds[:4]) for name in NAMES}
    for name, kind in chosen.items():
        if kind == "removed":
            yield entry(f"{prefix}.wh.{name}")
    files = []
    for name, kind in chosen.items():
        path, mode = prefix + name, rng.choice((0o700, 0o755, 0o751))
        if kind == "file":
            if files and rng.random() < 0.3:
                yield hardlink(path, rng.choice(files))
            else:
                yield entry(path, rng.randbytes(4), mode=mode, owner=(rng.randrange(3), 0))
            files.append(path)
        elif kind == "link":
            yield symlink(path, rng.choice(NAMES))
        elif kind in ("folder", "opaque"):
            yield folder(path, mode=mode)
            if kind == "opaque":
                yield entry(f"{path}/.wh..wh..opq")
            yield from random_layer(rng, f"{path}/", depth + 1)


@pytest.mark.parametrize("seed", range(20))
async def test_any_stack_of_recurring_layers(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    pool = [tar(*random_layer(rng)) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.2:
        pool.append(tar(entry(".wh..wh..opq"), *random_layer(rng)))
    stack = [rng.choice(pool) for _ in range(rng.randint(2, 9))]
    layout = Layout(tmp_path / "layout")
    digest = layout.image(stack, "image")
    expected = by_umoci(layout, "image", tmp_path / "reference")
    async with ImageStore(tmp_path / "store") as store:
        await store.load(layout.finish())
        image = await store.ensure(digest, no_fetch)
        assert container_tree(image.layers, tmp_path / "container") == expected
        assert read_only_tree(image.layers, tmp_path / "root") == expected
        # It takes the disk once, is counted once, and all of it goes with the image.
        folders = [part for part in store.parts(digest) if part.is_dir()]
        assert sorted(folders) == sorted((tmp_path / "store/layers").iterdir())
        assert len(list((tmp_path / "store/layers").iterdir())) == len(set(map(digest_of, stack)))
        await store.remove(digest)
        assert list((tmp_path / "store/layers").iterdir()) == []
