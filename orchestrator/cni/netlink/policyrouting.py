"""Routes of marked packets: rules of the routing policy, and a table for each (rtnetlink).

A rule and its table are ours by the rule's priority. The number of a table is that of the bridge
that the packets come from, so tables of two networks never meet.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from orchestrator.cni.netlink import links, routing
from orchestrator.cni.netlink.links import number
from orchestrator.cni.netlink.netlinksocket import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    RouteSocket,
    attribute,
    attributes,
    text,
    u32,
)

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
FRA_IIFNAME, FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK = 3, 6, 10, 15, 16
FR_ACT_TO_TBL = 1
RULE = struct.Struct("=BBBBBBBBI")  # fib_rule_hdr, include/uapi/linux/fib_rules.h
PRIORITY = 0x4F72
TABLES = 0x4F000000  # ours begin here; the bridge's index follows
FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class Way:
    """Packets from the interface named `source` whose mark matches leave by `device` (an index)."""

    source: str
    device: int
    gateway: IPv4Address | IPv6Address
    mark: int
    mask: int


@dataclass(frozen=True, slots=True)
class _Rule:
    family: int
    source: str
    mark: int
    mask: int
    table: int

    def request(self, kind: int) -> Request:
        head = RULE.pack(self.family, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
        body = (
            head
            + u32(FRA_PRIORITY, PRIORITY)
            + text(FRA_IIFNAME, self.source)
            + u32(FRA_FWMARK, self.mark)
            + u32(FRA_FWMASK, self.mask)
            + u32(FRA_TABLE, self.table)
        )
        return Request(kind, body, NLM_F_CREATE | NLM_F_EXCL if kind == RTM_NEWRULE else 0)


@dataclass(frozen=True, slots=True)
class _Default:
    """The one route of a table."""

    family: int
    table: int
    device: int
    gateway: bytes


def ensure(sock: RouteSocket, ways: Iterable[Way]) -> None:
    """Have exactly these ways; those of others are not touched. Routes come before their rules."""
    rules, routes = set(), set()
    for way in ways:
        bridge = links.get_link(sock, way.source)
        if bridge is None:
            continue
        family = socket.AF_INET if isinstance(way.gateway, IPv4Address) else socket.AF_INET6
        table = TABLES + bridge.index
        rules.add(_Rule(family, way.source, way.mark, way.mask, table))
        routes.add(_Default(family, table, way.device, way.gateway.packed))
    present = _rules(sock)
    tables = {(rule.family, rule.table) for rule in present | rules}
    standing = {route for family, table in tables for route in _routes(sock, family, table)}
    sock.execute(*[_put(route) for route in routes - standing])
    for outcome in sock.attempt([rule.request(RTM_NEWRULE) for rule in rules - present]):
        if outcome is not None and outcome.errno != errno.EEXIST:
            raise outcome
    wanted = {(route.family, route.table) for route in routes}
    stale = [rule.request(RTM_DELRULE) for rule in present - rules]
    stale += [_drop(route) for route in standing if (route.family, route.table) not in wanted]
    for outcome in sock.attempt(stale):
        if outcome is not None and outcome.errno not in (errno.ENOENT, errno.ESRCH):
            raise outcome


def _rules(sock: RouteSocket) -> set[_Rule]:
    found = set()
    for family in FAMILIES:
        for body in sock.dump(Request(RTM_GETRULE, RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))):
            parts = attributes(body, RULE.size)
            if number(parts.get(FRA_PRIORITY)) == PRIORITY:
                found.add(
                    _Rule(
                        family,
                        parts.get(FRA_IIFNAME, b"").rstrip(b"\0").decode(errors="replace"),
                        number(parts.get(FRA_FWMARK)),
                        number(parts.get(FRA_FWMASK)),
                        number(parts.get(FRA_TABLE)),
                    )
                )
    return found


def _routes(sock: RouteSocket, family: int, table: int) -> list[_Default]:
    head = routing.RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        answers = sock.dump(Request(routing.RTM_GETROUTE, head + u32(routing.RTA_TABLE, table)))
    except OSError as error:
        if error.errno == errno.ENOENT:  # there is no such table yet
            return []
        raise
    found = []
    for body in answers:
        parts = attributes(body, routing.RTMSG.size)
        device, gateway = number(parts.get(routing.RTA_OIF)), parts.get(routing.RTA_GATEWAY, b"")
        found.append(_Default(family, table, device, gateway))
    return found


def _put(route: _Default) -> Request:
    head = routing.RTMSG.pack(
        route.family,
        0,
        0,
        0,
        0,
        routing.RTPROT_STATIC,
        0,
        routing.RTN_UNICAST,
        routing.RTNH_F_ONLINK,
    )
    body = head + u32(routing.RTA_TABLE, route.table) + u32(routing.RTA_OIF, route.device)
    body += attribute(routing.RTA_GATEWAY, route.gateway)
    return Request(routing.RTM_NEWROUTE, body, NLM_F_CREATE | NLM_F_REPLACE)


def _drop(route: _Default) -> Request:
    head = routing.RTMSG.pack(route.family, 0, 0, 0, 0, 0, 255, 0, 0)
    body = head + u32(routing.RTA_TABLE, route.table) + u32(routing.RTA_OIF, route.device)
    return Request(routing.RTM_DELROUTE, body)
