# SPDX-License-Identifier: Apache-2.0
"""Unpacking a layer: properties of files are kept, and nothing outside the folder is touched."""

# ruff: noqa: ASYNC221, ASYNC240 (a test may block its own loop)

from __future__ import annotations

import gzip
import os
import select
import stat
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from imagekit import digest_of, entry, folder, hardlink, symlink, tar

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.layers import layercontent
from orchestrator.agent.images.layers.layercontent import Blob, content
from orchestrator.agent.images.layers.unpack import unpack_context, unpack_layer

pytestmark = pytest.mark.root

Unpack = Callable[..., Awaitable[Path]]


@pytest.fixture
def unpack(tmp_path: Path) -> Unpack:
    async def run(data: bytes, blob: bytes | None = None) -> Path:
        file, into = tmp_path / "blob", tmp_path / "deep" / "layer"
        file.write_bytes(data if blob is None else blob)
        into.mkdir(parents=True)
        await unpack_layer(file, into, digest_of(data))
        return into

    return run


def is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path)


async def test_properties_of_files_are_kept(unpack: Unpack) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    root = await unpack(
        tar(
            folder("./", mode=0o711),
            folder("d", mode=0o1777, owner=(5, 6), mtime=5.25),
            entry("d/f", b"text", mode=0o4755, owner=(1234, 70000), mtime=1_700_000_000.123456),
            entry("d/cap", b"x", xattrs={"security.capability": capability}),
            entry(
                "d/x", b"x", xattrs={"user.note": b"\x00\xff\n=", "trusted.overlay.redirect": b"/"}
            ),
            symlink("d/s", "/nowhere/at all"),
            hardlink("h", "d/f"),
            entry("null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            entry("disk", kind=tarfile.BLKTYPE, device=(8, 1), mode=0o660, owner=(0, 6)),
            entry("fifo", kind=tarfile.FIFOTYPE, mode=0o600),
            entry("a/b/c", b"deep"),
            entry("n" * 200 + "/" + "ü" * 100, b"long"),
        )
    )
    assert stat.S_IMODE(root.stat().st_mode) == 0o711
    sub, file = (root / "d").stat(), (root / "d/f").stat()
    assert (stat.S_IMODE(sub.st_mode), sub.st_uid, sub.st_gid) == (0o1777, 5, 6)
    assert sub.st_mtime_ns == 5_250_000_000
    assert (stat.S_IMODE(file.st_mode), file.st_uid, file.st_gid) == (0o4755, 1234, 70000)
    assert file.st_mtime_ns // 1000 == 1_700_000_000_123456
    assert os.getxattr(root / "d/cap", "security.capability") == capability
    assert os.getxattr(root / "d/x", "user.note") == b"\x00\xff\n="
    assert os.listxattr(root / "d/x") == ["user.note"]
    assert os.readlink(root / "d/s") == "/nowhere/at all"
    assert (root / "h").stat().st_ino == file.st_ino
    null, block = (root / "null").lstat(), (root / "disk").lstat()
    assert stat.S_ISCHR(null.st_mode)
    assert (null.st_rdev, stat.S_IMODE(null.st_mode)) == (os.makedev(1, 3), 0o666)
    assert stat.S_ISBLK(block.st_mode)
    assert (block.st_rdev, block.st_gid) == (os.makedev(8, 1), 6)
    assert stat.S_ISFIFO((root / "fifo").lstat().st_mode)
    assert (root / "a/b/c").read_bytes() == b"deep"
    assert (root / ("n" * 200) / ("ü" * 100)).read_bytes() == b"long"


@pytest.mark.parametrize("form", ["plain", "gzip", "gzip in two members", "zstd"])
async def test_each_compression(unpack: Unpack, form: str) -> None:
    data = tar(entry("f", bytes(range(256)) * 20_000))
    match form:
        case "plain":
            blob = data
        case "gzip":
            blob = gzip.compress(data)
        case "zstd":
            blob = subprocess.run(["zstd", "-qc"], input=data, capture_output=True).stdout
        case _:
            blob = gzip.compress(data[:100_001]) + gzip.compress(data[100_001:]) + bytes(512)
    root = await unpack(data, blob)
    assert (root / "f").read_bytes() == bytes(range(256)) * 20_000


@pytest.mark.parametrize("form", ["gnu", "posix"])
async def test_sparse_files_stay_sparse(unpack: Unpack, tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "f").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"middle")
        file.truncate(50 << 20)
    command = ["tar", "-C", source, "--sparse", f"--format={form}", "-cf", "-", "."]
    root = await unpack(subprocess.run(command, capture_output=True, check=True).stdout)
    with (root / "f").open("rb") as file:
        assert file.seek(0, os.SEEK_END) == 50 << 20
        file.seek(5 << 20)
        assert file.read(7) == b"middle\0"
    assert (root / "f").stat().st_blocks * 512 < 1 << 20


async def test_whiteouts_become_overlay_whiteouts(unpack: Unpack) -> None:
    root = await unpack(
        tar(
            folder("a"),
            entry("a/.wh.gone"),
            entry("implied/.wh.too"),
            entry("b/.wh..wh..opq"),
            entry("b/new", b"1"),
            entry("c/.wh..wh.plnk"),
            entry(".wh.top"),
        )
    )
    assert is_whiteout(root / "a/gone")
    assert is_whiteout(root / "implied/too")
    assert is_whiteout(root / "top")
    assert is_opaque(root / "b")
    assert (root / "b/new").read_bytes() == b"1"
    assert list((root / "c").iterdir()) == []


async def test_a_path_removed_and_created_in_one_layer_hides_lower_layers(
    unpack: Unpack,
) -> None:
    root = await unpack(
        tar(
            entry(".wh.before"),
            folder("before"),
            folder("after"),
            entry(".wh.after"),
            entry(".wh.implied"),
            entry("implied/file", b"1"),
            entry(".wh.file"),
            entry("file", b"2"),
            entry("file2", b"3"),
            entry(".wh.file2"),
        )
    )
    for name in ("before", "after", "implied"):
        assert is_opaque(root / name), name
    assert (root / "implied/file").read_bytes() == b"1"
    assert (root / "file").read_bytes() == b"2"
    assert (root / "file2").read_bytes() == b"3"


async def test_the_last_entry_of_a_name_wins(unpack: Unpack) -> None:
    root = await unpack(
        tar(
            entry("f", b"1"),
            hardlink("old", "f"),
            entry("f", b"2"),
            folder("d"),
            entry("d/in", b""),
            symlink("d", "f"),
            symlink("e", "f"),
            folder("e", mtime=7),
            hardlink("f", "f"),
        )
    )
    assert (root / "f").read_bytes() == b"2"
    assert (root / "old").read_bytes() == b"1"
    assert os.readlink(root / "d") == "f"
    assert (root / "e").is_dir()
    assert not (root / "e").is_symlink()


async def test_hard_links_and_whiteouts_of_one_layer(unpack: Unpack) -> None:
    root = await unpack(
        tar(
            # Whiteouts speak of what is below: what this layer has stays, also what is linked.
            entry("kept", b"1"),
            hardlink("other", "kept"),
            entry(".wh.kept"),
            entry(".wh.target"),
            entry("target", b"2", mode=0o750, owner=(7, 8)),
            hardlink("dir/link", "./target"),
            symlink("s", "target"),
            hardlink("s2", "s"),
            entry(".wh.only"),
            entry("far", b"3"),
            hardlink("only", "far"),
        )
    )
    assert (root / "kept").stat().st_ino == (root / "other").stat().st_ino
    assert (root / "dir/link").read_bytes() == b"2"
    linked = (root / "dir/link").stat()
    assert (linked.st_nlink, linked.st_uid, linked.st_gid) == (2, 7, 8)
    assert os.readlink(root / "s2") == "target"
    assert (root / "only").read_bytes() == b"3"


async def test_a_hard_link_to_another_layer_is_an_error(unpack: Unpack) -> None:
    with pytest.raises(ImageError, match="cannot make 'link': No such file or directory"):
        await unpack(tar(hardlink("link", "below")))


def test_the_compression_of_a_small_arriving_blob_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "blob"
    path.touch()
    told, tell = os.pipe()
    waited = select.select

    def comes(*arguments: Any) -> Any:
        """All of it comes just after a look at a file that was empty."""
        path.write_bytes(gzip.compress(b"small"))
        os.write(tell, b"w")
        return waited(*arguments)

    monkeypatch.setattr(layercontent.select, "select", comes)
    with path.open("rb") as file:
        assert b"".join(content(Blob(file.fileno(), told))) == b"small"
    os.close(told)
    os.close(tell)


async def test_the_root_itself_may_be_opaque(unpack: Unpack) -> None:
    root = await unpack(tar(entry(".wh..wh..opq"), entry("new", b"1")))
    assert is_opaque(root)


ESCAPES = {
    "dots": [entry("../../escaped", b"evil"), entry("a/../../../escaped", b"evil")],
    "absolute": [entry("/escaped", b"evil")],
    "absolute symlink": [symlink("out", "{top}"), entry("out/escaped", b"evil")],
    "relative symlink": [symlink("out", "../../../.."), entry("out/escaped", b"evil")],
    "symlink for a parent's parent": [
        symlink("a", ".."),
        symlink("b", "a/../.."),
        entry("b/escaped", b"evil"),
    ],
    "write through a file's symlink": [symlink("f", "{top}/victim"), entry("f", b"evil")],
    "hardlink": [hardlink("h", "{top}/victim"), entry("h", b"evil")],
    "hardlink by dots": [hardlink("h", "../../victim"), entry("h", b"evil")],
    "hardlink by symlink": [symlink("s", "{top}/victim"), hardlink("h", "s"), entry("h", b"evil")],
    "whiteout": [entry("../../.wh.victim"), entry("../../.wh..wh..opq")],
    "whiteout by symlink": [symlink("out", "{top}"), entry("out/.wh.victim")],
    "opaque by symlink": [symlink("out", "{top}"), entry("out/.wh..wh..opq")],
    "whiteout of dots": [entry(".wh..."), entry(".wh..")],
    "folder's mode by symlink": [symlink("out", "{top}"), folder("out/", mode=0o777)],
    "through proc": [entry("proc/self/root/../../escaped", b"evil")],
    "write to a device": [
        entry("null", kind=tarfile.CHRTYPE, device=(1, 3)),
        entry("null", b"evil"),
    ],
    "the root as a file": [symlink("./", "{top}")],
}


@pytest.mark.parametrize("trick", ESCAPES)
async def test_no_path_leaves_the_folder(tmp_path: Path, unpack: Unpack, trick: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("innocent")
    tmp_path.chmod(0o700)
    entries = []
    for info, data in ESCAPES[trick]:
        info.linkname = info.linkname.format(top=tmp_path)
        entries.append((info, data))
    with suppress(ImageError):  # either it is refused or it happens inside
        await unpack(tar(*entries))
    assert victim.read_text() == "innocent"
    assert victim.stat().st_nlink == 1
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    assert sorted(p.name for p in tmp_path.iterdir()) == ["blob", "deep", "victim"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["layer"]
    assert not os.listxattr(tmp_path)
    assert not os.listxattr(tmp_path / "deep")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


TAR = tar(entry("f", b"x" * 10_000), entry("g", b"y"))


@pytest.mark.parametrize(
    ("data", "blob", "words"),
    [
        (TAR, gzip.compress(TAR)[:-20], "gzip data ends too early"),
        (TAR, flipped(gzip.compress(TAR), 60), "gzip data is broken"),
        (TAR, b"\x28\xb5\x2f\xfd" + b"rubbish" * 9, "zstd data is broken"),
        (TAR, b"BZh91AY", "bzip2"),
        (TAR, flipped(TAR, 700), "the image's config says"),
        (TAR[:6000], TAR[:6000], "ends in the middle of 'f'"),
        (flipped(TAR, 10_800), flipped(TAR, 10_800), "not a valid tar"),
        (b"rubbish" * 200, b"rubbish" * 200, "not a valid tar"),
        (tar(hardlink("h", "lacking")), None, "cannot make 'h': No such file"),
        (tar(entry("f", b"1"), entry("f/g", b"2")), None, "is a file and a folder"),
        (tar(entry("n" * 300, b"1")), None, "File name too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_broken_layers(unpack: Unpack, data: bytes, blob: bytes | None, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        await unpack(data, blob)
    assert "\n" not in str(caught.value)


async def test_a_build_context_is_confined_and_keeps_whiteout_names(tmp_path: Path) -> None:
    (tmp_path / "c.tar").write_bytes(tar(entry(".wh.file", b"kept"), entry("../out", b"in")))
    into = tmp_path / "context"
    into.mkdir()
    await unpack_context(tmp_path / "c.tar", into)
    assert (into / ".wh.file").read_bytes() == b"kept"
    assert (into / "out").read_bytes() == b"in"
    assert not (tmp_path / "out").exists()


async def test_a_layer_that_exceeds_the_size_limit_is_rejected(tmp_path: Path) -> None:
    content = bytes(4 << 20)
    blob, into = tmp_path / "blob", tmp_path / "into"
    into.mkdir()
    blob.write_bytes(gzip.compress(content))
    with pytest.raises(ImageError, match=r"unpacks to more than 2 MiB.*--max-layer-size"):
        await unpack_layer(blob, into, "sha256:" + "0" * 64, 2 << 20)


MOST_MEMORY = 60 << 20
"""Bytes: the interpreter, and the largest header that is taken, some times over."""


async def refusal(tmp_path: Path, pieces: Iterable[bytes], **limits: int) -> str:
    """Why a layer of these pieces (of which a blob is compressed) is refused. Its processes must
    not have grown beyond `MOST_MEMORY` until then."""
    blob, into = tmp_path / "blob", tmp_path / "into"
    into.mkdir()
    with gzip.open(blob, "wb", compresslevel=1) as file:
        for piece in pieces:
            file.write(piece)
    # In a process of its own, whose children are these alone.
    limits = {"limit": 64 << 30} | limits
    script = (
        "import asyncio, resource, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.agent.images.image_errors import ImageError\n"
        "from orchestrator.agent.images.layers.unpack import unpack_layer\n"
        "try:\n"
        f"    blob, into = Path({str(blob)!r}), Path({str(into)!r})\n"
        f"    asyncio.run(unpack_layer(blob, into, '-', **{limits}))\n"
        "except ImageError as error:\n"
        "    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    *said, memory = done.stdout.decode().splitlines()
    assert int(memory) < MOST_MEMORY
    assert len(said) == 1
    return said[0]


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def zeros(size: int) -> Iterator[bytes]:
    piece = bytes(16 << 20)
    for _ in range(size // len(piece)):
        yield piece


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
async def test_a_header_of_60_gib_is_rejected_at_once(tmp_path: Path, kind: bytes) -> None:
    said = await refusal(tmp_path, [header(kind, 60 << 30), *zeros(256 << 20)])
    assert "more than 8 MiB of headers" in said


async def test_an_endless_sparse_map_is_rejected(tmp_path: Path) -> None:
    """Each part declares that another follows."""
    first = bytearray(header(tarfile.GNUTYPE_SPARSE, 0))
    first[482] = 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    more = bytearray(512)
    more[:504] = b"00000000001\0" * 42
    more[504] = 1
    said = await refusal(tmp_path, [bytes(first), bytes(more) * (64 << 10)])
    assert "more than 8 MiB of headers" in said


async def test_endless_consecutive_headers_are_rejected(tmp_path: Path) -> None:
    said = await refusal(tmp_path, [header(tarfile.XHDTYPE, 0) * 100_000])
    assert "too many consecutive headers" in said


async def test_global_headers_cannot_accumulate(tmp_path: Path) -> None:
    """Each defines another megabyte for all later files."""

    def pieces() -> Iterator[bytes]:
        for number in range(200):
            record = b" key%d=%s\n" % (number, b"x" * ((1 << 20) - 30))
            length = len(record) + 7
            record = b"%d%s" % (length, record)
            assert len(record) == length
            yield header(tarfile.XGLTYPE, length) + record.ljust(-(-length // 512) * 512, b"\0")
            yield header(tarfile.REGTYPE, 0, f"file{number}")

    said = await refusal(tmp_path, pieces())
    assert "more than 8 MiB of headers" in said


async def test_ten_million_entries_are_rejected_at_the_limit(tmp_path: Path) -> None:
    """The blob, of equal members, has five gigabytes of headers."""
    blob = gzip.compress(header(tarfile.DIRTYPE, 0, "folder") * 10_000)
    (tmp_path / "blob").write_bytes(blob * 1_000)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ImageError, match="more than 20000 files and folders"):
        await unpack_layer(tmp_path / "blob", into, "-", entries=20_000)


async def test_implicit_folders_count_as_entries(tmp_path: Path) -> None:
    """A name of a kilobyte makes hundreds of folders."""
    names = ("/".join([f"d{number}", *["d"] * 400]) for number in range(30))
    said = await refusal(tmp_path, [tar(*(entry(name) for name in names))], entries=10_000)
    assert "more than 10000 files and folders" in said


async def test_memory_does_not_grow_with_folders(tmp_path: Path) -> None:
    """Their times, which come last, are not kept in memory: their paths have 34 MB."""
    top = "/".join(["d" * 250] * 15)
    said = await refusal(
        tmp_path, [tar(*(folder(f"{top}/{number:0250}") for number in range(9_000)))],
        entries=8_000,
    )  # fmt: skip
    assert "more than 8000" in said


async def test_a_file_larger_than_the_free_space_is_rejected_at_once(tmp_path: Path) -> None:
    said = await refusal(tmp_path, [header(tarfile.REGTYPE, 1 << 50), *zeros(64 << 20)])
    assert "no space left" in said
    assert not (tmp_path / "into/x").exists()


async def test_device_nodes(unpack: Unpack) -> None:
    """A container cannot open it, and on the node no other user gets to it."""
    root = await unpack(tar(entry("sda", kind=tarfile.BLKTYPE, device=(8, 0), mode=0o666)))
    found = (root / "sda").lstat()
    assert stat.S_ISBLK(found.st_mode)
    assert found.st_rdev == os.makedev(8, 0)
