# SPDX-License-Identifier: Apache-2.0
"""The base class of dataclasses that are stored or sent as protobuf messages."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extensible:
    """Keeps the fields that a newer version wrote and this one does not know.

    They survive decoding, `dataclasses.replace` and encoding, so that an older manager can change
    an object during a rolling upgrade without losing data.
    """

    unknown_fields: bytes = dataclasses.field(default=b"", repr=False)
    """Serialized as protobuf; empty for nearly all objects."""


def is_known(member: enum.IntEnum) -> bool:
    """Whether this version knows an enum's member that was read (`convert.recognized`)."""
    return member.name in type(member).__members__


def known_fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    """The dataclass fields that have a meaning in this version, in the order of the message."""
    return tuple(each for each in dataclasses.fields(cls) if each.name != "unknown_fields")
