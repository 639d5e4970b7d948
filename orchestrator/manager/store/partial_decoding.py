# SPDX-License-Identifier: Apache-2.0
"""The readable fields of a damaged protobuf message.

The wire format (protobuf.dev, "Encoding") is a sequence of fields, each with its number and kind,
so everything before the damage is readable.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def leading_fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and raw value of each field, up to the first damaged one."""
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            kind = tag & 7
            if kind == _VARINT:
                _, end = _varint(data, at)
            elif kind == _BYTES:
                size, at = _varint(data, at)
                end = at + size
            elif kind in (_FIXED64, _FIXED32):
                end = at + (8 if kind == _FIXED64 else 4)
            else:
                return
            if not tag >> 3 or end > len(data):
                return
            yield tag >> 3, data[at:end]
            at = end
    except IndexError:
        return


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at
