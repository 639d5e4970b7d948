# SPDX-License-Identifier: Apache-2.0
"""The bridge of a network on this host, and the desired state of its ports."""

from __future__ import annotations

import errno
from collections.abc import Collection
from ipaddress import IPv4Interface, IPv6Interface

from orchestrator.cni import peers
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.netlink import links, routing
from orchestrator.cni.netlink.links import Link, Port
from orchestrator.cni.netlink.netlinksocket import NetlinkError, Request, RouteSocket
from orchestrator.cni.overlay import veth
from orchestrator.cni.overlay.veth import VETH_PREFIX, VethConfig


def ensure(
    sock: RouteSocket, name: str, gateway: IPv4Interface, gateway6: IPv6Interface | None, mtu: int
) -> Link:
    """Ensure the bridge exists, up, with this host's addresses; return it. `mtu` 0: leave it.

    Its MAC derives from the IPv4 address, so that containers have a permanent entry for it.
    """
    mac = peers.derive_mac("b", gateway.ip)
    link = links.get_link(sock, name)
    if link is None:
        from orchestrator.cni.netlink import devices  # imports pyroute2

        try:
            devices.create_bridge(sock, name, mac)
        except NetlinkError as error:
            # Another process may have created it meanwhile.
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
            f"interface {name} exists and is not a bridge: remove it or choose another name",
        )
    if not link.up or link.mac != mac or (mtu and link.mtu != mtu):
        sock.execute(links.link_request(link.index, mtu=mtu, mac=mac))
        link = links.get_link(sock, index=link.index) or link
    addresses: list[IPv4Interface | IPv6Interface] = [gateway, *([gateway6] if gateway6 else [])]
    links.ensure_addresses(sock, link.index, addresses)
    routing.await_local(sock, [address.ip for address in addresses], RouteSocket)
    return link


def ports(sock: RouteSocket, name: str) -> list[Link]:
    """The ports of our veth pairs on the bridge of that name."""
    bridge = links.get_link(sock, name)
    if bridge is None:
        return []
    found = links.links(sock, master=bridge.index)
    return [port for port in found if port.kind == "veth" and port.name.startswith(VETH_PREFIX)]


def ensure_ports(
    sock: RouteSocket, bridge: Link, pairs: Collection[VethConfig]
) -> list[VethConfig]:
    """Ensure the ports of these pairs are on the bridge, up; return the pairs that do not exist.

    A bridge that was removed by hand is created again without its ports.
    """
    isolated = veth.isolated()
    present = {port.name: port for port in links.links(sock, master=bridge.index)}
    bridge_fdb = set(routing.bridge_fdb(sock, bridge.index))
    missing = []
    for pair in pairs:
        wanted = Port(True, isolated=isolated, learning=False, locked=pair.locked)
        end = present.get(pair.host)
        requests = []
        if end is None or not end.up or end.port != wanted:
            end = end or links.get_link(sock, pair.host)
            if end is None:
                missing.append(pair)
                continue
            requests = [
                links.link_request(end.index, master=bridge.index),
                links.port_request(end.index, pair.label, isolated=isolated, locked=pair.locked),
                links.enable_port_request(end.index),
            ]
        if (pair.mac, end.index) not in bridge_fdb:
            requests.append(routing.bridge_fdb_request(end.index, pair.mac))
        for outcome in sock.attempt(requests):
            # The port may be removed meanwhile, or the kernel may be about to enable it.
            if outcome is not None and outcome.errno not in (errno.ENODEV, errno.ENETDOWN):
                raise outcome
        if requests:
            veth.sync_carrier(sock, end.index, bridge.index)
    return missing


def ensure_host_entries(sock: RouteSocket, bridge: Link, pairs: Collection[VethConfig]) -> None:
    """Ensure exactly these containers' neighbour entries and host routes exist on the bridge.

    Routes to more than one address are not ours, and stay.
    """
    neighbours = {entry for pair in pairs for entry in pair.neighbours}
    wanted = {address for address, _ in neighbours}
    known = set(routing.neighbours(sock, bridge.index))
    routes = {route for pair in pairs for route in pair.host_routes}
    present = set(routing.routes(sock, bridge.index))
    alone = {
        route for route in present if route.gateway is None and route.destination.num_addresses == 1
    }
    stale: list[Request] = [
        routing.neighbour_request(bridge.index, address, mac, remove=True)
        for address, mac in known
        if address not in wanted
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
