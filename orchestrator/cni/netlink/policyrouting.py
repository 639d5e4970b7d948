# SPDX-License-Identifier: Apache-2.0
"""Policy routing: rules that match marked packets, and a routing table for each.

Rules and tables are identified as ours by the rule's priority. A table's number derives from the
index of the bridge from which the packets come, so that networks never share one.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from orchestrator.cni.netlink import links
from orchestrator.cni.netlink.messages import ROUTE, RULE, parsed, request
from orchestrator.cni.netlink.netlinksocket import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    RouteSocket,
)

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
FR_ACT_TO_TBL = 1
RTPROT_STATIC, RTN_UNICAST, RTNH_F_ONLINK, RT_SCOPE_NOWHERE = 4, 1, 4, 255
PRIORITY = 0x4F72
TABLES = 0x4F000000  # ours begin here; the bridge's index follows
FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class MarkedRoute:
    """A route for packets from the interface `source` with a mark, by `device` (an index)."""

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
        """The request to add it (RTM_NEWRULE) or to remove it."""
        return request(
            RULE,
            kind,
            {"family": self.family, "action": FR_ACT_TO_TBL},
            [
                ("FRA_PRIORITY", PRIORITY),
                ("FRA_IIFNAME", self.source),
                ("FRA_FWMARK", self.mark),
                ("FRA_FWMASK", self.mask),
                ("FRA_TABLE", self.table),
            ],
            NLM_F_CREATE | NLM_F_EXCL if kind == RTM_NEWRULE else 0,
        )


@dataclass(frozen=True, slots=True)
class _Default:
    """The default route of a table."""

    family: int
    table: int
    device: int
    gateway: IPv4Address | IPv6Address | None


def ensure(sock: RouteSocket, wanted: Iterable[MarkedRoute]) -> None:
    """Ensure exactly these routes of ours exist. Tables are filled before their rules are added."""
    rules, routes = set(), set()
    for route in wanted:
        bridge = links.get_link(sock, route.source)
        if bridge is None:
            continue
        family = socket.AF_INET if isinstance(route.gateway, IPv4Address) else socket.AF_INET6
        table = TABLES + bridge.index
        rules.add(_Rule(family, route.source, route.mark, route.mask, table))
        routes.add(_Default(family, table, route.device, route.gateway))
    present_rules = _rules(sock)
    tables = {(rule.family, rule.table) for rule in present_rules | rules}
    present_routes = {route for family, table in tables for route in _routes(sock, family, table)}
    sock.execute(*[_put(route) for route in routes - present_routes])
    for outcome in sock.attempt([rule.request(RTM_NEWRULE) for rule in rules - present_rules]):
        if outcome is not None and outcome.errno != errno.EEXIST:
            raise outcome
    wanted_tables = {(route.family, route.table) for route in routes}
    stale = [rule.request(RTM_DELRULE) for rule in present_rules - rules]
    stale += [
        _drop(route) for route in present_routes if (route.family, route.table) not in wanted_tables
    ]
    for outcome in sock.attempt(stale):
        if outcome is not None and outcome.errno not in (errno.ENOENT, errno.ESRCH):
            raise outcome


def _rules(sock: RouteSocket) -> set[_Rule]:
    found = set()
    for family in FAMILIES:
        for body in sock.dump(request(RULE, RTM_GETRULE, {"family": family})):
            rule = parsed(RULE, body)
            if rule.get_attr("FRA_PRIORITY") == PRIORITY:
                found.add(
                    _Rule(
                        family,
                        rule.get_attr("FRA_IIFNAME") or "",
                        rule.get_attr("FRA_FWMARK") or 0,
                        rule.get_attr("FRA_FWMASK") or 0,
                        rule.get_attr("FRA_TABLE") or 0,
                    )
                )
    return found


def _routes(sock: RouteSocket, family: int, table: int) -> list[_Default]:
    ask = request(ROUTE, RTM_GETROUTE, {"family": family}, [("RTA_TABLE", table)])
    try:
        answers = sock.dump(ask)
    except OSError as error:
        if error.errno == errno.ENOENT:  # there is no such table yet
            return []
        raise
    found = []
    for body in answers:
        route = parsed(ROUTE, body)
        gateway = route.get_attr("RTA_GATEWAY")
        found.append(
            _Default(
                family,
                table,
                route.get_attr("RTA_OIF") or 0,
                ip_address(gateway) if gateway else None,
            )
        )
    return found


def _put(route: _Default) -> Request:
    fields = {
        "family": route.family,
        "proto": RTPROT_STATIC,
        "type": RTN_UNICAST,
        "flags": RTNH_F_ONLINK,
    }
    attributes = [
        ("RTA_TABLE", route.table),
        ("RTA_OIF", route.device),
        ("RTA_GATEWAY", str(route.gateway)),
    ]
    return request(ROUTE, RTM_NEWROUTE, fields, attributes, NLM_F_CREATE | NLM_F_REPLACE)


def _drop(route: _Default) -> Request:
    fields = {"family": route.family, "scope": RT_SCOPE_NOWHERE}
    attributes = [("RTA_TABLE", route.table), ("RTA_OIF", route.device)]
    return request(ROUTE, RTM_DELROUTE, fields, attributes)
