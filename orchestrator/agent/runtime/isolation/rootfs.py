# SPDX-License-Identifier: Apache-2.0
"""A container's root file system: an overlay of its image's layers, or the node's own files.

An overlay has shared read-only layers below and a writable layer of the container's own on top.
An idmapped mount shows each file with the owner that a user namespace's mapping makes of the one
on disk, so that shared layers, with root's files in them, belong to the root of each container;
what the container writes has, on disk, the owner that the container sees (mount_setattr(2)).

The node's own files are mounted read-only, each file system on a disk one by one; `/proc`, `/sys`,
`/dev`, `/run` and `/tmp` are left empty, so that a container reaches neither sockets of the host's
daemons nor other containers' roots.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.isolation.idranges import IdRange
from orchestrator.linux import libc
from orchestrator.linux.mounts import attach, idmapped, mount_read_only, unmount


@contextmanager
def as_root_of(ids: IdRange) -> Iterator[None]:
    """Let the calling thread create files as a container's root; it keeps its capabilities.

    The host's root has no id in a mount that is mapped to a container's, so it cannot create files
    there. Overlay does its own work with the credentials of the mounting thread.
    """
    bits = libc.prctl(libc.PR_GET_SECUREBITS)
    libc.prctl(libc.PR_SET_SECUREBITS, bits | libc.SECBIT_NO_SETUID_FIXUP)
    try:
        user = libc.setfsuid(ids.first)
        group = libc.setfsgid(ids.first)
        try:
            yield
        finally:
            libc.setfsuid(user)
            libc.setfsgid(group)
    finally:
        libc.prctl(libc.PR_SET_SECUREBITS, bits)


MOUNT_DATA_LIMIT = 4095
"""Maximum bytes of mount(2) options: a page, with the final zero."""

_SPECIAL = frozenset('\\,:"')


@dataclass(frozen=True, slots=True)
class Owners:
    """The owners of a root's files, as mapped from those on disk."""

    ids: IdRange
    userns: int
    """A descriptor of a user namespace with this range."""


def mount_image_root(
    layers: Sequence[Path],
    upper: Path,
    work: Path,
    target: Path,
    owners: Owners | None = None,
    *,
    maps: Path,
    keep: bool = False,
) -> None:
    """Mount an overlay root; `layers` are the lowest first. All folders exist. `target` and `maps`
    are empty, and nothing is mounted at `maps` when this returns or raises.

    With `owners`, files on disk, of the layers and of the writable layer, have the ids that the
    container sees, and idmapped mounts translate them to its range: layers stay shared, and a
    writable layer can be used with another range later. Those mounts are attached at `maps`
    temporarily: before Linux 6.15, an overlay accepts no detached mount.

    The mount is `volatile`: the upper layer is deleted with the container, so neither a
    container's fsync nor the unmount flushes the disk's cache. With `keep` the layer outlives the
    mount, and fsync has its usual effect.

    Raises RuntimeFailure.
    """
    layers = layers or (target,)
    with ExitStack() as opened:
        if owners is not None:
            opened.callback(ensure_unmounted, maps)
            lower = _through_descriptors(layers, opened, partial(_mapped, owners, maps, True))
            writable = f"/proc/self/fd/{_mapped(owners, maps, False, upper.parent, opened)}"
            folders = f"upperdir={writable}/{upper.name},workdir={writable}/{work.name}"
            opened.enter_context(as_root_of(owners.ids))
        else:
            lower = _plain(layers, upper, work) or _through_descriptors(layers, opened)
            folders = f"upperdir={upper},workdir={work}"
        data = f"lowerdir={lower},{folders}"
        if not keep:
            data += ",volatile"
        if len(os.fsencode(data)) > MOUNT_DATA_LIMIT:
            raise RuntimeFailure(f"the image has too many layers ({len(layers)})")
        try:
            libc.mount("overlay", target, "overlay", 0, data)
        except OSError as error:
            raise RuntimeFailure(_explain(error)) from error


def mount_layers(layers: Sequence[Path], target: Path) -> None:
    """Mount at least one layer read-only, the lowest first, at an empty folder.

    Raises RuntimeFailure.
    """
    if len(layers) == 1:
        # Read-only overlays have two layers or more, and a layer alone would show its whiteouts.
        layers = (target, *layers)
    with ExitStack() as opened:
        lower = _plain(layers) or _through_descriptors(layers, opened)
        try:
            libc.mount("overlay", target, "overlay", libc.MS_RDONLY, f"lowerdir={lower}")
        except OSError as error:
            raise RuntimeFailure(_explain(error)) from error


def _plain(layers: Sequence[Path], *others: Path) -> str | None:
    """The layers as the option `lowerdir`; None when that is too long, together with the `others`,
    or would need quoting."""
    lower = ":".join(str(layer) for layer in reversed(layers))
    room = MOUNT_DATA_LIMIT - sum(len(os.fsencode(path)) for path in others) - 64
    if len(os.fsencode(lower)) > room or any(_SPECIAL & set(str(path)) for path in layers):
        return None
    return lower


def _open(layer: Path, opened: ExitStack) -> int:
    fd = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd


def _through_descriptors(
    layers: Sequence[Path], opened: ExitStack, open_one: Callable[[Path, ExitStack], int] = _open
) -> str:
    """The layers by open descriptors, whose names are short for any length of path."""
    names: list[str] = []
    for layer in reversed(layers):
        try:
            fd = open_one(layer, opened)
        except FileNotFoundError as error:
            raise RuntimeFailure(
                f"the image's layer {layer.name} is not on this node any more"
            ) from error
        names.append(f"/proc/self/fd/{fd}")
    return ":".join(names)


def _mapped(owners: Owners, maps: Path, read_only: bool, folder: Path, opened: ExitStack) -> int:
    """An idmapped mount of a folder, attached on top at `maps`."""
    try:
        fd = idmapped(folder, owners.userns, read_only=read_only)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RuntimeFailure(
            f"the file system of {folder} cannot show files to other users ({error.strerror}); "
            "use --userns host, or a newer kernel"
        ) from error
    opened.callback(os.close, fd)
    try:
        attach(fd, maps)
    except OSError as error:
        raise RuntimeFailure(f"nothing can be mounted at {maps} ({error.strerror})") from error
    return fd


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "a layer of the image is not on this node any more"
    if error.errno == errno.ENODEV:
        return "this kernel has no overlay file system; load it with `modprobe overlay`"
    return f"the container's root cannot be mounted ({error.strerror})"


def ensure_unmounted(target: Path) -> None:
    """Unmount everything at `target`, also stacked mounts. Succeeds when there is none."""
    while True:
        try:
            unmount(target)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            raise RuntimeFailure(
                f"the container's root cannot be unmounted ({error.strerror})"
            ) from error


OWN = tuple(map(Path, ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/run", "/var/tmp")))
"""Mount points of which every container has its own."""
SECRET = tuple(map(Path, ("/var/lib/orc", "/var/lib/orc-dev", "/etc/orc")))
"""Default folders of keys and state of this cluster's daemons."""


def mount_host_root(target: Path, hidden: Sequence[Path]) -> None:
    """Mount the node's own files at `target`, without mounts below `hidden`.

    Raises RuntimeFailure.
    """
    text = Path("/proc/thread-self/mountinfo").read_text()
    for place in mount_points(text, (*OWN, *SECRET, *hidden)):
        try:
            mount_read_only(place, target / place.relative_to("/"))
        except FileNotFoundError:
            # Unmounted concurrently, or hidden by a mount above it.
            continue
        except OSError as error:
            raise RuntimeFailure(
                f"the node's {place} cannot be shown to a container ({error.strerror})"
            ) from error


def mount_points(mountinfo: str, without: Sequence[Path]) -> list[Path]:
    """Mount points of `/proc/self/mountinfo` (proc(5)) that are not below `without`, parents
    first, each once."""
    found: dict[Path, None] = {}
    for line in mountinfo.splitlines():
        raw = line.split(" ")[4]
        place = Path(raw.encode().decode("unicode_escape")) if "\\" in raw else Path(raw)
        if not any(place.is_relative_to(folder) for folder in without):
            found[place] = None
    return sorted(found, key=lambda place: len(place.parts))


def masked(hidden: Sequence[Path]) -> list[str]:
    """The existing secret folders, which must be masked."""
    return sorted({str(folder) for folder in (*SECRET, *hidden) if os.path.isdir(folder)})
