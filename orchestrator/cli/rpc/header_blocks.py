# SPDX-License-Identifier: Apache-2.0
"""Header blocks of HTTP/2, as far as calls of a manager need them (HPACK, RFC 7541).

Headers are sent as literals without indexing, and received without a dynamic table, as our settings
require. Huffman-coded strings are decoded by `hpack`, imported when there is one: gRPC's core sends
none, but proxies do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_STATUS_INDEX = {8: "200", 9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}
"""The entries of the static table (RFC 7541, appendix A) with the name `:status`."""
_STATIC_SIZE = 61


class BadHeaders(ValueError):
    """A header block that cannot be read."""


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """A header block of ASCII fields."""
    block = bytearray()
    for field in fields:
        block.append(0)
        for text in field:
            data = text.encode("ascii")
            block += _integer(len(data), 7) + data
    return bytes(block)


def _integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    out = bytearray((most,))
    value -= most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(block: bytes) -> Mapping[str, str]:
    """The fields of a header block with literal names and values, and `:status`. Raises
    BadHeaders."""
    reader = _Reader(block)
    fields: dict[str, str] = {}
    while reader.more():
        first = reader.peek()
        if first & 0x80:
            index = reader.integer(7)
            _check(index)
            if index in _STATUS_INDEX:
                fields[":status"] = _STATUS_INDEX[index]
        elif first & 0xE0 == 0x20:
            reader.integer(5)  # a dynamic table size, which we do not use
        else:
            index = reader.integer(6 if first & 0x40 else 4)
            if index:
                _check(index)
                name: str | None = ":status" if index in _STATUS_INDEX else None
            else:
                name = reader.string()
            value = reader.string()
            if name is not None:
                fields[name] = value
    return fields


def _check(index: int) -> None:
    if not 0 < index <= _STATIC_SIZE:
        raise BadHeaders(
            f"a header refers to entry {index} of a dynamic table that our settings disabled"
        )


def _huffman(data: bytes) -> bytes:
    """Decode RFC 7541, appendix B. Raises BadHeaders."""
    from hpack import HPACKDecodingError
    from hpack.huffman_table import decode_huffman

    try:
        return bytes(decode_huffman(data))
    except HPACKDecodingError as error:
        raise BadHeaders(f"a header is not valid Huffman code: {error}") from None


class _Reader:
    """A header block, read from its beginning. Raises BadHeaders where it is cut off."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._at = 0

    def more(self) -> bool:
        return self._at < len(self._block)

    def peek(self) -> int:
        if not self.more():
            raise BadHeaders("a header block is cut off")
        return self._block[self._at]

    def integer(self, bits: int) -> int:
        most = (1 << bits) - 1
        value = self._byte() & most
        if value < most:
            return value
        shift = 0
        while True:
            byte = self._byte()
            value += (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 28:
                raise BadHeaders("a header block has a number that is too large")

    def string(self) -> str:
        coded = self.peek() & 0x80
        length = self.integer(7)
        data = self._block[self._at : self._at + length]
        if len(data) < length:
            raise BadHeaders("a header block is cut off")
        self._at += length
        return (_huffman(data) if coded else data).decode("latin-1")

    def _byte(self) -> int:
        byte = self.peek()
        self._at += 1
        return byte
