# SPDX-License-Identifier: Apache-2.0
"""`--volume`, `--mount`, `--volumes-from` and `--storage-opt`, as Docker reads them."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli.app.completion_names import completes
from orchestrator.model.mounts import PROPAGATIONS, MountSpec, MountType
from orchestrator.model.specs import ContainerSpec
from orchestrator.model.units import parse_memory
from orchestrator.model.validation.mount_specs import check_disk_size

F = TypeVar("F", bound=Callable[..., Any])

_VOLUME_HELP = "SOURCE:TARGET[:ro]: a volume's name or a folder of the node; repeatable."
_MOUNT_HELP = "type=bind|volume|tmpfs,source=…,target=…[,…]; repeatable."


def mount_options(function: F) -> F:
    """Add the flags of a new service or container."""
    for option in (
        click.option(
            "--volume",
            "-v",
            multiple=True,
            metavar="VOLUME",
            shell_complete=completes("volumes_and_folders"),
            help=_VOLUME_HELP,
        ),
        click.option("--mount", multiple=True, metavar="MOUNT", help=_MOUNT_HELP),
        click.option("--volume-driver", metavar="DRIVER", help="Driver of the volumes of -v."),
        click.option(
            "--volumes-from",
            multiple=True,
            metavar="CONTAINER[:ro]",
            shell_complete=completes("containers"),
            help="Mount the volumes of that container, on its node; repeatable.",
        ),
        click.option(
            "--storage-opt", multiple=True, metavar="size=SIZE", help="Limit of the writable layer."
        ),
    ):
        function = option(function)
    return function


def mount_edit_options(function: F) -> F:
    """Add the flags of an update."""
    for option in (
        click.option("--mount-add", multiple=True, metavar="MOUNT", help=_MOUNT_HELP),
        click.option(
            "--mount-rm", multiple=True, metavar="TARGET", help="Remove the mount at that path."
        ),
    ):
        function = option(function)
    return function


def apply_mounts(spec: ContainerSpec, values: Mapping[str, Any]) -> ContainerSpec:
    """The container with the flags of `mount_options`; `spec` may have mounts already, such as
    those of `--tmpfs`. Raises a usage error for a flag that cannot be read."""
    driver = values["volume_driver"] or ""
    mounts = [parse_volume(text) for text in values["volume"]]
    if driver:
        mounts = [
            replace(mount, driver=driver) if mount.type is MountType.VOLUME else mount
            for mount in mounts
        ]
    mounts += [parse_mount(text) for text in values["mount"]]
    return replace(
        spec,
        mounts=(*spec.mounts, *mounts),
        volumes_from=tuple(values["volumes_from"]),
        storage_size=_storage_size(values["storage_opt"]),
    )


def edit_mounts(spec: ContainerSpec, values: Mapping[str, Any]) -> ContainerSpec:
    """The container with the flags of `mount_edit_options`: an added mount takes the place of
    one at the same path."""
    added = [parse_mount(text) for text in values["mount_add"]]
    gone = {*values["mount_rm"], *(mount.target for mount in added)}
    kept = (mount for mount in spec.mounts if mount.target not in gone)
    return replace(spec, mounts=(*kept, *added))


def parse_volume(text: str) -> MountSpec:
    """`/host:/path[:OPTIONS]`, `name:/path[:OPTIONS]` or `/path` (an anonymous volume)."""
    source, target, flags = _split(text)
    if not source:
        mount = MountSpec(target=target)
    elif source.startswith(("/", ".", "~")):
        path = os.path.abspath(os.path.expanduser(source))
        mount = MountSpec(type=MountType.BIND, source=path, target=target, create_source=True)
    else:
        mount = MountSpec(source=source, target=target)
    for flag in flags:
        mount = _with_flag(text, mount, flag)
    return mount


def _split(text: str) -> tuple[str, str, list[str]]:
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise click.BadParameter(
            f"volume {text!r} is not of the form SOURCE:TARGET[:ro], such as data:/var/lib/data"
        )
    if len(parts) == 1:
        return "", parts[0], []
    return parts[0], parts[1], parts[2].split(",") if len(parts) == 3 else []


def _with_flag(text: str, mount: MountSpec, flag: str) -> MountSpec:
    bind = mount.type is MountType.BIND
    if flag in ("ro", "readonly"):
        return replace(mount, read_only=True)
    if flag in ("rw", "z", "Z", "consistent", "cached", "delegated"):
        # SELinux labels and hints for virtual machines are accepted and ignored.
        return mount
    if flag == "nocopy" and not bind:
        return replace(mount, no_copy=True)
    if flag in PROPAGATIONS and bind:
        return replace(mount, propagation=flag)
    known = ("ro", "rw", *(PROPAGATIONS if bind else ("nocopy",)))
    raise click.BadParameter(f"volume {text!r}: option {flag!r} is not one of {', '.join(known)}")


def parse_mount(text: str) -> MountSpec:
    """`type=…,source=…,target=…` with Docker's further keys; a value with a comma is quoted as in
    CSV."""
    try:
        (fields,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError):
        raise click.BadParameter(
            f"mount {text!r} is not of the form type=volume,source=NAME,target=/path"
        ) from None
    mount = MountSpec()
    for field in fields:
        key, equals, value = field.partition("=")
        reader = _KEYS.get(key.strip().lower())
        if reader is None:
            raise click.BadParameter(f"mount {text!r} has the unknown key {key!r}")
        if not equals and key not in _SWITCHES:
            raise click.BadParameter(f"mount {text!r} needs a value for {key}")
        try:
            mount = reader(mount, value)
        except ValueError as error:
            raise click.BadParameter(f"mount {text!r}: {error}") from None
    if not mount.target:
        raise click.BadParameter(f"mount {text!r} has no target; for example target=/data")
    if mount.type is MountType.BIND and mount.source.startswith("."):
        mount = replace(mount, source=os.path.abspath(mount.source))
    return mount


def _type(mount: MountSpec, value: str) -> MountSpec:
    if value.upper() not in MountType.__members__:
        raise ValueError(f"type {value!r} is not one of bind, volume, tmpfs")
    return replace(mount, type=MountType[value.upper()])


def _set(mount: MountSpec, name: str, value: Any) -> MountSpec:
    return replace(mount, **{name: value})


def _text(name: str) -> Callable[[MountSpec, str], MountSpec]:
    return lambda mount, value: _set(mount, name, value)


def _switch(name: str) -> Callable[[MountSpec, str], MountSpec]:
    def read(mount: MountSpec, value: str) -> MountSpec:
        truth = {"": True, "1": True, "true": True, "0": False, "false": False}
        if value.lower() not in truth:
            raise ValueError(f"{value!r} is not a boolean; write true or false")
        return _set(mount, name, truth[value.lower()])

    return read


def _recursive(mount: MountSpec, value: str) -> MountSpec:
    if value not in ("enabled", "disabled"):
        raise ValueError(f"bind-recursive {value!r} is neither enabled nor disabled")
    return replace(mount, non_recursive=value == "disabled")


def _pair(name: str) -> Callable[[MountSpec, str], MountSpec]:
    def read(mount: MountSpec, value: str) -> MountSpec:
        key, _, rest = value.partition("=")
        if not key:
            raise ValueError(f"{value!r} is not of the form KEY=VALUE")
        return _set(mount, name, {**getattr(mount, name), key: rest})

    return read


def _tmpfs_size(mount: MountSpec, value: str) -> MountSpec:
    return replace(mount, tmpfs_size=parse_memory(value, "tmpfs size"))


def _tmpfs_mode(mount: MountSpec, value: str) -> MountSpec:
    try:
        return replace(mount, tmpfs_mode=int(value, 8))
    except ValueError:
        raise ValueError(f"tmpfs mode {value!r} is not an octal number, such as 1770") from None


_SWITCHES = ("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src")
_KEYS: dict[str, Callable[[MountSpec, str], MountSpec]] = {
    "type": _type,
    "source": _text("source"),
    "src": _text("source"),
    "target": _text("target"),
    "destination": _text("target"),
    "dst": _text("target"),
    "readonly": _switch("read_only"),
    "ro": _switch("read_only"),
    "consistency": lambda mount, value: mount,
    "bind-propagation": _text("propagation"),
    "bind-nonrecursive": _switch("non_recursive"),
    "bind-recursive": _recursive,
    "bind-create-src": _switch("create_source"),
    "volume-nocopy": _switch("no_copy"),
    "volume-subpath": _text("subpath"),
    "volume-driver": _text("driver"),
    "volume-opt": _pair("options"),
    "volume-label": _pair("labels"),
    "tmpfs-size": _tmpfs_size,
    "tmpfs-mode": _tmpfs_mode,
}


def _storage_size(texts: Iterable[str]) -> int:
    size = 0
    for text in texts:
        key, _, value = text.partition("=")
        if key != "size":
            raise click.BadParameter(f"unknown storage option {text!r}; use size=SIZE")
        try:
            size = parse_memory(value, "storage size")
            check_disk_size("storage size", size)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return size
