# SPDX-License-Identifier: Apache-2.0
"""Netlink messages of the per-container path and of each pass, encoded and read by `cni.netlink`
and by pyroute2's message classes: why the first do it by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_address, ip_network
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from orchestrator.cni.netlink import links, messages, routing, wireguard
from orchestrator.cni.netlink.messages import LINK, ROUTE, parsed, request
from orchestrator.cni.netlink.netlinksocket import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    RouteSocket,
)
from tests.bench.tables import Table, seconds

ROUNDS, CALLS = 60, 20
PUT = NLM_F_CREATE | NLM_F_REPLACE
UP = {"flags": links.IFF_UP, "change": links.IFF_UP}
MAC, NAME = "02:63:0a:80:07:02", "orcv0123456789a"
PEER = ip_address("10.128.8.0")
ROUTE_TO_PEER = routing.RouteEntry(
    ip_network("10.128.8.0/24"), PEER, ip_address("10.128.7.1"), onlink=True
)


@dataclass(frozen=True, slots=True)
class Message:
    """A message that both encode to the same bytes; `each` of them are in one ADD."""

    name: str
    own: Callable[[], Request]
    theirs: Callable[[], Request]
    each: int


def _veth() -> Request:
    peer = {
        "attrs": [
            ("IFLA_IFNAME", "eth0"),
            ("IFLA_ADDRESS", MAC),
            ("IFLA_MTU", 1450),
            ("IFLA_NET_NS_FD", 9),
        ]
    }
    info = [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]
    head = [("IFLA_IFNAME", NAME), ("IFLA_MTU", 1450), ("IFLA_MASTER", 7)]
    linkinfo = ("IFLA_LINKINFO", {"attrs": info})
    return request(LINK, links.RTM_NEWLINK, UP, [*head, linkinfo], NLM_F_CREATE | NLM_F_EXCL)


def _port() -> Request:
    data = [
        ("IFLA_BRPORT_LEARNING", 0),
        ("IFLA_BRPORT_ISOLATED", 1),
        ("IFLA_BRPORT_MODE", 0),
        ("IFLA_BRPORT_LOCKED", 1),
    ]
    info = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": data})]
    attributes = [("IFLA_IFALIAS", "c1/eth0"), ("IFLA_LINKINFO", {"attrs": info})]
    return request(LINK, links.RTM_NEWLINK, {"index": 8}, attributes)


def _address(text: str, flags: int) -> Request:
    address, _, prefix = text.partition("/")
    family = 10 if ":" in address else 2
    fields = {"family": family, "prefixlen": int(prefix), "index": 2}
    attributes = [("IFA_LOCAL", address), ("IFA_ADDRESS", address), ("IFA_FLAGS", flags)]
    return request(ifaddrmsg, links.RTM_NEWADDR, fields, attributes, PUT)


def _route() -> Request:
    fields = {"family": 2, "dst_len": 24, "table": 254, "proto": 4, "type": 1, "flags": 4}
    attributes = [
        ("RTA_DST", "10.128.8.0"),
        ("RTA_OIF", 2),
        ("RTA_GATEWAY", str(PEER)),
        ("RTA_PREFSRC", "10.128.7.1"),
    ]
    return request(ROUTE, routing.RTM_NEWROUTE, fields, attributes, PUT)


def _neighbour() -> Request:
    fields = {"family": 2, "ifindex": 2, "state": routing.NUD_PERMANENT}
    attributes = [("NDA_DST", str(PEER)), ("NDA_LLADDR", MAC)]
    return request(ndmsg, routing.RTM_NEWNEIGH, fields, attributes, PUT)


def _station() -> Request:
    fields = {"family": 7, "ifindex": 8, "state": routing.NUD_NOARP, "flags": routing.NTF_MASTER}
    return request(ndmsg, routing.RTM_NEWNEIGH, fields, [("NDA_LLADDR", MAC)], PUT)


def _forwarding() -> Request:
    state = routing.NUD_PERMANENT | routing.NUD_NOARP
    fields = {"family": 7, "ifindex": 8, "state": state, "flags": routing.NTF_SELF}
    attributes = [("NDA_LLADDR", MAC), ("NDA_DST", "192.0.2.12")]
    return request(ndmsg, routing.RTM_NEWNEIGH, fields, attributes, PUT)


MESSAGES = (
    Message(
        "veth pair",
        lambda: links.veth_request(links.VethPair(NAME, 7, "eth0", MAC, 1450), 9),
        _veth,
        1,
    ),
    Message(
        "link up, with MTU",
        lambda: links.link_request(2, mtu=1450),
        lambda: request(LINK, links.RTM_NEWLINK, {"index": 2, **UP}, [("IFLA_MTU", 1450)]),
        2,
    ),
    Message(
        "bridge port",
        lambda: links.port_request(8, "c1/eth0", isolated=True, locked=True),
        _port,
        1,
    ),
    Message(
        "IPv4 address",
        lambda: links.address_request(2, IPv4Interface("10.128.7.2/24"), no_prefix_route=True),
        lambda: _address("10.128.7.2/24", links.IFA_F_NOPREFIXROUTE),
        1,
    ),
    Message(
        "IPv6 address",
        lambda: links.address_request(2, IPv6Interface("fd00::2/64"), no_prefix_route=True),
        lambda: _address("fd00::2/64", links.IFA_F_NOPREFIXROUTE | links.IFA_F_NODAD),
        0,
    ),
    Message("route", lambda: routing.route_request(2, ROUTE_TO_PEER), _route, 3),
    Message("neighbour", lambda: routing.neighbour_request(2, PEER, MAC), _neighbour, 2),
    Message("station of a port", lambda: routing.bridge_fdb_request(8, MAC), _station, 1),
    Message(
        "forwarding entry",
        lambda: routing.vxlan_fdb_request(8, MAC, IPv4Address("192.0.2.12")),
        _forwarding,
        0,
    ),
)
LINKS_READ = 7
"""By one ADD."""


def _time(call: Callable[[], object]) -> float:
    """Seconds of one call, at best."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, (time.perf_counter() - began) / CALLS)
    return best


def _reads() -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    with RouteSocket() as sock:
        link = sock.get(links.link_query(index=links.LOOPBACK))
    neighbour = routing.neighbour_request(2, PEER, MAC).body
    route = routing.route_request(2, ROUTE_TO_PEER).body
    endpoint = wireguard.Endpoint(IPv4Address("192.0.2.12"), 7423)
    peer = wireguard.peer_attributes(
        wireguard.Peer(wireguard.encode_key(bytes(32)), endpoint, None, 25)
    )
    peers = wireguard.peers_attributes([peer])
    device = wireguard.device_request(0, wireguard.GET_DEVICE, "orcwg0", peers).body

    def read(message: Any, body: bytes, *names: str) -> Callable[[], object]:
        def call() -> object:
            found = parsed(message, body)
            return [found.get_attr(name) for name in names]

        return call

    def read_device() -> object:
        (found,) = parsed(messages.wireguard(), device).get_attr("WGDEVICE_A_PEERS")
        return found.get_attr("WGPEER_A_PUBLIC_KEY"), found.get_attr("WGPEER_A_ENDPOINT")

    return [
        (
            "link, read",
            lambda: links.read_link(link),
            read(LINK, link, "IFLA_IFNAME", "IFLA_MTU", "IFLA_ADDRESS", "IFLA_LINKINFO"),
        ),
        (
            "route, read",
            lambda: routing.read_route(route),
            read(ROUTE, route, "RTA_DST", "RTA_GATEWAY", "RTA_PREFSRC", "RTA_PRIORITY"),
        ),
        (
            "neighbour, read",
            lambda: routing.read_neighbour(neighbour),
            read(ndmsg, neighbour, "NDA_DST", "NDA_LLADDR"),
        ),
        ("tunnel, read", lambda: wireguard.device_of([device]), read_device),
    ]


def measure() -> dict[str, tuple[float, float]]:
    """Seconds by message: by hand, by pyroute2."""
    found = {each.name: (_time(each.own), _time(each.theirs)) for each in MESSAGES}
    return found | {name: (_time(own), _time(theirs)) for name, own, theirs in _reads()}


def report(times: dict[str, tuple[float, float]]) -> Table:
    """Pure."""
    in_add = {each.name: each.each for each in MESSAGES} | {"link, read": LINKS_READ}
    own, theirs = (
        sum(times[name][side] * number for name, number in in_add.items()) for side in (0, 1)
    )
    return Table(
        "Netlink messages",
        ("message", "by hand", "by pyroute2", "in one ADD"),
        tuple(
            (name, seconds(pair[0]), seconds(pair[1]), str(in_add.get(name, 0) or "-"))
            for name, pair in times.items()
        ),
        (f"All of one ADD: {seconds(own)} by hand, {seconds(theirs)} by pyroute2.",),
    )
