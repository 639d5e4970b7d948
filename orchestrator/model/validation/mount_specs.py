# SPDX-License-Identifier: Apache-2.0
"""Validation of mounts and volume options. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from orchestrator.model.mounts import (
    LOCAL_DRIVER,
    PROPAGATIONS,
    MountSpec,
    MountType,
    check_template,
)
from orchestrator.model.specs import ContainerSpec
from orchestrator.model.units import format_memory, parse_memory

MIN_DISK = 1 << 20
"""Minimum bytes of a file system of its own."""

_LOCAL_OPTIONS = ("type", "device", "o", "size")


def check_mounts(spec: ContainerSpec) -> None:
    """Raise ValueError for mounts that are invalid regardless of the cluster."""
    targets: set[str] = set()
    for mount in spec.mounts:
        _check_mount(mount)
        target = posixpath.normpath(mount.target)
        if target in targets:
            raise ValueError(f"two mounts have the target {target}; each path can be one thing")
        targets.add(target)
    for text in spec.volumes_from:
        split_volumes_from(text)
    if spec.storage_size:
        check_disk_size("storage size", spec.storage_size)


def split_volumes_from(text: str) -> tuple[str, bool]:
    """Container and "read-only" of `NAME[:ro|:rw]`."""
    name, _, mode = text.partition(":")
    if not name or mode not in ("", "ro", "rw"):
        raise ValueError(f"volumes from {text!r} is not of the form CONTAINER[:ro|:rw]")
    return name, mode == "ro"


def check_driver_options(driver: str, options: Mapping[str, str]) -> None:
    """Raise ValueError for options unknown to the local driver; a plugin checks its own."""
    if driver not in ("", LOCAL_DRIVER):
        return
    for key in options:
        if key not in _LOCAL_OPTIONS:
            raise ValueError(
                f"the local volume driver has no option {key!r}; it has {', '.join(_LOCAL_OPTIONS)}"
            )
    kind, device = options.get("type", ""), options.get("device", "")
    if "size" in options:
        check_disk_size("volume size", parse_memory(options["size"], "volume size"))
        if kind or device:
            raise ValueError("a volume's 'size' cannot be combined with 'type' or 'device'")
    elif (kind or "o" in options) and not device:
        raise ValueError("a volume with 'type' or 'o' needs 'device' too, as mount(8) has them")
    elif device and not kind:
        flags = options.get("o", "").split(",")
        if "bind" not in flags and "rbind" not in flags:
            raise ValueError("a volume with 'device' needs 'type' too, or 'bind' in 'o'")


def check_disk_size(what: str, size: int) -> None:
    """Raise ValueError for a size that no file system can have."""
    if size < MIN_DISK:
        shown = format_memory(size) if size > 0 else str(size)
        raise ValueError(f"{what} {shown} must be at least {format_memory(MIN_DISK)}")


def _check_mount(mount: MountSpec) -> None:
    target = mount.target
    if not target:
        raise ValueError("a mount has no target; write such as target=/data")
    if not target.startswith("/") or "\0" in target:
        raise ValueError(f"mount target {target!r} is not an absolute path; begin with '/'")
    if posixpath.normpath(target) in ("/", "//"):
        raise ValueError("a mount's target cannot be '/', which is the container's root")
    match mount.type:
        case MountType.BIND:
            _check_bind(mount)
        case MountType.VOLUME:
            _check_volume(mount)
        case MountType.TMPFS:
            _check_tmpfs(mount)


def _check_bind(mount: MountSpec) -> None:
    if not mount.source.startswith("/") or "\0" in mount.source:
        raise ValueError(
            f"bind source {mount.source!r} is not an absolute path of the node; begin with '/'"
        )
    if mount.propagation and mount.propagation not in PROPAGATIONS:
        raise ValueError(
            f"bind propagation {mount.propagation!r} is not one of {', '.join(PROPAGATIONS)}"
        )
    if mount.driver or mount.options or mount.labels or mount.no_copy or mount.subpath:
        raise ValueError(f"bind mount of {mount.source} has options that only volumes have")


def _check_volume(mount: MountSpec) -> None:
    if mount.propagation or mount.non_recursive or mount.create_source:
        raise ValueError(f"volume mount at {mount.target} has options that only binds have")
    if mount.source:
        check_template(mount.source)
    if mount.subpath:
        _check_subpath(mount)
    check_driver_options(mount.driver, mount.options)


def _check_subpath(mount: MountSpec) -> None:
    path = mount.subpath
    if not mount.source:
        raise ValueError(f"volume subpath {path!r} needs a volume with a name; add source=NAME")
    outside = posixpath.normpath(path).split("/")[0] == ".."
    if path.startswith("/") or outside or "\0" in path:
        raise ValueError(f"volume subpath {path!r} is not a path inside of the volume, such as a/b")


def _check_tmpfs(mount: MountSpec) -> None:
    if mount.source:
        raise ValueError(f"the tmpfs at {mount.target} takes no source")
    if mount.subpath:
        raise ValueError(f"the tmpfs at {mount.target} has options that only volumes have")
    if mount.tmpfs_size < 0:
        raise ValueError(f"tmpfs size {mount.tmpfs_size} is negative")
    if not 0 <= mount.tmpfs_mode <= 0o7777:
        raise ValueError(f"tmpfs mode {mount.tmpfs_mode:o} is not one of permission bits")
