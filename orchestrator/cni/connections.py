"""Connections of this node's containers, as the kernel tracks and counts them.

A host may have some 10,000, hence the short cut for IPv4 with ports: of these the kernel puts all
at fixed places (ctnetlink_fill_info in its net/netfilter/nf_conntrack_netlink.c). Bytes are counted
while nf_conntrack_acct is set, of connections that began since then.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterator

from orchestrator.cni.conntrack import (
    CTA_STATUS,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    GET,
    NETLINK_NETFILTER,
    USAGE,
)
from orchestrator.cni.records import record
from orchestrator.cni.rtnetlink import NetlinkSocket, Request, attributes

CTA_PROTOINFO, CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY = 4, 9, 10
CTA_PROTOINFO_TCP = CTA_PROTOINFO_TCP_STATE = 1
CTA_COUNTERS_BYTES = 2
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
TCP_ESTABLISHED = 3
IPS_SEEN_REPLY = 1 << 1
COUNTING = USAGE / "nf_conntrack_acct"
WITH_PORTS = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP})

_HEAD = 4
_TUPLE = 52
"""Bytes of an IPv4 tuple with ports."""
_PLAIN = struct.pack("=HH", _TUPLE, CTA_TUPLE_ORIG | 0x8000)
_SOURCE, _PROTOCOL, _FROM_PORT = slice(12, 16), 32, slice(40, 42)
"""Places in such a tuple."""


@record
class Connection:
    """Who asked whom, at which port: of who answers, behind any translation.

    `id` is the same for as long as it lasts. `sent` and `received` are bytes as the client sees
    them, 0 where they are not counted.
    """

    id: bytes
    protocol: int
    client: bytes
    server: bytes
    port: int
    open: bool
    sent: int
    received: int


def connections(addresses: Collection[bytes]) -> list[Connection]:
    """Those in which one of these addresses (packed) has a part. Raises OSError."""
    ask = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        return list(_read(sock.dump(Request(GET, ask)), addresses))


def counts_bytes() -> bool:
    """Whether the kernel counts the bytes of connections, in this network namespace."""
    try:
        return COUNTING.read_text().strip() == "1"
    except FileNotFoundError:  # nothing is tracked
        return False


def count_bytes(wanted: bool) -> None:
    """Have the kernel count the bytes of connections that begin from now on, or not."""
    COUNTING.write_text(f"{int(wanted)}\n")


def _read(bodies: Collection[bytes], addresses: Collection[bytes]) -> Iterator[Connection]:
    for body in bodies:
        if body[_HEAD : _HEAD + 4] == _PLAIN and body[_HEAD + _PROTOCOL] in WITH_PORTS:
            original, reply = body[_HEAD : _HEAD + _TUPLE], body[_HEAD + _TUPLE :]
            client, server = original[_SOURCE], reply[_SOURCE]
            port, protocol = reply[_FROM_PORT], original[_PROTOCOL]
            rest = _HEAD + 2 * _TUPLE
        else:
            found = attributes(body, _HEAD)
            original, rest = found.get(CTA_TUPLE_ORIG, b""), _HEAD
            (client, protocol, _), (server, _, port) = (
                _ends(original),
                _ends(found.get(CTA_TUPLE_REPLY, b"")),
            )
            if protocol not in WITH_PORTS:
                continue
        if client not in addresses and server not in addresses:
            continue
        told = attributes(body, rest)
        yield Connection(
            original,
            protocol,
            client,
            server,
            int.from_bytes(port, "big"),
            _open(protocol, told),
            _counted(told.get(CTA_COUNTERS_ORIG, b"")),
            _counted(told.get(CTA_COUNTERS_REPLY, b"")),
        )


def _ends(nested: bytes) -> tuple[bytes, int, bytes]:
    """A tuple's source address, protocol and source port."""
    parts = attributes(nested)
    addresses = attributes(parts.get(CTA_TUPLE_IP, b""))
    transport = attributes(parts.get(CTA_TUPLE_PROTO, b""))
    source = addresses.get(1) or addresses.get(3) or b""
    return source, int.from_bytes(transport.get(1, b""), "big"), transport.get(2, b"")


def _open(protocol: int, told: dict[int, bytes]) -> bool:
    if protocol == socket.IPPROTO_TCP:
        about = attributes(attributes(told.get(CTA_PROTOINFO, b"")).get(CTA_PROTOINFO_TCP, b""))
        return about.get(CTA_PROTOINFO_TCP_STATE, b"")[:1] == bytes([TCP_ESTABLISHED])
    return bool(int.from_bytes(told.get(CTA_STATUS, b""), "big") & IPS_SEEN_REPLY)


def _counted(counters: bytes) -> int:
    return int.from_bytes(attributes(counters).get(CTA_COUNTERS_BYTES, b""), "big")
