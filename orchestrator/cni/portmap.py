"""Published ports and masquerade: the table `ip orc`, ours alone.

A published port is one element of a map, so that publishing one touches no other, and a look-up
costs the same for one port and for ten thousand. A network has two chains of its own:

  masquerade_<bridge>   what leaves the network takes the host's address; so does what was sent to
                        a published port from the host's loopback, or from the container that the
                        port leads to, since nobody takes a packet from himself off a wire
  guard_<bridge>        route_localnet makes 127.0.0.1 reachable through the bridge's device, which
                        published ports need and containers must not use (cf. CVE-2020-8558)

Neighbours reach each other by the bridge's address, so that their packets pass these rules. The
host does not tell them of a shorter way.

Rules that others made are in tables of their own and never touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from .config import ANY_ADDRESS, PortMapping
from .errors import CniError, Code
from .nft import Nftables, NftError, failed

TABLE = "ip orc"
ANYWHERE, AT_ADDRESS = "published", "published_at"
SELVES, BRIDGES = "selves", "bridges"
GONE, TAKEN = "No such file or directory", "File exists"

Target = tuple[PortMapping, IPv4Address]

BASE = f"""
add table {TABLE}
add map {TABLE} {ANYWHERE} {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map {TABLE} {AT_ADDRESS} {{
    type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add set {TABLE} {SELVES} {{ type ipv4_addr . ipv4_addr; }}
add set {TABLE} {BRIDGES} {{ type ifname; }}
add chain {TABLE} ports
add chain {TABLE} redirects {{ type filter hook output priority filter; }}
add chain {TABLE} prerouting {{ type nat hook prerouting priority dstnat; }}
add chain {TABLE} output {{ type nat hook output priority -100; }}
flush chain {TABLE} ports
flush chain {TABLE} redirects
flush chain {TABLE} prerouting
flush chain {TABLE} output
add rule {TABLE} redirects icmp type redirect oifname @{BRIDGES} drop
add rule {TABLE} ports dnat ip to ip daddr . meta l4proto . th dport map @{AT_ADDRESS}
add rule {TABLE} ports dnat ip to meta l4proto . th dport map @{ANYWHERE}
add rule {TABLE} prerouting iifname @{BRIDGES} fib daddr . iif type local return
add rule {TABLE} prerouting fib daddr type local jump ports
add rule {TABLE} output fib daddr type local jump ports
"""

EMPTY = f"""
flush map {TABLE} {ANYWHERE}
flush map {TABLE} {AT_ADDRESS}
flush set {TABLE} {SELVES}
"""


def _chains(bridge: str, subnet: IPv4Network, cluster: IPv4Network, masquerade: bool) -> str:
    out, guard = f"{TABLE} masquerade_{bridge}", f"{TABLE} guard_{bridge}"
    script = f"""
add chain {out} {{ type nat hook postrouting priority srcnat; }}
add chain {guard} {{ type filter hook prerouting priority raw; }}
flush chain {out}
flush chain {guard}
add element {TABLE} {BRIDGES} {{ "{bridge}" }}
add rule {guard} iifname "{bridge}" ip daddr 127.0.0.0/8 drop
add rule {out} oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade
add rule {out} oifname "{bridge}" ip saddr . ip daddr @{SELVES} masquerade
"""
    if masquerade:
        # Only this host's containers: another host's come here masqueraded, or not at all.
        inside = f"{{ {cluster}, 224.0.0.0/4, 255.255.255.255 }}"
        script += f"add rule {out} ip saddr {subnet} ip daddr != {inside} masquerade\n"
    return script


def _map(port: PortMapping) -> str:
    return ANYWHERE if port.host_ip == ANY_ADDRESS else AT_ADDRESS


def _key(port: PortMapping) -> str:
    key = f"{port.protocol} . {port.host_port}"
    return key if port.host_ip == ANY_ADDRESS else f"{port.host_ip} . {key}"


def _put(targets: Iterable[Target]) -> str:
    """Who had a port once stays among the selves until the next `restore`: what is true of an
    address there is true of any."""
    return "".join(
        f"add element {TABLE} {_map(port)} {{ {_key(port)} : {address} . {port.container_port} }}\n"
        f"add element {TABLE} {SELVES} {{ {address} . {address} }}\n"
        for port, address in targets
    )


def ensure(
    nft: Nftables,
    bridge: str,
    subnet: IPv4Network,
    cluster: IPv4Network,
    masquerade: bool,
) -> None:
    """Have the table and the chains of one network; what is published stays published."""
    try:
        nft.run(BASE + _chains(bridge, subnet, cluster, masquerade))
    except NftError as error:
        raise failed("nftables rules", error) from error


def restore(nft: Nftables, targets: Iterable[Target]) -> None:
    """Have exactly these ports published; in one transaction, so that none is out meanwhile."""
    try:
        nft.run(EMPTY + _put(targets))
    except NftError as error:
        raise failed("published ports", error) from error


def publish(nft: Nftables, targets: Iterable[Target]) -> None:
    """Publish ports, all or none; those that already are, with the same target, are fine."""
    script = _put(targets)
    try:
        if script:
            nft.run(script)
    except NftError as error:
        if TAKEN in str(error):
            raise CniError(
                Code.PORT_IN_USE,
                "a port is already published to another container of this host",
                str(error),
            ) from error
        raise failed("published ports", error) from error


def withdraw(nft: Nftables, ports: Iterable[PortMapping]) -> None:
    """Publish these no more, whatever they lead to; what is not published is fine."""
    for port in ports:
        try:
            nft.run(f"delete element {TABLE} {_map(port)} {{ {_key(port)} }}")
        except NftError as error:
            if GONE not in str(error):
                raise failed(f"published port {port}", error) from error


def missing(nft: Nftables, targets: Iterable[Target]) -> str:
    """Which of these ports is not published as it should be, in words; empty if all are."""
    for port, address in targets:
        try:
            found = nft.run(f"get element {TABLE} {_map(port)} {{ {_key(port)} }}")
        except NftError:
            found = ""
        if f": {address} . {port.container_port}" not in " ".join(found.split()):
            return f"port {port} of this host no longer leads to {address}"
    return ""


def remove(nft: Nftables, bridge: str, *, last: bool) -> None:
    """Remove the chains of a network; with the `last` one goes the table."""
    objects = [f"table {TABLE}"]
    if not last:
        objects = [f"chain {TABLE} {role}_{bridge}" for role in ("masquerade", "guard")]
        objects.append(f'element {TABLE} {BRIDGES} {{ "{bridge}" }}')
    for name in objects:
        try:
            nft.run(f"delete {name}")
        except NftError as error:
            if GONE not in str(error):
                raise failed("nftables rules", error) from error
