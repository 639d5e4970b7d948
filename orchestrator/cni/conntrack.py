"""Connections that the kernel tracks, as far as published UDP ports need it.

A translation is chosen by a flow's first packet. UDP has no end of a flow: a client that keeps
sending would reach the container that had the port before, or none, for as long as it goes on. So
flows to a UDP port are forgotten whenever what it leads to changes (ctnetlink, see
include/uapi/linux/netfilter/nfnetlink_conntrack.h).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection

from .rtnetlink import NetlinkSocket, Request, attribute, attributes

NETLINK_NETFILTER = 12
SUBSYSTEM = 1 << 8
GET, DELETE = SUBSYSTEM | 1, SUBSYSTEM | 2
CTA_TUPLE_ORIG, CTA_TUPLE_PROTO = 1, 2
CTA_PROTO_NUM, CTA_PROTO_DST_PORT = 1, 3
NLA_F_NESTED = 0x8000
HEADER = struct.pack("=BBH", socket.AF_INET, 0, 0)


def forget_udp(ports: Collection[int]) -> int:
    """Forget the flows that were sent to these UDP ports; return how many there were."""
    wanted = {port.to_bytes(2, "big") for port in ports}
    if not wanted:
        return 0
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        doomed = []
        for body in sock.dump(Request(GET, HEADER)):
            original = attributes(body, len(HEADER)).get(CTA_TUPLE_ORIG, b"")
            protocol = attributes(attributes(original).get(CTA_TUPLE_PROTO, b""))
            if (
                protocol.get(CTA_PROTO_NUM) == bytes([socket.IPPROTO_UDP])
                and protocol.get(CTA_PROTO_DST_PORT) in wanted
            ):
                flow = attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, original)
                doomed.append(Request(DELETE, HEADER + flow))
        for outcome in sock.attempt(doomed):
            if outcome is not None and outcome.errno != errno.ENOENT:
                raise outcome
        return len(doomed)
