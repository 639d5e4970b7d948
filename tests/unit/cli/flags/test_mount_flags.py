# SPDX-License-Identifier: Apache-2.0
"""`--volume` and `--mount` are read as Docker reads them."""

from __future__ import annotations

import os
import re

import click
import pytest

from orchestrator.cli.flags.mount_flags import apply_mounts, edit_mounts, parse_mount, parse_volume
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.specs import ContainerSpec
from orchestrator.model.validation.mount_specs import check_mounts

BIND = MountType.BIND


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("data:/srv", MountSpec(source="data", target="/srv")),
        (
            "data:/srv:ro,nocopy",
            MountSpec(source="data", target="/srv", read_only=True, no_copy=True),
        ),
        ("/srv", MountSpec(target="/srv")),
        ("/a:/b", MountSpec(type=BIND, source="/a", target="/b", create_source=True)),
        (
            "/a:/b:ro,z,rslave",
            MountSpec(
                type=BIND, source="/a", target="/b", create_source=True, read_only=True,
                propagation="rslave",
            ),
        ),
        (
            "./a:/b:rw",
            MountSpec(type=BIND, source=f"{os.getcwd()}/a", target="/b", create_source=True),
        ),
    ],
)  # fmt: skip
def test_volume(text: str, mount: MountSpec) -> None:
    assert parse_volume(text) == mount


@pytest.mark.parametrize("text", ["", ":/a", "a:", "a:/b:ro:x", "a:/b:rslave", "/a:/b:nocopy"])
def test_invalid_volumes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="volume"):
        parse_volume(text)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("source=data,target=/srv", MountSpec(source="data", target="/srv")),
        ("type=volume,dst=/srv", MountSpec(target="/srv")),
        (
            "type=volume,src=d,dst=/srv,volume-subpath=a/b",
            MountSpec(source="d", target="/srv", subpath="a/b"),
        ),
        (
            "type=volume,src=d,destination=/srv,ro,volume-nocopy,volume-driver=nfs,"
            'volume-opt=type=nfs,"volume-opt=o=addr=a,ro",volume-label=a=b',
            MountSpec(
                source="d", target="/srv", read_only=True, no_copy=True, driver="nfs",
                options={"type": "nfs", "o": "addr=a,ro"}, labels={"a": "b"},
            ),
        ),
        (
            "type=bind,src=/a,dst=/b,readonly=false,bind-propagation=rshared,bind-recursive=disabled",
            MountSpec(
                type=BIND, source="/a", target="/b", propagation="rshared", non_recursive=True
            ),
        ),
        (
            "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700",
            MountSpec(type=MountType.TMPFS, target="/t", tmpfs_size=1 << 20, tmpfs_mode=0o700),
        ),
    ],
)  # fmt: skip
def test_mount(text: str, mount: MountSpec) -> None:
    assert parse_mount(text) == mount


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type=disk,target=/a", "not one of bind, volume, tmpfs"),
        ("source=a", "has no target"),
        ("target=/a,colour=red", "unknown key 'colour'"),
        ("target", "needs a value for target"),
        ("target=/a,readonly=perhaps", "not a boolean"),
        ("type=tmpfs,target=/a,tmpfs-mode=9", "not an octal number"),
        ("type=tmpfs,target=/a,tmpfs-size=big", "not a size"),
        ("target=/a,volume-opt==x", "not of the form KEY=VALUE"),
        ('"target=/a', "not of the form"),
    ],
)
def test_invalid_mounts(text: str, words: str) -> None:
    with pytest.raises(click.BadParameter, match=words):
        parse_mount(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("target=relative", "not an absolute path"),
        ("target=/", "cannot be '/'"),
        ("target=/a,source=../x", "volume name '../x' is not valid"),
        ("target=/a,source=d-{{.Task.Colour}}", "{{.Task.Colour}} in 'd-"),
        ("type=bind,target=/a", "not an absolute path of the node"),
        ("type=bind,source=/x,target=/a,bind-propagation=up", "not one of rprivate"),
        ("type=bind,source=/x,target=/a,volume-nocopy", "only volumes have"),
        ("type=bind,source=/x,target=/a,volume-subpath=b", "only volumes have"),
        ("type=tmpfs,target=/a,volume-subpath=b", "only volumes have"),
        ("target=/a,volume-subpath=b", "needs a volume with a name"),
        ("source=data,target=/a,volume-subpath=/b", "'/b' is not a path inside of the volume"),
        ("source=data,target=/a,volume-subpath=b/../..", "is not a path inside of the volume"),
        ("target=/a,bind-propagation=shared", "only binds have"),
        ("type=tmpfs,source=x,target=/a", "takes no source"),
        ("target=/a,volume-opt=colour=red", "has no option 'colour'"),
        ("target=/a,volume-opt=size=10", "must be at least 1MiB"),
        ("target=/a,volume-opt=size=1m,volume-opt=device=x", "cannot be combined with"),
        ("target=/a,volume-opt=type=nfs", "needs 'device' too"),
        ("target=/a,volume-opt=device=/x", "or 'bind' in 'o'"),
    ],
)
def test_conflicting_mounts(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check_mounts(ContainerSpec(mounts=(parse_mount(text),)))


def test_one_target_is_one_mount() -> None:
    mounts = parse_mount("target=/a"), parse_mount("source=data,target=/a/")
    with pytest.raises(ValueError, match="two mounts have the target /a"):
        check_mounts(ContainerSpec(mounts=mounts))


def flags(**given: object) -> dict[str, object]:
    usual = {
        "volume": (),
        "mount": (),
        "volume_driver": None,
        "volumes_from": (),
        "storage_opt": (),
    }
    return usual | given


def test_flags_together() -> None:
    spec = apply_mounts(
        ContainerSpec(),
        flags(
            volume=("data:/a", "/x:/b"), mount=("target=/c",), volume_driver="nfs",
            volumes_from=("store:ro",), storage_opt=("size=10g",),
        ),
    )  # fmt: skip
    assert [(mount.target, mount.driver) for mount in spec.mounts] == [
        ("/a", "nfs"),
        ("/b", ""),
        ("/c", ""),
    ]
    assert (spec.volumes_from, spec.storage_size) == (("store:ro",), 10 << 30)
    with pytest.raises(click.BadParameter, match="use size=SIZE"):
        apply_mounts(ContainerSpec(), flags(storage_opt=("colour=red",)))


def test_an_added_mount_replaces_that_at_its_place() -> None:
    spec = ContainerSpec(mounts=(parse_volume("old:/a"), parse_volume("gone:/b")))
    edited = edit_mounts(spec, {"mount_add": ("source=new,target=/a",), "mount_rm": ("/b",)})
    assert edited.mounts == (MountSpec(source="new", target="/a"),)
