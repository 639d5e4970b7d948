# SPDX-License-Identifier: Apache-2.0
"""A service's VIP and published ports as nftables rules; pure.

A service has a chain that selects an endpoint for a new connection. Maps lead there by the VIP and
the incoming bridge, so that a VIP works in its own network only, or by the published port, in one
look-up whatever the number of services. The kernel evaluates them for the first packet of a
connection only; its NAT does not change when endpoints do.

A port is published on the node's own addresses, except those of networks' bridges, on which the
name server listens.

A service with no ready endpoint rejects connections at once, as a closed port does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from orchestrator.cni.balancing.endpointtable import Endpoint, Published, Service
from orchestrator.cni.firewall.ruleset import INET, Chain, RuleFragment

VIPS4, VIPS6, PORTS = f"{INET} vips4", f"{INET} vips6", f"{INET} ports"


class Family(NamedTuple):
    """An address family, as nftables names it in a match and in NAT."""

    protocol: str
    keyword: str


IPV4, IPV6 = Family("ipv4", "ip"), Family("ipv6", "ip6")

PICK = (
    "iifname . ip daddr vmap @vips4",
    "iifname . ip6 daddr vmap @vips6",
)
OWN = "iifname @bridges fib daddr . iif type local return"
PICK_BY_PORT = "fib daddr type local meta l4proto { tcp, udp } meta l4proto . th dport vmap @ports"

BASE = RuleFragment(
    sets={
        VIPS4: "map {name} {{ type ifname . ipv4_addr : verdict; }}",
        VIPS6: "map {name} {{ type ifname . ipv6_addr : verdict; }}",
        PORTS: "map {name} {{ type inet_proto . inet_service : verdict; }}",
    },
    chains={
        f"{INET} refused": Chain(
            (
                "meta l4proto tcp reject with tcp reset",
                "reject with icmpx port-unreachable",
            )
        ),
        f"{INET} prerouting": Chain(
            (*PICK, OWN, PICK_BY_PORT), "type nat hook prerouting priority dstnat;"
        ),
        f"{INET} output": Chain((PICK_BY_PORT,), "type nat hook output priority -100;"),
    },
)


def fragment(service: Service, bridge: str) -> RuleFragment:
    """The rules of one service in a network; `bridge` is the network's bridge on this node."""
    name = f"service/{service.id}/{service.network}"
    chains = {}
    elements: dict[str, dict[str, str]] = {PORTS: {}}
    families = set()
    for family, vips, vip in ((IPV4, VIPS4, service.vip), (IPV6, VIPS6, service.vip6)):
        if vip is not None:
            families.add(family)
            elements[vips] = {f'"{bridge}" . {vip}': f"jump {name}"}
    if families:
        chains[f"{INET} {name}"] = Chain(_choice(service, families))
    for port in service.ports:
        chosen = f"{name}/{port.protocol}/{port.target}"
        chains[f"{INET} {chosen}"] = Chain(_choice(service, _families(service), port))
        elements[PORTS][f"{port.protocol} . {port.port}"] = f"jump {chosen}"
    return RuleFragment(chains, {}, elements)


def _families(service: Service) -> set[Family]:
    """The families in which the service's tasks have addresses; both while it has no task."""
    found = {IPV4} if any(one.address is not None for one in service.endpoints) else set()
    if any(one.address6 is not None for one in service.endpoints):
        found.add(IPV6)
    return found or {IPV4, IPV6}


def ready(endpoints: Iterable[Endpoint]) -> tuple[list[IPv4Address], list[IPv6Address]]:
    """The addresses for new connections, sorted."""
    ready_endpoints = [endpoint for endpoint in endpoints if endpoint.ready]
    return (
        sorted({endpoint.address for endpoint in ready_endpoints if endpoint.address is not None}),
        sorted(
            {endpoint.address6 for endpoint in ready_endpoints if endpoint.address6 is not None}
        ),
    )


def _choice(
    service: Service, families: Collection[Family], port: Published | None = None
) -> tuple[str, ...]:
    """Rules that select one of the endpoints; without `port` the destination port stays.

    Redundant matches are left out: a change of a thousand services is mostly making rules.
    """
    ipv4, ipv6 = ready(service.endpoints)
    transport = f"meta l4proto {port.protocol} " if port else ""
    suffix = f" . {port.target}" if port else ""
    rules = []
    for family, addresses in ((IPV4, list(map(str, ipv4))), (IPV6, list(map(str, ipv6)))):
        if family not in families:
            continue
        only = f"meta nfproto {family.protocol} "
        if addresses:
            listed = ", ".join(f"{n} : {one}{suffix}" for n, one in enumerate(addresses))
            pick = f"numgen inc mod {len(addresses)} map {{ {listed} }}"
            rules.append(f"{only}{transport}dnat {family.keyword} to {pick}")
        else:
            rules.append(f"{only}goto refused")
    return tuple(rules)
