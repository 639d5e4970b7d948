# SPDX-License-Identifier: Apache-2.0
"""Which tracked connections become stale by a change of the endpoint table; pure.

A flow keeps the endpoint that was selected for its first packet. A UDP client that never stops
would keep sending to an endpoint that left: its flow is deleted when the endpoint is no longer
ready, and when the VIP or port to which it was sent is added, removed or has another target, so
that the next packet starts a new flow. A TCP connection to an endpoint that is about to stop may
end regularly; it is deleted when the endpoint is gone. A flow to a VIP without NAT began before the
rules existed: its retransmissions would go nowhere for minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from orchestrator.cni.balancing.endpointtable import Service
from orchestrator.cni.netlink import conntrack
from orchestrator.cni.netlink.conntrack import UDP, Flow


@dataclass(frozen=True, slots=True)
class StaleFlows:
    """Flows to delete: those for which `stale` holds. `translated`: it holds only for flows whose
    destination was translated."""

    stale: Callable[[Flow], bool]
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


def after_change(before: Collection[Service], after: Collection[Service]) -> StaleFlows | None:
    """The flows that a change of these services makes stale; None if there can be none.

    Services with neither VIP nor port, as most containers, are reached by their own addresses only:
    their changes need no look at the flow table, which takes long to read.
    """
    was, now = _endpoints(filter(_translates, before)), _endpoints(after)
    gone = was.keys() - now.keys()
    not_ready = {address for address, ready in was.items() if ready and not now.get(address)}
    vips = _vips(before) ^ _vips(after)
    ports = {port for port, _ in _ports(before) ^ _ports(after)}
    if not (gone or not_ready or vips or ports):
        return None

    def stale(flow: Flow) -> bool:
        if flow.protocol != UDP:
            return flow.server in gone or (
                flow.destination in vips and flow.server == flow.destination
            )
        return flow.server in not_ready or flow.destination in vips or flow.port in ports

    return StaleFlows(stale, translated=not (vips or ports))


def after_restart(
    services: Collection[Service], networks: Iterable[IPv4Network | IPv6Network]
) -> StaleFlows:
    """The stale flows if the previous state is unknown: to an address of the networks that no
    endpoint has, or to a VIP or port without NAT."""
    now, ranges = _endpoints(services), tuple(networks)
    vips, ports = _vips(services), {port for port, _ in _ports(services)}

    def stale(flow: Flow) -> bool:
        if flow.server == flow.destination:
            return flow.destination in vips or (flow.protocol == UDP and flow.port in ports)
        if now.get(flow.server, flow.protocol != UDP and flow.server in now):
            return False
        address = conntrack.address(flow.server)
        return address is not None and any(address in one for one in ranges)

    return StaleFlows(stale, translated=False)
