# SPDX-License-Identifier: Apache-2.0
"""A folder of a volume as a container's mount, on a real kernel: never one outside of it."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from volumekit import holder, private, volume_store

from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.agent.volumes.volume_store import VolumeStore
from orchestrator.linux.mounts import is_mounted, unmount
from orchestrator.linux.submount import mount_beneath
from orchestrator.model.mounts import MountSpec
from orchestrator.model.objects import Volume

pytestmark = pytest.mark.root

WHOLE = MountSpec(source="data", target="/data")
PART = MountSpec(source="data", target="/part", subpath="deep/part")

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeStore:
    return volume_store(tmp_path / "volumes")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the node that no container is to see."""
    folder = tmp_path / "outside"
    (folder / "part").mkdir(parents=True)
    (folder / "secret").write_text("secret")
    (folder / "part" / "secret").write_text("secret")
    return folder


async def _data(volumes: VolumeStore) -> Path:
    """The files of a volume in use, with a folder `deep/part`."""
    (mount,) = await volumes.attach(holder("writer", WHOLE), {})
    data = Path(mount.source)
    (data / "deep" / "part").mkdir(parents=True)
    (data / "deep" / "part" / "file").write_text("mine")
    return data


@private
async def test_one_folder_is_mounted_for_as_long_as_it_is_used(
    volumes: VolumeStore, tmp_path: Path
) -> None:
    data = await _data(volumes)
    other = replace(PART, target="/other", subpath="deep", read_only=True)
    first, second = await volumes.attach(holder("t1", PART, other), {})
    assert first.owned
    assert second.read_only
    assert os.listdir(first.source) == ["file"]
    assert os.listdir(second.source) == ["part"]
    (Path(first.source) / "new").write_text("new")
    assert (data / "deep" / "part" / "new").read_text() == "new"
    # Asked again, by the agent that comes after a kill.
    again = volume_store(tmp_path / "volumes")
    assert await again.attach(holder("t1", PART, other), {}) == (first, second)
    await again.detach("t1", drop=False)
    assert not is_mounted(Path(first.source))
    assert list((tmp_path / "volumes" / "subpaths").iterdir()) == []
    assert (data / "deep" / "part" / "new").exists()


@private
async def test_a_volume_of_its_own_size_is_unmounted_after_its_folder(
    volumes: VolumeStore,
) -> None:
    declared = {"data": Volume(id="data", options={"size": "4m"})}
    (whole,) = await volumes.attach(holder("t1", WHOLE), declared)
    (Path(whole.source) / "deep" / "part").mkdir(parents=True)
    await volumes.attach(holder("t2", PART), declared)
    await volumes.detach("t1", drop=False)
    assert is_mounted(Path(whole.source).parent)
    await volumes.detach("t2", drop=False)
    assert not is_mounted(Path(whole.source).parent)
    await volumes.remove(declared["data"], force=False)


@private
async def test_a_subpath_must_exist(volumes: VolumeStore) -> None:
    data = await _data(volumes)
    (data / "file").write_text("no folder")
    for path in ("none", "deep/none/x", "file", "file/x"):
        with pytest.raises(VolumeError, match=f"volume data has no folder '{path}'; create it"):
            await volumes.attach(holder("t1", replace(PART, subpath=path)), {})
    assert not (data / "none").exists()
    await volumes.detach("t1", drop=False)


@private
async def test_links_are_followed_only_within_the_volume(
    volumes: VolumeStore, outside: Path
) -> None:
    data = await _data(volumes)
    (data / "good").symlink_to("deep/../deep/part")
    (mount,) = await volumes.attach(holder("t1", replace(PART, subpath="good")), {})
    assert (Path(mount.source) / "file").read_text() == "mine"
    up = "../" * len(data.parts) + str(outside)
    for number, target in enumerate(
        (str(outside), "/", "/proc/self/root", up, "..", "deep/../../..")
    ):
        (data / f"bad{number}").symlink_to(target)
        for path in (f"bad{number}", f"bad{number}/part"):
            with pytest.raises(VolumeError, match=f"'{path}' of volume data is a symbolic"):
                await volumes.attach(holder("t2", replace(PART, subpath=path)), {})
    (data / "loop").symlink_to("loop")
    with pytest.raises(VolumeError, match="'loop' of volume data cannot be mounted: too many"):
        await volumes.attach(holder("t2", replace(PART, subpath="loop")), {})


@contextmanager
def _swapping(folder: Path, link: Path) -> Iterator[None]:
    """As a container with the volume may: a folder and a link change places all the time."""
    libc = ctypes.CDLL(None, use_errno=True)
    ended = threading.Event()

    def swap() -> None:
        names = os.fsencode(folder), os.fsencode(link)
        while not ended.is_set():
            libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)

    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        yield
    finally:
        ended.set()
        attacker.join()


@private
async def test_link_swapped_in_during_a_copy_is_not_followed(
    volumes: VolumeStore, outside: Path, tmp_path: Path
) -> None:
    data = await _data(volumes)
    (data / "link").symlink_to(outside)
    place = tmp_path / "place"
    place.mkdir()
    mounted = refused = 0
    with _swapping(data / "deep", data / "link"):
        while not (mounted > 100 and refused > 100):
            try:
                mount_beneath(str(data), "deep/part", str(place))
            except OSError:
                refused += 1
                continue
            mounted += 1
            assert os.listdir(place) == ["file"]
            unmount(place)
        for _ in range(8):
            with suppress(VolumeError):
                (mount,) = await volumes.attach(holder("t1", PART), {})
                assert os.listdir(mount.source) == ["file"]
