# SPDX-License-Identifier: Apache-2.0
"""Bind mounts and tmpfs of a container: folders and files of the node, and folders of volumes.

The runtime binds by path, and a path through a volume may lead anywhere once a container replaces a
folder by a symbolic link. So a folder of a volume is first mounted safely at `CONTAINER/HASH` in a
private folder of the agent, which no container can reach, and the container gets that mount. The
hash is that of the target, so that a restarted agent finds the mount.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import posixpath
from pathlib import Path

from orchestrator.agent.runtime.interface import Mount
from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.daemon import bareprogram
from orchestrator.linux import spawn
from orchestrator.linux.mounts import unmount
from orchestrator.model.mounts import MountSpec

_PROBE_TIMEOUT = 5.0
"""Timeout of access to a path, which may be on an unreachable file server, in seconds."""


def tmpfs(spec: MountSpec) -> Mount:
    """A tmpfs; as in Docker without set-user-id programs and devices."""
    options = [f"mode={spec.tmpfs_mode or 0o1777:o}"]
    if spec.tmpfs_size:
        options.append(f"size={spec.tmpfs_size}")
    return Mount(spec.target, read_only=spec.read_only, tmpfs=("noexec", *options))


async def bind(spec: MountSpec, hostname: str) -> Mount:
    """A folder or file of the node. Raises VolumeError when it does not exist and must not be
    created, or when its mount does not support the requested propagation."""
    source = spec.source
    if not await _succeeds("test", "-e", source):
        if not spec.create_source:
            raise VolumeError(f"bind source path {source} does not exist on {hostname}")
        if not await _succeeds("mkdir", "-p", "--", source):
            raise VolumeError(f"bind source path {source} cannot be created on {hostname}")
    # The runtime makes a mount point of the source's type, which must not be a symbolic link.
    source = await asyncio.to_thread(os.path.realpath, source)
    if spec.propagation.lstrip("r") in ("shared", "slave"):
        _check_propagation(spec.propagation, source)
    return Mount(
        target=spec.target,
        source=source,
        read_only=spec.read_only,
        propagation=spec.propagation,
        recursive=not spec.non_recursive,
    )


async def _succeeds(*argv: str) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            return (await spawn.run(argv))[0] == 0
    except TimeoutError:
        raise VolumeError(f"{argv[-1]} does not answer on this node") from None


def _check_propagation(wanted: str, source: str) -> None:
    """As in Docker, mounts propagate only as the node's own mount permits."""
    source = os.path.realpath(source)
    mount, tags = "", ""
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            point, optional = fields[4], " ".join(fields[6 : fields.index("-")])
            inside = point == "/" or source == point or source.startswith(f"{point}/")
            if inside and len(point) >= len(mount):
                mount, tags = point, optional
    allowed = ("shared:",) if wanted.endswith("shared") else ("shared:", "master:")
    if not any(tag in tags for tag in allowed):
        kind = "a shared" if wanted.endswith("shared") else "a shared or slave"
        raise VolumeError(f"path {source} is mounted on {mount}, which is not {kind} mount")


_COMMAND = bareprogram.command("orchestrator.linux.submount")
_TIMEOUT = 10.0
"""Timeout of access to a volume, which may be on an unreachable file server, in seconds."""


async def ensure_subpath(places: Path, container_id: str, spec: MountSpec, data: Path) -> Path:
    """Mount the subpath of a volume, whose files are at `data`, for a container; return where.

    The subpath is resolved each time. Raises VolumeError.
    """
    name = hashlib.sha256(posixpath.normpath(spec.target).encode()).hexdigest()[:16]
    place = places / container_id / name
    place.parent.mkdir(mode=0o711, exist_ok=True)
    place.mkdir(mode=0o711, exist_ok=True)
    _unmount_all(place)
    try:
        async with asyncio.timeout(_TIMEOUT):
            status, stderr = await spawn.run([*_COMMAND, str(data), spec.subpath, str(place)])
    except TimeoutError:
        raise VolumeError(f"volume {spec.source} does not answer on this node") from None
    if status != 0:
        raise VolumeError(_refusal(spec, int(stderr) if stderr.isdecimal() else 0, stderr))
    return place


def ensure_no_subpaths(places: Path, container_id: str) -> None:
    """Unmount all subpaths of a container, if it has any. Raises VolumeError."""
    folder = places / container_id
    try:
        for place in list(folder.iterdir()):
            _unmount_all(place)
            place.rmdir()
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise VolumeError(
            f"a folder of a volume cannot be unmounted: {(error.strerror or '').lower()}"
        ) from error


def _unmount_all(place: Path) -> None:
    while True:
        try:
            unmount(place)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return


def _refusal(spec: MountSpec, code: int, stderr: str) -> str:
    name, path = spec.source, spec.subpath
    if code in (errno.ENOENT, errno.ENOTDIR):
        return f"volume {name} has no folder {path!r}; create it before it is mounted"
    if code == errno.EXDEV:
        return f"folder {path!r} of volume {name} is a symbolic link to outside of the volume"
    reason = os.strerror(code).lower() if code else stderr
    return f"folder {path!r} of volume {name} cannot be mounted: {reason}"
