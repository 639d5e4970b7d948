# SPDX-License-Identifier: Apache-2.0
"""Connections that the kernel tracks: listed, counted, forgotten (ctnetlink).

A translation is chosen by a flow's first packet. UDP has no end of a flow: a client that keeps
sending would reach the container that had the port before, or none, for as long as it goes on. So
flows to a UDP port are forgotten whenever its target changes, and the next packet starts a new one
(include/uapi/linux/netfilter/nfnetlink_conntrack.h). `balancing.staleflows` has the rules for
balanced services.

A host may track some 10,000 connections, hence the short cut for IPv4 with ports: the kernel puts
all their attributes at fixed offsets (ctnetlink_fill_info in net/netfilter/nf_conntrack_netlink.c).
Bytes are counted while nf_conntrack_acct is set, of connections that began since then.
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


@record
class Flow:
    """A connection: `asked` (packed) and `port` are whom the client sends to, `server` who answers.

    The two addresses differ where the destination was translated.
    """

    protocol: int
    asked: bytes
    port: int
    server: bytes


@record
class Usage:
    """`count` connections of at most `limit`; `refused` found no room since the host started."""

    count: int
    limit: int
    refused: int


def forget_udp(ports: Collection[int]) -> int:
    """Forget the flows that were sent to these UDP ports; return how many there were."""
    wanted = frozenset(ports)
    if not wanted:
        return 0
    return forget(lambda flow: flow.protocol == UDP and flow.port in wanted, translated=False)


def forget(doomed: Callable[[Flow], bool], *, translated: bool = True) -> int:
    """Forget the connections that are `doomed`; return how many there were.

    Those whose destination was `translated` only, or all. The clients notice nothing but that
    their next packet is the first one.
    """
    ask = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    size = len(ask)
    if translated:  # a kernel that does not know the filter (before 5.19) gives all
        ask += attribute(CTA_STATUS, IPS_DST_NAT) + attribute(CTA_STATUS_MASK, IPS_DST_NAT)
    requests = []
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        # In one dump for both families: the kernel walks all of its table for each.
        for body in sock.dump(Request(GET, ask)):
            found = attributes(body, size)
            reply = found.get(CTA_TUPLE_REPLY, b"")
            if doomed(_flow(found.get(CTA_TUPLE_ORIG, b""), reply)):
                # Named by its answers, from the server that is doomed. By what the client asks it
                # could be another one by now: a port is taken again at once where many are used.
                flow = attribute(CTA_TUPLE_REPLY | NLA_F_NESTED, reply)
                requests.append(Request(DELETE, body[:size] + flow))
        for outcome in sock.attempt(requests):
            if outcome is not None and outcome.errno != errno.ENOENT:
                raise outcome
    return len(requests)


def _flow(original: bytes, reply: bytes) -> Flow:
    asks = attributes(original)
    asked, transport = attributes(asks.get(CTA_TUPLE_IP, b"")), attributes(asks[CTA_TUPLE_PROTO])
    answers = attributes(attributes(reply).get(CTA_TUPLE_IP, b""))
    return Flow(
        protocol=int.from_bytes(transport.get(CTA_PROTO_NUM, b""), "big"),
        asked=asked.get(CTA_IP_V4_DST) or asked.get(CTA_IP_V6_DST) or b"",
        port=int.from_bytes(transport.get(CTA_PROTO_DST_PORT, b""), "big"),
        server=answers.get(CTA_IP_V4_SRC) or answers.get(CTA_IP_V6_SRC) or b"",
    )


def address(packed: bytes) -> IPv4Address | IPv6Address | None:
    """A flow's server as an address; None if the kernel named none."""
    return ip_address(packed) if packed else None


def usage() -> Usage:
    """How much room the table has, in this network namespace; all 0 where nothing is tracked."""
    try:
        count = int((USAGE / "nf_conntrack_count").read_text())
        limit = int((USAGE / "nf_conntrack_max").read_text())
        names, *rows = [line.split() for line in STATISTICS.read_text().splitlines()]
    except FileNotFoundError:
        return Usage(0, 0, 0)
    dropped = names.index("drop")
    return Usage(count, limit, sum(int(row[dropped], 16) for row in rows))


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
        about = attributes(attributes(details.get(CTA_PROTOINFO, b"")).get(CTA_PROTOINFO_TCP, b""))
        return about.get(CTA_PROTOINFO_TCP_STATE, b"")[:1] == bytes([TCP_ESTABLISHED])
    return bool(int.from_bytes(details.get(CTA_STATUS, b""), "big") & IPS_SEEN_REPLY)


def _counted(counters: bytes) -> int:
    return int.from_bytes(attributes(counters).get(CTA_COUNTERS_BYTES, b""), "big")
