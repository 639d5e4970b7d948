# SPDX-License-Identifier: Apache-2.0
"""A program that reads the files of a container, which may change them concurrently.

One argument, JSON: `{"verb": "root", "root": …, "layers": [...], "ids": [FIRST, COUNT]}` writes a
tar of all files, `{"verb": "layer", "upper": …, "mounts": [...], "ids": …}` one of the writable
layer, and `{"verb": "changes", "upper": …, "layers": [...], "mounts": [...]}` what that changed,
each a kind and a path, with a NUL at its end; see `rootfiles`.

The program is confined to the container's files (`orchestrator.linux.confine`), so that a symbolic
link in them cannot lead it to the host's. It prints one line and exits with status 1 if it fails.

Overlay's marks are read as its documentation has them (kernel, filesystems/overlayfs.rst) and
written as a layer's whiteouts (OCI image-spec, layer.md). Files of a container with a user
namespace belong to a range of the host's ids; in a tar they have the container's ids. Standard
library only.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from orchestrator.copying import XATTR, add_entry, tar_entry
from orchestrator.linux.confine import (
    READ_ONLY,
    confine,
    limit_memory,
)
from orchestrator.linux.mounts import detached, mount_overlay, unshare_mounts

HOST_IDS = range(0)
"""Of a container with the host's users."""
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"

_CAPABILITY_V2 = 0x02000000

# Mount points that the OCI runtime creates in a root; they are no change by the container.
_MOUNT_POINTS = frozenset(
    {"dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"}
)


def changes(
    upper: Path, layers: Sequence[Path], mounts: frozenset[str] = frozenset()
) -> list[tuple[str, str]]:
    """The differences from `layers` (lowest first) as (`A`, `C` or `D`; path), by path.

    `mounts` are additional mount points, without the leading slash.
    """
    found: list[tuple[str, str]] = []
    for name, info in _walk(upper):
        below = _below(layers, name)
        if _hidden(name, mounts):
            continue
        if _is_whiteout(info):
            if below is not None:
                found.append(("D", f"/{name}"))
        else:
            found.append(("A" if below is None else "C", f"/{name}"))
    kept = {path for _, path in found}
    # /etc alone is changed by the creation of its mount points.
    return [
        (kind, path)
        for kind, path in found
        if kind == "D" or path != "/etc" or any(other.startswith("/etc/") for other in kept)
    ]


def write_layer(
    upper: Path,
    target: IO[bytes],
    mounts: frozenset[str] = frozenset(),
    ids: range = HOST_IDS,
) -> None:
    """Write a writable layer as the tar of an image's layer, with owners, links and attributes.

    `ids` are the host's ids of the container's users 0, 1, ….
    """
    inodes: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, info in _walk(upper):
            if _hidden(name, mounts):
                continue
            if _is_whiteout(info):
                folder, _, last = name.rpartition("/")
                _empty(archive, f"{folder}/{WHITEOUT}{last}".lstrip("/"))
                continue
            _add(archive, upper / name, name, info, inodes, ids)
            if stat.S_ISDIR(info.st_mode) and _attribute(upper / name, "trusted.overlay.opaque"):
                _empty(archive, f"{name}/{OPAQUE}")


def write_root(root: Path, target: IO[bytes], ids: range = HOST_IDS) -> None:
    """Write a complete mounted root as an uncompressed tar."""
    inodes: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, info in _walk(root):
            _add(archive, root / name, name, info, inodes, ids)


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The files below `root` by path, a folder before its content."""
    waiting = [iter(_listed(root, ""))]
    while waiting:
        for name in waiting[-1]:
            try:
                info = os.lstat(root / name)
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed concurrently
            yield name, info
            if stat.S_ISDIR(info.st_mode):
                waiting.append(iter(_listed(root, name)))
                break
        else:
            waiting.pop()


def _listed(root: Path, folder: str) -> list[str]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(root / folder, flags)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return [f"{folder}/{name}".lstrip("/") for name in sorted(os.listdir(descriptor))]
    finally:
        os.close(descriptor)


def _add(
    archive: tarfile.TarFile,
    path: Path,
    name: str,
    info: os.stat_result,
    inodes: dict[tuple[int, int], str],
    ids: range,
) -> None:
    member = tar_entry(str(path), name, info, inodes)
    if member is None:
        return
    member.uid, member.gid = _own(member.uid, ids), _own(member.gid, ids)
    member.pax_headers = {
        header: _own_attribute(header.removeprefix(XATTR), value, ids)
        for header, value in member.pax_headers.items()
        if not header.startswith((f"{XATTR}trusted.overlay.", f"{XATTR}user.overlay."))
    }
    # Root can open any file except a device on a mount that forbids them: the file was replaced.
    with suppress(PermissionError):
        add_entry(archive, member, str(path))


def _own(number: int, ids: range) -> int:
    return number - ids.start if number in ids else number


def _own_attribute(key: str, text: str, ids: range) -> str:
    """An attribute's value with the container's ids (linux/capability.h, posix_acl_xattr.h)."""
    value = text.encode("utf-8", "surrogateescape")
    if key == "security.capability" and len(value) == 24:
        *words, owner = struct.unpack("<6I", value)
        if owner == ids.start:
            value = struct.pack("<5I", words[0] & 0xFFFFFF | _CAPABILITY_V2, *words[1:])
    if key.startswith("system.posix_acl_") and len(value) % 8 == 4:
        entries = [
            (tag, mode, _own(n, ids)) for tag, mode, n in struct.iter_unpack("<HHI", value[4:])
        ]
        value = value[:4] + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    return value.decode("utf-8", "surrogateescape")


def _empty(archive: tarfile.TarFile, name: str) -> None:
    archive.addfile(tarfile.TarInfo(name))


def _hidden(name: str, mounts: frozenset[str]) -> bool:
    return any(name == point or name.startswith(f"{point}/") for point in (*_MOUNT_POINTS, *mounts))


def _below(layers: Sequence[Path], name: str) -> os.stat_result | None:
    """The entry of the highest layer that has this name, unless it is hidden."""
    parts = name.split("/")
    for layer in reversed(layers):
        path, hides, info = layer, False, None
        for part in parts:
            if info is not None and not stat.S_ISDIR(info.st_mode):
                # Not a folder (a link to one neither): it hides this layer and those below.
                hides = True
                break
            hides = hides or (path != layer and _attribute(path, "trusted.overlay.opaque"))
            path = path / part
            try:
                info = path.lstat()
            except FileNotFoundError:
                break
            if _is_whiteout(info):
                return None
        else:
            return info
        if hides:
            return None
    return None


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _attribute(path: Path, key: str) -> bool:
    try:
        return os.getxattr(path, key, follow_symlinks=False) == b"y"
    except OSError:
        return False


def main(argv: list[str]) -> None:
    """Serve the request."""
    limit_memory()
    try:
        _read(json.loads(argv[0]))
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        sys.exit(f"the container's files cannot be read: {(error.strerror or str(error)).lower()}")
    except MemoryError:
        sys.exit("reading the container's files exceeds the memory limit")


def _read(request: dict[str, Any]) -> None:
    output = sys.stdout.buffer
    mounts = frozenset(request.get("mounts", ()))
    first, count = request.get("ids", (0, 0))
    ids = range(first, first + count)
    match request["verb"]:
        case "root":
            root, layers = request["root"], request["layers"]
            if layers:
                unshare_mounts(receive=False)
                mount_overlay(layers, root)
            confine({"root": detached(root, READ_ONLY)})
            write_root(Path("/root"), output, ids)
        case "layer":
            confine({"upper": detached(request["upper"], READ_ONLY)})
            write_layer(Path("/upper"), output, mounts, ids)
        case "changes":
            places = {str(number): path for number, path in enumerate(request["layers"])}
            places["upper"] = request["upper"]
            confine({name: detached(path, READ_ONLY) for name, path in places.items()})
            below = [Path(f"/{number}") for number in range(len(request["layers"]))]
            for kind, path in changes(Path("/upper"), below, mounts):
                output.write(os.fsencode(kind + path) + b"\0")
    output.flush()
