# SPDX-License-Identifier: Apache-2.0
"""Devices of the node in a container."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.isolation.idranges import SIZE, IdRange
from orchestrator.model.formats.cdi_names import is_cdi
from orchestrator.model.specs import ContainerSpec
from orchestrator.model.validation.confinement import parse_device

_DEV = Path("/dev")
_CONTAINERS_OWN = frozenset({"pts", "shm", "mqueue", "fd", "console", "ptmx", "hugepages"})
"""Entries of /dev that every container has of its own."""


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device of the host and its path in the container."""

    path: str
    kind: str
    """`c` or `b`."""
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str = "rwm"
    source: str = ""
    """A device node to bind mount, for a container with a user namespace; else empty."""

    @property
    def rule(self) -> dict[str, Any]:
        """The rule of the device cgroup (config-linux.md, "Allowed Device list")."""
        return {
            "allow": True,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "access": self.access,
        }

    @property
    def node(self) -> dict[str, Any]:
        """The node that the OCI runtime makes (config-linux.md, "Devices")."""
        return {
            "path": self.path,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "fileMode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        }


def find_devices(spec: ContainerSpec) -> tuple[DeviceNode, ...]:
    """The devices that a container requests; all of the host's when it is privileged.

    A folder means all devices in it. Raises RuntimeFailure for a path that is no device.
    """
    found: dict[str, DeviceNode] = {}
    if spec.privileged:
        for path in _nodes(_DEV):
            device = find_device(path, str(path), "rwm")
            found[device.path] = device
    for text in spec.devices:
        if is_cdi(text):
            continue  # see `cdi`
        asked = parse_device(text)
        host = Path(asked.host)
        if host.is_dir():
            for path in _nodes(host):
                name = f"{asked.container}/{path.relative_to(host)}"
                found[name] = find_device(path, name, asked.access)
        else:
            found[asked.container] = find_device(host, asked.container, asked.access)
    return tuple(found.values())


def _nodes(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink() or (folder == _DEV and entry.name in _CONTAINERS_OWN):
            continue
        if entry.is_dir():
            yield from _nodes(Path(entry.path))
        elif stat.S_IFMT(entry.stat().st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
            yield Path(entry.path)


def find_device(host: Path, path: str, access: str) -> DeviceNode:
    """A device of the host, at `path` in a container. Raises RuntimeFailure."""
    try:
        about = host.stat()
    except OSError as error:
        raise RuntimeFailure(f"this node has no device {host} ({error.strerror})") from error
    if stat.S_ISCHR(about.st_mode):
        kind = "c"
    elif stat.S_ISBLK(about.st_mode):
        kind = "b"
    else:
        raise RuntimeFailure(f"{host} on this node is not a device")
    return DeviceNode(
        path,
        kind,
        os.major(about.st_rdev),
        os.minor(about.st_rdev),
        stat.S_IMODE(about.st_mode),
        about.st_uid,
        about.st_gid,
        access,
    )


def make_nodes(
    devices: tuple[DeviceNode, ...], folder: Path, ids: IdRange
) -> tuple[DeviceNode, ...]:
    """Make device nodes in `folder` to bind mount into a container with a user namespace, with
    their owners mapped to its id range: it cannot make devices itself, and the owners of the host's
    are unmapped there. Raises OSError.
    """
    folder.mkdir(exist_ok=True, mode=0o700)
    made = []
    for number, device in enumerate(devices):
        path = folder / str(number)
        path.unlink(missing_ok=True)
        kind = stat.S_IFCHR if device.kind == "c" else stat.S_IFBLK
        os.mknod(path, kind | 0o600, os.makedev(device.major, device.minor))
        os.chown(path, _inside(device.uid, ids), _inside(device.gid, ids))
        path.chmod(device.mode)
        made.append(
            DeviceNode(
                device.path,
                device.kind,
                device.major,
                device.minor,
                device.mode,
                device.uid,
                device.gid,
                device.access,
                str(path),
            )
        )
    return tuple(made)


def _inside(number: int, ids: IdRange) -> int:
    return ids.first + (number if number < SIZE else 0)
