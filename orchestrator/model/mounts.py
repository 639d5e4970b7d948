# SPDX-License-Identifier: Apache-2.0
"""Mounts of a container, and the names of volumes, which may differ from task to task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from orchestrator.model.extensible import Extensible

LOCAL_DRIVER = "local"
"""The volume driver of every node: a folder of its own, or a file system for `mount`."""

PROPAGATIONS = ("rprivate", "private", "rslave", "slave", "rshared", "shared")
"""Propagation of later mounts between host and container; see mount_namespaces(7)."""

_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}")
_PLACEHOLDER = re.compile(r"\{\{\s*\.(\w+\.\w+)\s*\}\}")

TEMPLATE_FIELDS = (
    "Task.Slot",
    "Task.ID",
    "Task.Name",
    "Service.ID",
    "Service.Name",
    "Node.ID",
    "Node.Hostname",
)
"""Placeholders in a name, such as `data-{{.Task.Slot}}`."""


class MountType(IntEnum):
    """What is mounted."""

    VOLUME = 0
    BIND = 1
    TMPFS = 2


@dataclass(frozen=True, slots=True)
class MountSpec(Extensible):
    """One mount of a container, as given by `--mount` and `--volume`."""

    type: MountType = MountType.VOLUME
    source: str = ""
    """A volume's name (empty: one without a name that goes with its container), a folder or file
    of the node for a bind; nothing for a tmpfs."""
    target: str = ""
    """Absolute path in the container."""
    read_only: bool = False
    propagation: str = ""
    """One of PROPAGATIONS; empty: rprivate."""
    non_recursive: bool = False
    """A bind excludes mounts below its source."""
    create_source: bool = False
    """A missing source of a bind is created as a folder."""
    no_copy: bool = False
    """A new volume stays empty, instead of being filled from the image's folder."""
    driver: str = ""
    """Of a volume that does not exist yet; empty: local."""
    options: dict[str, str] = field(default_factory=dict)
    """For that driver."""
    labels: dict[str, str] = field(default_factory=dict)
    """Of a volume that does not exist yet."""
    tmpfs_size: int = 0
    """Bytes; 0: the kernel's default, half of the memory."""
    tmpfs_mode: int = 0
    """Permission bits; 0: 1777 in octal."""
    subpath: str = ""
    """The folder of a volume that is mounted, relative to its root; empty: all of it."""


def check_volume_name(text: str) -> None:
    """Raise ValueError for an invalid volume name."""
    if not _VOLUME_NAME.fullmatch(text):
        raise ValueError(
            f"volume name {text!r} is not valid; use 2 to 128 letters, digits, '_', '.' and '-', "
            "with a letter or digit first (a folder of the node is written with a leading '/')"
        )


def check_template(text: str) -> None:
    """Raise ValueError for unknown placeholders in a volume's name."""
    example = dict.fromkeys(TEMPLATE_FIELDS, "1")
    check_volume_name(expand(text, example))


def expand(text: str, fields: Mapping[str, str]) -> str:
    """`text` with each `{{.Task.Slot}}` and the like replaced. Raises ValueError for a field that
    is not in `fields`."""

    def value(match: re.Match[str]) -> str:
        try:
            return fields[match[1]]
        except KeyError:
            raise ValueError(
                f"{match[0]} in {text!r} is not known; known are "
                + ", ".join("{{." + name + "}}" for name in TEMPLATE_FIELDS)
            ) from None

    return _PLACEHOLDER.sub(value, text)


def depends_on_node(text: str) -> bool:
    """Whether a name depends on the task's node."""
    return any(match[1].startswith("Node.") for match in _PLACEHOLDER.finditer(text))
