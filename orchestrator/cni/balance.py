"""A service's VIP and published ports as nftables rules; pure.

A service has a chain that picks an endpoint for a new connection. Maps lead there by the address
(and the bridge that the packet came by, so that a VIP is known in its own network only) or by the
published port, in one look-up however many services there are. The kernel asks them for the first
packet of a connection only; the translation then is part of the connection, and stays what it is
when endpoints come and go.

A port is published on the node's own addresses. That of a network's bridge belongs to the network,
with the name server on it.

A service with no ready endpoint refuses at once, as a host does on which nothing listens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

from .endpoints import Endpoint, Service
from .ruleset import INET, Chain, Part

VIPS4, VIPS6, PORTS = f"{INET} vips4", f"{INET} vips6", f"{INET} ports"

PICK = (
    "iifname . ip daddr vmap @vips4",
    "iifname . ip6 daddr vmap @vips6",
)
OWN = "iifname @bridges fib daddr . iif type local return"
PICK_BY_PORT = "fib daddr type local meta l4proto { tcp, udp } meta l4proto . th dport vmap @ports"

BASE = Part(
    sets={
        VIPS4: "map {name} {{ type ifname . ipv4_addr : verdict; }}",
        VIPS6: "map {name} {{ type ifname . ipv6_addr : verdict; }}",
        PORTS: "map {name} {{ type inet_proto . inet_service : verdict; }}",
    },
    chains={
        f"{INET} prerouting": Chain(
            (*PICK, OWN, PICK_BY_PORT), "type nat hook prerouting priority dstnat;"
        ),
        f"{INET} output": Chain((PICK_BY_PORT,), "type nat hook output priority -100;"),
    },
)


def part(service: Service, bridge: str) -> Part:
    """The rules of one service in a network; `bridge` is the network's on this node."""
    name = f"service/{service.id}/{service.network}"
    chains = {}
    if service.vip or service.vip6 or any(port.port == port.target for port in service.ports):
        chains[f"{INET} {name}"] = Chain(_choice(service.endpoints, 0))
    ports = {}
    for port in service.ports:
        chosen = name
        if port.port != port.target:
            chosen = f"{name}/{port.target}"
            chains[f"{INET} {chosen}"] = Chain(_choice(service.endpoints, port.target))
        ports[f"{port.protocol} . {port.port}"] = f"jump {chosen}"
    elements = {PORTS: ports}
    for vips, vip in ((VIPS4, service.vip), (VIPS6, service.vip6)):
        if vip is not None:
            elements[vips] = {f'"{bridge}" . {vip}': f"jump {name}"}
    return Part(chains, {}, elements)


def ready(endpoints: Iterable[Endpoint]) -> tuple[list[IPv4Address], list[IPv6Address]]:
    """The addresses that new connections go to, in an order of their own."""
    takers = [endpoint for endpoint in endpoints if endpoint.ready]
    return (
        sorted({taker.address for taker in takers if taker.address is not None}),
        sorted({taker.address6 for taker in takers if taker.address6 is not None}),
    )


def _choice(endpoints: Sequence[Endpoint], port: int) -> tuple[str, ...]:
    """Rules that pick one of the endpoints; `port` 0 keeps the one that was asked for."""
    ipv4, ipv6 = ready(endpoints)
    transport = "meta l4proto { tcp, udp } " if port else ""
    suffix = f" . {port}" if port else ""
    rules: list[str] = []
    for family, addresses, unreachable in (
        ("ip", [str(address) for address in ipv4], "icmp port-unreachable"),
        ("ip6", [str(address) for address in ipv6], "icmpv6 port-unreachable"),
    ):
        protocol = "ipv4" if family == "ip" else "ipv6"
        if addresses:
            listed = ", ".join(f"{n} : {one}{suffix}" for n, one in enumerate(addresses))
            rules.append(
                f"meta nfproto {protocol} {transport}"
                f"dnat {family} to numgen inc mod {len(addresses)} map {{ {listed} }}"
            )
        else:
            rules += [
                f"meta nfproto {protocol} meta l4proto tcp reject with tcp reset",
                f"meta nfproto {protocol} reject with {unreachable}",
            ]
    return tuple(rules)
