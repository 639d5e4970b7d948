"""Connections that the kernel tracks, as far as translations need it.

A translation is chosen by a flow's first packet. UDP has no end of a flow: a client that keeps
sending would reach the container that had the port before, or none, for as long as it goes on. So
flows to a UDP port are forgotten whenever what it leads to changes: what its clients send next
begins anew (ctnetlink, see include/uapi/linux/netfilter/nfnetlink_conntrack.h). `flows` has the
rules for balanced services.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from orchestrator.cni.records import record
from orchestrator.cni.rtnetlink import NetlinkSocket, Request, attribute, attributes

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
