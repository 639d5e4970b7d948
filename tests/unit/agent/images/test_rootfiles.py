# SPDX-License-Identifier: Apache-2.0
"""Export, commit and diff of a container that changes its files concurrently, by programs
confined to them."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from symlinkrace import swapping

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.layers.rootfiles import read_changes, read_root, write_layer

pytestmark = pytest.mark.root

NO_IDS = range(0)
ROUNDS = 6
SECRET = "the host's secret"


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """A container's files, among which are a folder and a file that an attacker replaces."""
    root = tmp_path / "upper"
    (root / "folder").mkdir(parents=True)
    for number in range(50):
        (root / f"folder/{number}").write_text("the container's")
    (root / "file").write_text("the container's")
    host = tmp_path / "host"
    host.mkdir()
    for number in range(50):
        (host / f"secret-{number}").write_text(SECRET)
        (host / f"{number}").write_text(SECRET)
    return root


def check_nothing_of_the_host(tar: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            assert "secret" not in member.name
            if member.isreg():
                content = archive.extractfile(member)
                assert content is not None
                assert SECRET.encode() not in content.read()


async def collect(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("swapped", ["folder", "file"])
async def test_a_swapped_link_exposes_nothing_of_the_host(
    upper: Path, tmp_path: Path, swapped: str
) -> None:
    host = tmp_path / "host" if swapped == "folder" else tmp_path / "host/7"
    layer = tmp_path / "layer.tar"
    with swapping(upper / swapped, host):
        for _ in range(ROUNDS):
            check_nothing_of_the_host(await collect(read_root(upper, (), NO_IDS)))
            with layer.open("wb") as file:
                await write_layer(upper, file, frozenset(), NO_IDS)
            check_nothing_of_the_host(layer.read_bytes())
            found = await read_changes(upper, [tmp_path / "host"], frozenset())
            assert not [path for _, path in found if "secret" in path]


async def test_a_swapped_fifo_or_device_is_not_read(upper: Path) -> None:
    """A reader of a FIFO would wait for a writer, and one of a device would get what it has."""
    os.mkfifo(upper / "fifo")
    with swapping(upper / "file", upper / "fifo"):
        (upper / "file.link").unlink(missing_ok=True)
        os.mknod(upper / "file.link", 0o666 | 0o020000, os.makedev(1, 5))
        for _ in range(ROUNDS):
            tar = await collect(read_root(upper, (), NO_IDS))
            with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
                for member in archive:
                    assert not member.isreg() or member.size < 100


async def test_a_link_in_a_lower_layer_is_not_followed(tmp_path: Path) -> None:
    """Whether a file is there on the host makes no difference to a change's kind."""
    upper, layer, host = (tmp_path / name for name in ("upper", "layer", "host"))
    for folder in (upper / "etc", layer, host):
        folder.mkdir(parents=True)
    (upper / "etc/there").write_text("")
    (host / "there").write_text("")
    (layer / "etc").symlink_to(host)
    assert await read_changes(upper, [layer], frozenset()) == [("C", "/etc"), ("A", "/etc/there")]


async def test_folders_deeper_than_the_interpreters_stack(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    here = os.open(upper, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        tar = await collect(read_root(upper, (), NO_IDS))
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            assert sum(1 for _ in archive) == 1100
        assert len(await read_changes(upper, [], frozenset())) == 1100
    finally:  # not by Python, whose stack is as deep
        await asyncio.to_thread(subprocess.run, ["rm", "-r", upper / "d"], check=True)


async def test_a_stopped_container_is_read_from_its_layers(tmp_path: Path) -> None:
    low, upper, root = (tmp_path / name for name in ("low", "upper", "root"))
    for folder in (low, upper, root):
        folder.mkdir()
    (low / "a").write_text("below")
    (low / "b").write_text("below")
    (upper / "b").write_text("above")
    tar = await collect(read_root(root, [low, upper], NO_IDS))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert sorted(archive.getnames()) == ["a", "b"]
        content = archive.extractfile("b")
        assert content is not None
        assert content.read() == b"above"
    assert os.listdir(root) == []


async def test_missing_files_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="files cannot be read: no such file"):
        await collect(read_root(tmp_path / "gone", (), NO_IDS))
