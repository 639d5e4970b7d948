"""Folders inside of volumes, each mounted at a place that no container can reach.

The runtime binds by path, and a path through a volume may lead anywhere once a container that has
the volume puts a link in it. So the folder is mounted first, safely, at `CONTAINER/PLACE` in a
folder of the agent's own, and that is what the container gets. The place follows from the
container and its target, so that what a kill leaves is found again.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import posixpath
from pathlib import Path

from orchestrator.agent.volumes.errors import VolumeError
from orchestrator.daemon import bareprogram
from orchestrator.linux import spawn
from orchestrator.linux.mounts import unmount
from orchestrator.model.mounts import MountSpec

_COMMAND = bareprogram.command("orchestrator.linux.submount")
_TIMEOUT = 10.0
"""Seconds that a look into a volume may take: it may be on a file server that is away."""


async def ensure_mounted(places: Path, container_id: str, spec: MountSpec, data: Path) -> Path:
    """Mount the subpath of a volume, whose files are at `data`, for a container; where.

    It is looked up anew each time. Raises VolumeError.
    """
    name = hashlib.sha256(posixpath.normpath(spec.target).encode()).hexdigest()[:16]
    place = places / container_id / name
    place.parent.mkdir(mode=0o711, exist_ok=True)
    place.mkdir(mode=0o711, exist_ok=True)
    _unmount_all(place)
    try:
        async with asyncio.timeout(_TIMEOUT):
            status, said = await spawn.run([*_COMMAND, str(data), spec.subpath, str(place)])
    except TimeoutError:
        raise VolumeError(f"volume {spec.source} does not answer on this node") from None
    if status != 0:
        raise VolumeError(_refusal(spec, int(said) if said.isdecimal() else 0, said))
    return place


def ensure_unmounted(places: Path, container_id: str) -> None:
    """Unmount all that a container had of it; fine when it had nothing. Raises VolumeError."""
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


def _refusal(spec: MountSpec, code: int, said: str) -> str:
    name, path = spec.source, spec.subpath
    if code in (errno.ENOENT, errno.ENOTDIR):
        return f"volume {name} has no folder {path!r}; make it before it is mounted"
    if code == errno.EXDEV:
        return f"folder {path!r} of volume {name} is a link that leads out of the volume"
    reason = os.strerror(code).lower() if code else said
    return f"folder {path!r} of volume {name} cannot be mounted: {reason}"
