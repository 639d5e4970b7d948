# SPDX-License-Identifier: Apache-2.0
"""Volumes of a node on a real kernel: filling, limits, mounts, and recovery after a kill."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from volumekit import holder, private, volume_store

from orchestrator.agent.volumes.mount_plan import anonymous_name
from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.agent.volumes.volume_store import VolumeStore
from orchestrator.linux.mounts import is_mounted
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.objects import Volume

pytestmark = pytest.mark.root

DATA = MountSpec(source="data", target="/data")


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeStore:
    return volume_store(tmp_path / "volumes")


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    """An image of two layers with a folder `/data`, and a link that leads out of it."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    (lower / "data").mkdir(parents=True)
    (lower / "data" / "below").write_text("below")
    (upper / "data").mkdir(parents=True)
    (upper / "data" / "above").write_text("above")
    os.link(upper / "data" / "above", upper / "data" / "again")
    os.chown(upper / "data" / "above", 1000, 1001)
    os.setxattr(upper / "data" / "above", "user.colour", b"red")
    os.chown(upper / "data", 33, 34)
    (upper / "data").chmod(0o2750)
    (upper / "out").symlink_to("/etc")
    return lower, upper


@private
async def test_a_new_volume_is_filled_with_files_and_their_attributes(
    volumes: VolumeStore, layers: tuple[Path, Path]
) -> None:
    (mount,) = await volumes.attach(holder("t1", DATA, layers=layers), {})
    data = Path(mount.source)
    assert (data / "below").read_text() == "below"
    status = (data / "above").stat()
    assert (status.st_uid, status.st_gid, status.st_nlink) == (1000, 1001, 2)
    assert os.getxattr(data / "above", "user.colour") == b"red"
    root = os.stat(data)
    assert (root.st_uid, root.st_gid, root.st_mode & 0o7777) == (33, 34, 0o2750)
    # What somebody has left in it stays.
    (data / "below").unlink()
    await volumes.attach(holder("t2", DATA, layers=layers), {})
    assert not (data / "below").exists()


@private
async def test_volumes_that_are_not_filled(volumes: VolumeStore, layers: tuple[Path, Path]) -> None:
    mounts = await volumes.attach(
        holder(
            "t1",
            replace(DATA, no_copy=True),
            MountSpec(source="none", target="/not/there"),
            # The link is followed inside of the image, where there is no /etc.
            MountSpec(source="link", target="/out"),
            layers=layers,
        ),
        {},
    )
    assert [os.listdir(mount.source) for mount in mounts] == [[], [], []]


@private
async def test_an_interrupted_filling_is_restarted(
    volumes: VolumeStore, layers: tuple[Path, Path], tmp_path: Path
) -> None:
    user = holder("t1", DATA, layers=layers)
    (mount,) = await volumes.attach(user, {})
    data = Path(mount.source)
    # As a kill would have left it.
    record = volumes._records.volume("data")
    assert record is not None
    volumes._records.update(replace(record, filling=True))
    (data / "below").write_text("bel")
    (data / "above").unlink()
    await volume_store(tmp_path / "volumes").attach(user, {})
    assert (data / "below").read_text() == "below"
    assert (data / "above").exists()


@private
async def test_a_limited_volume_is_mounted_while_it_is_used(
    volumes: VolumeStore, tmp_path: Path
) -> None:
    declared = {"data": Volume(id="data", options={"size": "4m"})}
    for user in ("t1", "t2"):
        (mount,) = await volumes.attach(holder(user, DATA), declared)
    data = Path(mount.source)
    with pytest.raises(OSError, match="No space left"):
        (data / "big").write_bytes(bytes(5 << 20))
    (data / "big").unlink()
    (data / "small").write_text("kept")
    await volumes.detach("t1", drop=False)
    assert is_mounted(data.parent)
    # The next agent's last user unmounts what this one's mounted.
    again = volume_store(tmp_path / "volumes")
    await again.retain([])
    assert not is_mounted(data.parent)
    await again.attach(holder("t3", DATA), declared)
    assert (data / "small").read_text() == "kept"
    await again.detach("t3", drop=False)
    await again.remove(declared["data"], force=False)
    assert not data.parent.exists()


@private
async def test_an_image_that_does_not_fit_is_refused_with_the_reason(
    volumes: VolumeStore, layers: tuple[Path, Path]
) -> None:
    (layers[0] / "data" / "big").write_bytes(os.urandom(3 << 20))
    declared = {"data": Volume(id="data", options={"size": "2m"})}
    with pytest.raises(VolumeError, match=r"volume data: .*no space left on device"):
        await volumes.attach(holder("t1", DATA, layers=layers), declared)
    await volumes.detach("t1", drop=False)


@private
async def test_mount_options_are_passed_to_mount(volumes: VolumeStore) -> None:
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000"}
    declared = {"data": Volume(id="data", options=options)}
    (mount,) = await volumes.attach(holder("t1", DATA), declared)
    assert is_mounted(Path(mount.source))
    assert os.stat(mount.source).st_uid == 1000
    await volumes.detach("t1", drop=False)
    assert not is_mounted(Path(mount.source))
    bad = {"bad": Volume(id="bad", options={"type": "nosuchfs", "device": "none"})}
    with pytest.raises(VolumeError, match=r"volume bad cannot be mounted: \S"):
        await volumes.attach(holder("t2", MountSpec(source="bad", target="/bad")), bad)


@private
async def test_volume_in_use_is_not_removed(volumes: VolumeStore) -> None:
    await volumes.attach(holder("t1", DATA), {})
    with pytest.raises(VolumeError, match="in use"):
        await volumes.remove(Volume(id="data"), force=True)
    await volumes.detach("t1", drop=True)
    await volumes.remove(Volume(id="data"), force=False)
    await volumes.remove(Volume(id="data"), force=False)


@pytest.mark.parametrize("drop", [True, False])
@private
async def test_a_volume_without_a_name_goes_with_its_container(
    volumes: VolumeStore, layers: tuple[Path, Path], drop: bool
) -> None:
    user = holder("t1", MountSpec(target="/own"), layers=layers, image_volumes=("/data",))
    mounts = await volumes.attach(user, {})
    assert [mount.target for mount in mounts] == ["/data", "/own"]
    guest = holder("t2", others=[(user, True)])
    assert [(m.target, m.read_only) for m in await volumes.attach(guest, {})] == [
        ("/data", True),
        ("/own", True),
    ]
    await volumes.detach("t1", drop=drop)
    # Somebody else has it still.
    assert len(volumes.known()) == 2
    await volumes.detach("t2", drop=drop)
    await volumes.detach("t1", drop=drop)
    names = [known.record.name for known in volumes.known()]
    both = sorted(anonymous_name("t1", target) for target in ("/data", "/own"))
    assert names == ([] if drop else both)


@private
async def test_names_are_made_for_the_task(volumes: VolumeStore) -> None:
    spec = MountSpec(source="{{.Service.Name}}-{{.Task.Slot}}-{{.Node.Hostname}}", target="/data")
    await volumes.attach(holder("t1", spec), {})
    assert [known.record.name for known in volumes.known()] == ["web-2-host1"]


@private
async def test_binds(volumes: VolumeStore, tmp_path: Path) -> None:
    missing = MountSpec(type=MountType.BIND, source=str(tmp_path / "a" / "b"), target="/x")
    with pytest.raises(VolumeError, match=r"bind source path .*/a/b does not exist on host1"):
        await volumes.attach(holder("t1", missing), {})
    (mount,) = await volumes.attach(holder("t1", replace(missing, create_source=True)), {})
    assert (tmp_path / "a" / "b").is_dir()
    assert not mount.owned
    assert volumes.users("t1") == ()


@private
async def test_a_bind_mount_of_a_link_mounts_its_target(
    volumes: VolumeStore, tmp_path: Path
) -> None:
    (tmp_path / "zone").write_text("UTC")
    (tmp_path / "localtime").symlink_to("zone")
    spec = MountSpec(type=MountType.BIND, source=str(tmp_path / "localtime"), target="/localtime")
    (mount,) = await volumes.attach(holder("t1", spec), {})
    assert mount.source == str(tmp_path / "zone")


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b'{"name": "da', b"[]"])
@private
async def test_records_that_a_loss_of_power_left_damaged(
    volumes: VolumeStore, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent starts, the volume keeps its data, and its next use gives it a record again."""
    await volumes.attach(holder("t1", DATA), {})
    folder = tmp_path / "volumes"
    (folder / "by-name" / "data" / "_data" / "precious").write_text("kept")
    (folder / "by-name" / "data" / "volume.json").write_bytes(content)
    (folder / "uses" / "t1.json").write_bytes(content)
    again = volume_store(folder)
    assert again.known() == []
    errors = [each.__dict__["record"] for each in caplog.records if each.levelname == "ERROR"]
    assert errors == [
        str(folder / "uses" / "t1.json"),
        str(folder / "by-name" / "data" / "volume.json"),
    ]
    assert (folder / "by-name" / "data" / "volume.json.corrupt").read_bytes() == content
    (mount,) = await again.attach(
        holder("t2", DATA), {"data": Volume(id="data", labels={"team": "a"})}
    )
    assert (Path(mount.source) / "precious").read_text() == "kept"
    assert [known.record.labels for known in again.known()] == [{"team": "a"}]
    await again.retain(["t2"])
    assert [path.name for path in (folder / "uses").glob("*.json")] == ["t2.json"]
    assert volume_store(folder).users("data") == ("t2",)


@private
async def test_a_volume_with_a_damaged_record_can_be_removed(
    volumes: VolumeStore, tmp_path: Path
) -> None:
    await volumes.create(Volume(id="data"))
    folder = tmp_path / "volumes" / "by-name" / "data"
    (folder / "volume.json").write_bytes(b"")
    await volumes.remove(Volume(id="data"), force=False)
    assert not folder.exists()
