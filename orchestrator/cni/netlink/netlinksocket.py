# SPDX-License-Identifier: Apache-2.0
"""The rtnetlink wire format (netlink(7), rtnetlink(7)) and a blocking socket that speaks it.

Requests are sent in batches, many in one system call, and acknowledged one by one: a thousand peers
take a few dozen calls. The exception has the kernel's message (extended acknowledgement).

pyroute2's sockets are not used: they run an event loop for each call (1.3 ms to get one link, 0.04
ms here) and report one outcome for a batch.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from orchestrator.cni.fastrecord import TYPE_CHECKING, record

if TYPE_CHECKING:
    from typing import Self

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

NLA_TYPE_MASK = 0x3FFF
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")

# Every queued acknowledgement occupies about 1 KiB of the receive buffer, whatever its size.
BATCH = 128
RECEIVE_BUFFER = 1 << 20
DUMP_ATTEMPTS = 10


class NetlinkError(OSError):
    """A request failed: `errno`, and the kernel's message if it sent one."""


@record
class Request:
    """One message to the kernel: its type, its flags besides REQUEST and ACK, its body."""

    kind: int
    body: bytes
    flags: int = 0


def attribute(kind: int, payload: bytes) -> bytes:
    """One type-length-value, padded to four bytes."""
    length = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def u32(kind: int, value: int) -> bytes:
    """An attribute that holds a 32-bit number in host order."""
    return attribute(kind, value.to_bytes(4, "little" if _LITTLE else "big"))


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Parse the attributes that follow `offset`; of a repeated type the last one counts."""
    found: dict[int, bytes] = {}
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind & NLA_TYPE_MASK] = data[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Split a datagram into (type, flags, sequence, body)."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            break
        yield kind, flags, sequence, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def refusal(flags: int, body: bytes) -> NetlinkError | None:
    """The error in an acknowledgement; None for success."""
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    message = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        (echoed,) = struct.unpack_from("=I", body, 4)
        offset = 4 + (HEADER.size if flags & NLM_F_CAPPED else (echoed + 3) & ~3)
        explained = attributes(body, offset).get(NLMSGERR_ATTR_MSG)
        if explained:
            message = explained.rstrip(b"\0").decode(errors="replace")
    return NetlinkError(-code, message)


class NetlinkSocket:
    """A netlink socket of the network namespace in which it was opened.

    `groups` is the mask of multicast groups whose events it receives (see `wait`); a socket with
    groups sends no requests.
    """

    def __init__(self, protocol: int, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.bind((0, groups))
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _frame(self, request: Request, flags: int) -> bytes:
        self._sequence += 1
        length = HEADER.size + len(request.body)
        return (
            HEADER.pack(length, request.kind, request.flags | flags, self._sequence, 0)
            + request.body
            + b"\0" * (-length % 4)
        )

    def attempt(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        """Send all requests; return the outcome of each, in order. A failed one stops no other."""
        outcomes: list[NetlinkError | None] = []
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            first = self._sequence + 1
            flags = NLM_F_REQUEST | NLM_F_ACK
            self._socket.send(b"".join(self._frame(request, flags) for request in batch))
            results: dict[int, NetlinkError | None] = {}
            while len(results) < len(batch):
                for kind, reply_flags, sequence, body in messages(self._socket.recv(1 << 16)):
                    if kind == NLMSG_ERROR and sequence >= first:
                        results[sequence] = refusal(reply_flags, body)
            outcomes.extend(results[first + index] for index in range(len(batch)))
        return outcomes

    def execute(self, *requests: Request) -> None:
        """Send all requests; raise the first `NetlinkError`."""
        for outcome in self.attempt(requests):
            if outcome is not None:
                raise outcome

    def get(self, request: Request) -> bytes:
        """Send a request for one object; return the body of the answer."""
        self._socket.send(self._frame(request, NLM_F_REQUEST))
        while True:
            for kind, flags, sequence, body in messages(self._socket.recv(1 << 16)):
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_ERROR and (error := refusal(flags, body)):
                    raise error
                return body

    def dump(self, request: Request) -> list[bytes]:
        """Send a request for all objects; return their bodies, from one consistent dump.

        A dump that the kernel marks as interrupted by a change (NLM_F_DUMP_INTR) is repeated.
        """
        for _ in range(DUMP_ATTEMPTS):
            bodies, consistent = self._dump_once(request)
            if consistent:
                return bodies
        raise NetlinkError(errno.EBUSY, "the kernel's tables change faster than they can be read")

    def _dump_once(self, request: Request) -> tuple[list[bytes], bool]:
        self._socket.send(self._frame(request, NLM_F_REQUEST | NLM_F_DUMP))
        bodies: list[bytes] = []
        consistent = True
        while True:
            for kind, flags, sequence, body in messages(self._socket.recv(1 << 17)):
                if sequence != self._sequence:
                    continue
                consistent = consistent and not flags & NLM_F_DUMP_INTR
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    error = refusal(flags if kind == NLMSG_ERROR else 0, body)
                    if error is not None:
                        raise error
                    return bodies, consistent
                bodies.append(body)

    def wait(self, seconds: float) -> None:
        """Return on the next event, or raise `TimeoutError`."""
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(1 << 16)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more events than the buffer holds
                raise


class RouteSocket(NetlinkSocket):
    """A socket for links, addresses, routes and neighbours."""

    def __init__(self, groups: int = 0) -> None:
        super().__init__(socket.NETLINK_ROUTE, groups)
