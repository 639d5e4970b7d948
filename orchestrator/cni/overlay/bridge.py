# SPDX-License-Identifier: Apache-2.0
"""The bridge of a network on this host, and its ports as they should be."""

from __future__ import annotations

import errno
from collections.abc import Collection
from ipaddress import IPv4Interface, IPv6Interface

from orchestrator.cni import peers
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.netlink import links, routing
from orchestrator.cni.netlink.links import Link, Port
from orchestrator.cni.netlink.netlinksocket import NetlinkError, Request, RouteSocket
from orchestrator.cni.overlay import veth as cables_
from orchestrator.cni.overlay.veth import VETH_PREFIX, Cable


def ensure(
    sock: RouteSocket, name: str, gateway: IPv4Interface, gateway6: IPv6Interface | None, mtu: int
) -> Link:
    """Have the bridge exist with this host's addresses, up; return it. `mtu` 0: leave it.

    Its MAC derives from the IPv4 address, so that containers may know it for good.
    """
    mac = peers.derived_mac("b", gateway.ip)
    link = links.get_link(sock, name)
    if link is None:
        from orchestrator.cni.netlink import devices  # imports pyroute2

        try:
            devices.create_bridge(sock, name, mac)
        except NetlinkError as error:
            # Another process that connects a container may have been faster.
            if error.errno == errno.EPERM:
                raise CniError(
                    Code.IO_FAILURE, "networks need root (CAP_NET_ADMIN)", str(error)
                ) from error
            if error.errno != errno.EEXIST:
                raise
        link = links.get_link(sock, name)
    if link is None or link.kind != "bridge":
        raise CniError(
            Code.INVALID_CONFIG,
            f"interface {name} exists and is not a bridge: remove it or name another one",
        )
    if not link.up or link.mac != mac or (mtu and link.mtu != mtu):
        sock.execute(links.link_request(link.index, mtu=mtu, mac=mac))
        link = links.get_link(sock, index=link.index) or link
    addresses: list[IPv4Interface | IPv6Interface] = [gateway, *([gateway6] if gateway6 else [])]
    links.ensure_addresses(sock, link.index, addresses)
    routing.await_local(sock, [address.ip for address in addresses], RouteSocket)
    return link


def ports(sock: RouteSocket, name: str) -> list[Link]:
    """The ends of our cables on the bridge of that name."""
    bridge = links.get_link(sock, name)
    if bridge is None:
        return []
    found = links.links(sock, master=bridge.index)
    return [port for port in found if port.kind == "veth" and port.name.startswith(VETH_PREFIX)]


def ensure_plugged(sock: RouteSocket, bridge: Link, cables: Collection[Cable]) -> list[Cable]:
    """Have the ends of these cables in the bridge, up; return the cables that have none.

    A bridge that was removed by hand comes back without its ports.
    """
    isolated = cables_.isolated()
    plugged = {port.name: port for port in links.links(sock, master=bridge.index)}
    stations = set(routing.stations(sock, bridge.index))
    lost = []
    for cable in cables:
        wanted = Port(True, isolated=isolated, learning=False, locked=cable.locked)
        end = plugged.get(cable.host)
        requests = []
        if end is None or not end.up or end.port != wanted:
            end = end or links.get_link(sock, cable.host)
            if end is None:
                lost.append(cable)
                continue
            requests = [
                links.link_request(end.index, master=bridge.index),
                links.port_request(end.index, cable.label, isolated=isolated, locked=cable.locked),
                links.open_request(end.index),
            ]
        if (cable.mac, end.index) not in stations:
            requests.append(routing.station_request(end.index, cable.mac))
        for outcome in sock.attempt(requests):
            # It may go at the same moment, or open by itself in the next.
            if outcome is not None and outcome.errno not in (errno.ENODEV, errno.ENETDOWN):
                raise outcome
        if requests:
            cables_.settle(sock, end.index, bridge.index)
    return lost


def ensure_known(sock: RouteSocket, bridge: Link, cables: Collection[Cable]) -> None:
    """Have the host know where the containers are, and none that is not there any more.

    Routes that lead elsewhere than to one address were not made here, and stay.
    """
    neighbours = {entry for cable in cables for entry in cable.neighbours}
    homes = {address for address, _ in neighbours}
    known = set(routing.neighbours(sock, bridge.index))
    routes = {route for cable in cables for route in cable.host_routes}
    present = set(routing.routes(sock, bridge.index))
    alone = {
        route for route in present if route.gateway is None and route.destination.num_addresses == 1
    }
    stale: list[Request] = [
        routing.neighbour_request(bridge.index, address, mac, remove=True)
        for address, mac in known
        if address not in homes
    ]
    stale += [routing.route_request(bridge.index, route, remove=True) for route in alone - routes]
    for outcome in sock.attempt(stale):
        if outcome is not None and outcome.errno not in (errno.ENOENT, errno.ESRCH):
            raise outcome
    sock.execute(
        *[
            routing.neighbour_request(bridge.index, address, mac)
            for address, mac in neighbours - known
        ],
        *[routing.route_request(bridge.index, route) for route in routes - present],
    )
