"""Folders and files of the node, and tmpfs, as mounts of a container."""

from __future__ import annotations

import asyncio
import os

from orchestrator.agent.runtime.interface import Mount
from orchestrator.agent.volumes.errors import VolumeError
from orchestrator.linux import spawn
from orchestrator.model.mounts import MountSpec

_LOOK_TIMEOUT = 5.0
"""Seconds that a look at a path may take: it may be on a file server that is away."""


def tmpfs(spec: MountSpec) -> Mount:
    """A tmpfs; as in Docker without set-user-id programs and devices."""
    options = [f"mode={spec.tmpfs_mode or 0o1777:o}"]
    if spec.tmpfs_size:
        options.append(f"size={spec.tmpfs_size}")
    return Mount(spec.target, read_only=spec.read_only, tmpfs=("noexec", *options))


async def bind(spec: MountSpec, hostname: str) -> Mount:
    """A folder or file of the node. Raises VolumeError when it is not there and not to be made,
    or when mounts cannot travel as asked."""
    source = spec.source
    if not await _succeeds("test", "-e", source):
        if not spec.create_source:
            raise VolumeError(f"bind source path {source} does not exist on {hostname}")
        if not await _succeeds("mkdir", "-p", "--", source):
            raise VolumeError(f"bind source path {source} cannot be made on {hostname}")
    # The runtime makes a mount point of the kind that the source is, and knows none for a link.
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
        async with asyncio.timeout(_LOOK_TIMEOUT):
            return (await spawn.run(argv))[0] == 0
    except TimeoutError:
        raise VolumeError(f"{argv[-1]} does not answer on this node") from None


def _check_propagation(wanted: str, source: str) -> None:
    """Docker's rule: mounts travel only where the node's own mount lets them."""
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
