# SPDX-License-Identifier: Apache-2.0
"""The kernel's connection tracking table: list, count and delete flows (ctnetlink).

NAT is decided by a flow's first packet. A UDP flow lasts while its client keeps sending: packets
would go to the container that had the port before. So flows to a UDP port are deleted whenever its
target changes, and the next packet starts a new flow
(include/uapi/linux/netfilter/nfnetlink_conntrack.h). `balancing.staleflows` has the rules for
balanced services.

A host may track some 10,000 connections, hence the fast path for IPv4 with ports: the kernel puts
all their attributes at fixed offsets (ctnetlink_fill_info in net/netfilter/nf_conntrack_netlink.c).
Bytes are counted while nf_conntrack_acct is set, for connections that began since then.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from orchestrator.cni.fastrecord import record
from orchestrator.cni.netlink.netlinksocket import NetlinkSocket, Request, attribute, attributes

NETLINK_NETFILTER = 12
SUBSYSTEM = 1 << 8
GET, DELETE = SUBSYSTEM | 1, SUBSYSTEM | 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_STATUS_MASK = 1, 2, 3, 26
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_DST_PORT = 1, 3
IPS_DST_NAT = (1 << 5).to_bytes(4, "big")
NLA_F_NESTED = 0x8000
UDP = socket.IPPROTO_UDP
USAGE = Path("/proc/sys/net/netfilter")
STATISTICS = Path("/proc/self/net/stat/nf_conntrack")
CTA_PROTOINFO, CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY = 4, 9, 10
CTA_PROTOINFO_TCP = CTA_PROTOINFO_TCP_STATE = 1
CTA_COUNTERS_BYTES = 2
TCP_ESTABLISHED = 3
IPS_SEEN_REPLY = 1 << 1
COUNTING = USAGE / "nf_conntrack_acct"
WITH_PORTS = frozenset({socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP})

_HEAD = 4
_TUPLE = 52
"""Bytes of an IPv4 tuple with ports."""
_PLAIN = struct.pack("=HH", _TUPLE, CTA_TUPLE_ORIG | 0x8000)
_SOURCE, _PROTOCOL, _FROM_PORT = slice(12, 16), 32, slice(40, 42)
"""Offsets in such a tuple."""


@record
class Flow:
    """A connection: original `destination` (packed) and `port`, and the `server` that replies.

    The two addresses differ where the destination was translated (DNAT).
    """

    protocol: int
    destination: bytes
    port: int
    server: bytes


@record
class Usage:
    """Tracked connections, their limit, and packets dropped since boot as the table was full."""

    count: int
    limit: int
    refused: int


def delete_udp(ports: Collection[int]) -> int:
    """Delete the flows to these UDP ports; return their number."""
    wanted = frozenset(ports)
    if not wanted:
        return 0
    return delete(lambda flow: flow.protocol == UDP and flow.port in wanted, translated=False)


def delete(stale: Callable[[Flow], bool], *, translated: bool = True) -> int:
    """Delete the connections for which `stale` holds; return their number.

    `translated`: only of those whose destination was translated. A client's next packet starts a
    new connection.
    """
    ask = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    size = len(ask)
    if translated:  # kernels before 5.19 ignore the filter
        ask += attribute(CTA_STATUS, IPS_DST_NAT) + attribute(CTA_STATUS_MASK, IPS_DST_NAT)
    requests = []
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        # In one dump for both families: the kernel walks all of its table for each.
        for body in sock.dump(Request(GET, ask)):
            found = attributes(body, size)
            reply = found.get(CTA_TUPLE_REPLY, b"")
            if stale(_flow(found.get(CTA_TUPLE_ORIG, b""), reply)):
                # Identified by the reply tuple, from the stale server. The original tuple may be
                # that of a newer connection by now: busy clients reuse ports at once.
                flow = attribute(CTA_TUPLE_REPLY | NLA_F_NESTED, reply)
                requests.append(Request(DELETE, body[:size] + flow))
        for outcome in sock.attempt(requests):
            if outcome is not None and outcome.errno != errno.ENOENT:
                raise outcome
    return len(requests)


def _flow(original: bytes, reply: bytes) -> Flow:
    sent = attributes(original)
    destination, transport = (
        attributes(sent.get(CTA_TUPLE_IP, b"")),
        attributes(sent[CTA_TUPLE_PROTO]),
    )
    replied = attributes(attributes(reply).get(CTA_TUPLE_IP, b""))
    return Flow(
        protocol=int.from_bytes(transport.get(CTA_PROTO_NUM, b""), "big"),
        destination=destination.get(CTA_IP_V4_DST) or destination.get(CTA_IP_V6_DST) or b"",
        port=int.from_bytes(transport.get(CTA_PROTO_DST_PORT, b""), "big"),
        server=replied.get(CTA_IP_V4_SRC) or replied.get(CTA_IP_V6_SRC) or b"",
    )


def address(packed: bytes) -> IPv4Address | IPv6Address | None:
    """A flow's server as an address; None if the kernel named none."""
    return ip_address(packed) if packed else None


def usage() -> Usage:
    """Usage of the table in this network namespace; all 0 where nothing is tracked."""
    try:
        count = int((USAGE / "nf_conntrack_count").read_text())
        limit = int((USAGE / "nf_conntrack_max").read_text())
        names, *rows = [line.split() for line in STATISTICS.read_text().splitlines()]
    except FileNotFoundError:
        return Usage(0, 0, 0)
    dropped = names.index("drop")
    return Usage(count, limit, sum(int(row[dropped], 16) for row in rows))


@record
class Connection:
    """A client's connection to `port` of a server, after any translation.

    `id` stays the same while it lasts. `sent` and `received` are bytes as the client sees them, 0
    where they are not counted.
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
    """The connections from or to these addresses (packed). Raises OSError."""
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
    """Switch counting of bytes on or off, for connections that begin from now on."""
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
        details = attributes(body, rest)
        yield Connection(
            original,
            protocol,
            client,
            server,
            int.from_bytes(port, "big"),
            _open(protocol, details),
            _counted(details.get(CTA_COUNTERS_ORIG, b"")),
            _counted(details.get(CTA_COUNTERS_REPLY, b"")),
        )


def _ends(nested: bytes) -> tuple[bytes, int, bytes]:
    """A tuple's source address, protocol and source port."""
    parts = attributes(nested)
    addresses = attributes(parts.get(CTA_TUPLE_IP, b""))
    transport = attributes(parts.get(CTA_TUPLE_PROTO, b""))
    source = addresses.get(1) or addresses.get(3) or b""
    return source, int.from_bytes(transport.get(1, b""), "big"), transport.get(2, b"")


def _open(protocol: int, details: dict[int, bytes]) -> bool:
    if protocol == socket.IPPROTO_TCP:
        tcp = attributes(attributes(details.get(CTA_PROTOINFO, b"")).get(CTA_PROTOINFO_TCP, b""))
        return tcp.get(CTA_PROTOINFO_TCP_STATE, b"")[:1] == bytes([TCP_ESTABLISHED])
    return bool(int.from_bytes(details.get(CTA_STATUS, b""), "big") & IPS_SEEN_REPLY)


def _counted(counters: bytes) -> int:
    return int.from_bytes(attributes(counters).get(CTA_COUNTERS_BYTES, b""), "big")
