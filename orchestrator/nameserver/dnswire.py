# SPDX-License-Identifier: Apache-2.0
"""DNS messages (RFC 1035, EDNS of RFC 6891, SRV of RFC 2782) for a server of a few
record types. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct("!HHHHHH")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_SERVICE = struct.Struct("!HHH")

RESPONSE, OPCODE, AUTHORITATIVE, TRUNCATED = 0x8000, 0x7800, 0x0400, 0x0200
RECURSION_DESIRED, RECURSION_AVAILABLE, CHECKING_DISABLED = 0x0100, 0x0080, 0x0010
IN, ANY_CLASS = 1, 255

PLAIN_SIZE = 512
"""Bytes of a UDP message without EDNS."""
LARGEST_DATAGRAM = 1232
"""Largest UDP message that is sent, in bytes: no fragments on any path (DNS flag day 2020)."""
_POINTER_TO_QUESTION = b"\xc0\x0c"


class Type(IntEnum):
    """Supported record types."""

    A = 1
    PTR = 12
    AAAA = 28
    SRV = 33
    OPT = 41
    ANY = 255


class ResponseCode(IntEnum):
    """Response codes (RFC 1035, 4.1.1)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


class MalformedQuery(Exception):
    """A message that cannot be answered; `code` is that of the error response."""

    def __init__(self, code: ResponseCode) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass(frozen=True, slots=True)
class Question:
    """The question of a query."""

    name: str
    """In lower case, no final dot; the root is empty."""
    type: int
    text: bytes
    """The question section, as received."""
    flags: int
    size: int
    """Largest UDP message that the client accepts, in bytes."""
    extended: bool
    """The client uses EDNS, and so must the answer."""


@dataclass(frozen=True, slots=True)
class Service:
    """The data of a SRV record."""

    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Record:
    """A record of an answer; an empty `name` is that of the question."""

    type: Type
    data: bytes
    name: str = ""


def read_question(message: bytes) -> Question:
    """Decode a query with one question. Raises Malformed."""
    if len(message) < HEADER.size:
        raise MalformedQuery(ResponseCode.FORMERR)
    _, flags, questions, answers, authorities, additional = HEADER.unpack_from(message)
    if flags & RESPONSE:
        raise MalformedQuery(ResponseCode.FORMERR)
    if flags & OPCODE:
        raise MalformedQuery(ResponseCode.NOTIMP)
    if questions != 1 or answers or authorities or additional > 2:
        raise MalformedQuery(ResponseCode.FORMERR)
    try:
        name, end = _read_name(message, HEADER.size)
        type_, class_ = _QUESTION.unpack_from(message, end)
        end += _QUESTION.size
        size = _extended_size(message, end, additional)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise MalformedQuery(ResponseCode.FORMERR) from error
    if class_ not in (IN, ANY_CLASS):
        raise MalformedQuery(ResponseCode.NOTIMP)
    return Question(
        name=name,
        type=type_,
        text=message[HEADER.size : end],
        flags=flags,
        size=min(max(size or PLAIN_SIZE, PLAIN_SIZE), LARGEST_DATAGRAM),
        extended=size is not None,
    )


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    """An uncompressed name, and the offset of its end."""
    start, labels = at, []
    while length := message[at]:
        if length > 63 or at - start > 253:
            raise MalformedQuery(ResponseCode.FORMERR)
        labels.append(message[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
    return ".".join(labels), at + 1


def _extended_size(message: bytes, at: int, records: int) -> int | None:
    """The UDP size of an OPT record; None without one."""
    for _ in range(records):
        _, at = _read_name(message, at)
        type_, class_, _, length = _RECORD.unpack_from(message, at)
        if type_ == Type.OPT:
            return int(class_)
        at += _RECORD.size + length
    return None


def write_name(name: str) -> bytes:
    """Encode a name without compression. Raises ValueError for a label that is too long or not
    ASCII."""
    found = bytearray()
    for label in name.split(".") if name else ():
        text = label.encode("ascii")
        if not 1 <= len(text) <= 63:
            raise ValueError(f"{name!r} is not a domain name")
        found.append(len(text))
        found += text
    return bytes(found) + b"\0"


def service_data(service: Service) -> bytes:
    """The data of a SRV record."""
    return _SERVICE.pack(0, 0, service.port) + write_name(service.target)


def write_answer(
    question: Question,
    code: ResponseCode,
    answers: Sequence[Record] = (),
    additional: Sequence[Record] = (),
    *,
    ttl: int,
    limit: int,
    authoritative: bool = True,
) -> bytes:
    """The answer without its id (the first two bytes), and so the same for all clients.

    Records beyond `limit` bytes are left out, additional ones first; without a record of the answer
    section the message is marked as truncated. `ttl` in seconds.
    """
    kept = question.flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED)
    flags = RESPONSE | RECURSION_AVAILABLE | kept | code
    if authoritative:
        flags |= AUTHORITATIVE
    tail = b""
    if question.extended:
        tail = b"\0" + _RECORD.pack(Type.OPT, LARGEST_DATAGRAM, 0, 0)
    room = limit - HEADER.size - len(question.text) - len(tail)
    body = bytearray()
    counts = []
    for section in (answers, additional):
        count = 0
        for record in section:
            owner = write_name(record.name) if record.name else _POINTER_TO_QUESTION
            text = owner + _RECORD.pack(record.type, IN, ttl, len(record.data)) + record.data
            if len(body) + len(text) > room:
                break
            body += text
            count += 1
        counts.append(count)
    if counts[0] < len(answers):
        flags |= TRUNCATED
    header = HEADER.pack(0, flags, 1, counts[0], 0, counts[1] + question.extended)
    return header[2:] + question.text + bytes(body) + tail


def error_response(message: bytes, code: ResponseCode) -> bytes:
    """The response to a malformed query: a header only, with the id. Empty for a response, or a
    message without a complete header."""
    if len(message) < HEADER.size:
        return b""
    number, flags, *_ = HEADER.unpack_from(message)
    if flags & RESPONSE:
        return b""
    flags = RESPONSE | (flags & (OPCODE | RECURSION_DESIRED)) | code
    return HEADER.pack(number, flags, 0, 0, 0, 0)
