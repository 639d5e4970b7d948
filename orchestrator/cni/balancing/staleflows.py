# SPDX-License-Identifier: Apache-2.0
"""Which tracked connections a change of the endpoint table ends; pure.

A flow keeps the endpoint that was chosen for its first packet. UDP clients that never stop would
keep sending to an endpoint that left: their flow is forgotten when its endpoint is no longer ready,
and when the VIP or port that it was sent to came, went or leads elsewhere, so that the next packet
starts a new flow. A TCP connection to an endpoint that is about to stop may end by itself; it is
forgotten when the endpoint is gone. A flow to a VIP without a translation began before the rules
existed: its retransmissions would go nowhere for minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from orchestrator.cni.balancing.endpointtable import Service
from orchestrator.cni.netlink import conntrack
from orchestrator.cni.netlink.conntrack import UDP, Flow


@dataclass(frozen=True, slots=True)
class Obsolete:
    """Flows that are to be forgotten: those for which `doomed` holds; all that can be for which it
    does were `translated`."""

    doomed: Callable[[Flow], bool]
    translated: bool = True


def _endpoints(services: Iterable[Service]) -> dict[bytes, bool]:
    """Address → whether it gets new connections."""
    return {
        address.packed: endpoint.ready
        for service in services
        for endpoint in service.endpoints
        for address in (endpoint.address, endpoint.address6)
        if address is not None
    }


def _translates(service: Service) -> bool:
    return bool(service.vip or service.vip6 or service.ports)


def _vips(services: Iterable[Service]) -> set[bytes]:
    found = ((service.vip, service.vip6) for service in services)
    return {vip.packed for pair in found for vip in pair if vip is not None}


def _ports(services: Iterable[Service]) -> set[tuple[int, int]]:
    """UDP port → the endpoints' port."""
    return {
        (port.port, port.target)
        for service in services
        for port in service.ports
        if port.protocol == "udp"
    }


def obsolete(before: Collection[Service], after: Collection[Service]) -> Obsolete | None:
    """The flows that end when these services, as they were, become what they are; None: none.

    What has neither a VIP nor a port, as most containers, is reached by its own address alone, so
    its coming and going ends none: the table of flows, which takes long to read, is not looked at.
    """
    was, now = _endpoints(filter(_translates, before)), _endpoints(after)
    gone = was.keys() - now.keys()
    silent = {address for address, ready in was.items() if ready and not now.get(address)}
    vips = _vips(before) ^ _vips(after)
    ports = {port for port, _ in _ports(before) ^ _ports(after)}
    if not (gone or silent or vips or ports):
        return None

    def doomed(flow: Flow) -> bool:
        if flow.protocol != UDP:
            return flow.server in gone or (flow.asked in vips and flow.server == flow.asked)
        return flow.server in silent or flow.asked in vips or flow.port in ports

    return Obsolete(doomed, translated=not (vips or ports))


def stranded(
    services: Collection[Service], networks: Iterable[IPv4Network | IPv6Network]
) -> Obsolete:
    """The flows that do not fit these services: to an address of the networks that no endpoint has,
    or to a VIP or port without a translation."""
    now, ranges = _endpoints(services), tuple(networks)
    vips, ports = _vips(services), {port for port, _ in _ports(services)}

    def doomed(flow: Flow) -> bool:
        if flow.server == flow.asked:
            return flow.asked in vips or (flow.protocol == UDP and flow.port in ports)
        if now.get(flow.server, flow.protocol != UDP and flow.server in now):
            return False
        address = conntrack.address(flow.server)
        return address is not None and any(address in one for one in ranges)

    return Obsolete(doomed, translated=False)
