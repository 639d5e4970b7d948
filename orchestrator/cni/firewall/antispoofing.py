# SPDX-License-Identifier: Apache-2.0
"""Source addresses bound to each container's port (anti-spoofing); pure.

A container may open raw sockets (CAP_NET_RAW), so nothing that it sends can be trusted to carry its
own addresses. What it sends is checked where it enters this host, before routing, translation and
policies:

Hardware address    The port of the bridge is locked: the bridge drops frames from another address
                    than the one that is stated to be behind the port (`links.port_request`).
IP                  The pair of hardware address and source address must be one of a container of
                    this network, else the packet is dropped. Of IPv6, each container also has the
                    link-local address that derives from its hardware address (RFC 4291, appendix
                    A), and may ask whether its own addresses are in use (`::`, RFC 4862).
Neighbours (IPv6)   An advertisement must be for an address of the sender's. Router advertisements
                    and redirects are dropped: a container is no router.
Neighbours (IPv4)   The sender of an ARP packet, in the frame as in the packet, must be such a pair.
Bridged frames      Where bridged packets pass the rules (br_netfilter), ports are not isolated from
                    each other (`overlay.veth`). What would pass no rule is dropped between them:
                    all but IP, which is not needed, since all containers send to the gateway.

A network whose containers forward for others (VPN gateways, floating addresses) has none of this
if its configuration says so (`sourceCheck`): ports are not locked, and sources not looked at.

What is dropped is counted for each container, by its hardware address, which the locked port
vouches for: see `forgers`.

The pairs are elements of one set for each network and family, so that a packet costs two look-ups,
whatever the number of networks and containers, and a container costs an element of each set, in the
transaction that its ADD makes anyway.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, collapse_addresses
from pathlib import Path

from orchestrator.cni.fastrecord import record
from orchestrator.cni.firewall.nftables import ARP_TABLE, BRIDGE_TABLE, TABLE
from orchestrator.cni.netlink.links import Address, Network

ENTRANCES = (f"{TABLE} entrances", f"{ARP_TABLE} entrances")
"""The maps from a bridge to the chain of its network, for IP and for ARP."""
ROUTER = "{ nd-router-advert, nd-redirect }"
MULTICAST_REPORTS = "{ mld-listener-report, mld-listener-done, mld2-listener-report }"
"""ICMPv6 types of a router, and of those that join groups, which begins before they have an
address."""
MOST_FORGERS = 4096
_DROPPED = re.compile(r"([0-9a-f:]{17})[^,}]*? packets (\d+)")
BRIDGED_PASS_RULES = {
    "ip": Path("/proc/sys/net/bridge/bridge-nf-call-iptables"),
    "ip6": Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
}
"""By family, as nftables names it."""
VETHS = '"orcv*"'
"""The ports of our bridges; see `overlay.veth.VETH_PREFIX`."""


@record
class End:
    """A container's end of a cable: what it may send as, by which bridge."""

    bridge: str
    mac: str
    addresses: tuple[Address, ...]


def link_local(mac: str) -> IPv6Address:
    """The address that a kernel gives an interface by its hardware address (modified EUI-64)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([raw[0] ^ 0x02]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def sets(bridge: str) -> tuple[str, str, str]:
    """The sets of a network: sources in IPv4 and IPv6, senders of ARP."""
    return f"{TABLE} own4_{bridge}", f"{TABLE} own6_{bridge}", f"{ARP_TABLE} own_{bridge}"


def elements(end: End) -> Iterator[tuple[str, str]]:
    """Which sets have which elements for a container."""
    own4, own6, senders = sets(end.bridge)
    for address in end.addresses:
        key = f"{end.mac} . {address}"
        if isinstance(address, IPv4Address):
            yield own4, key
            yield senders, key
        else:
            yield own6, key
    yield own6, f"{end.mac} . {link_local(end.mac)}"


def bind(ends: Iterable[End]) -> str:
    """The script that adds these containers to the sets."""
    found: dict[str, list[str]] = {}
    for end in ends:
        for name, key in elements(end):
            found.setdefault(name, []).append(key)
    return "".join(f"add element {name} {{ {', '.join(keys)} }}\n" for name, keys in found.items())


def rebind(bridge: str, ends: Iterable[End]) -> str:
    """The script that has exactly these containers in the sets of their network."""
    return "".join(f"flush set {name}\n" for name in sets(bridge)) + bind(ends)


def forgers(bridge: str) -> tuple[str, str]:
    """The sets with the hardware addresses whose packets were dropped, and how many: of IP and of
    ARP. An element goes an hour after its last packet."""
    return f"{TABLE} forgers_{bridge}", f"{ARP_TABLE} forgers_{bridge}"


def dropped(listed: str) -> dict[str, int]:
    """Packets by hardware address, as nft lists such a set."""
    return {mac: int(packets) for mac, packets in _DROPPED.findall(listed)}


def listed(networks: Iterable[Network], version: int) -> str:
    """Those of one family as a set in nft's language; empty if there are none."""
    found = merged(one for one in networks if one.version == version)
    return f"{{ {', '.join(map(str, found))} }}" if found else ""


def _drop(table: str, bridge: str) -> list[str]:
    """Count and drop. Two rules: where the set is full, the first does nothing."""
    chain = f"{table} forged_{bridge}"
    return [
        f"add set {table} forgers_{bridge} {{ type ether_addr; size {MOST_FORGERS};"
        " flags dynamic,timeout; timeout 1h; }",
        f"add chain {chain}",
        f"flush chain {chain}",
        f"add rule {chain} update @forgers_{bridge} {{ ether saddr counter }}",
        f"add rule {chain} drop",
    ]


def merged(networks: Iterable[Network]) -> list[Network]:
    """The same addresses in networks that do not overlap; all of one family."""
    return list(collapse_addresses(networks))  # type: ignore[type-var]


def script(bridge: str, allowed: Collection[Network] | None = ()) -> str:
    """The sets and rules of a network; what the sets have stays.

    `allowed` are the networks that containers may have sources of besides their own; None: they may
    have any, and are still no routers of this host's.
    """
    own4, own6, senders = sets(bridge)
    four, six, arp = (f"@{name.split()[2]}" for name in (own4, own6, senders))
    chain, joining, drop = f"from_{bridge}", f"joining_{bridge}", f"goto forged_{bridge}"
    others4, others6 = (listed(allowed or (), version) for version in (4, 6))
    but4, but6 = (others and f"!= {others}" for others in (others4, others6))
    advert = "icmpv6 type nd-neighbor-advert"
    rules = [
        f"ether saddr . ip saddr {four} return",
        *([f"ip saddr {others4} return"] if others4 else []),
        f"meta nfproto ipv4 {drop}",
        f"ip6 saddr :: goto {joining}",
        f"ether saddr . ip6 saddr != {six} {but6 and f'ip6 saddr {but6}'} {drop}",
        f"{advert} ether saddr . icmpv6 taddr != {six} {but6 and f'icmpv6 taddr {but6}'} {drop}",
        f"icmpv6 type {ROUTER} {drop}",
    ]
    # What a kernel sends before it has an address; that it joins groups is no forgery.
    joining_rules = [
        f"icmpv6 type nd-neighbor-solicit ether saddr . icmpv6 taddr {six} return",
        *([f"icmpv6 type nd-neighbor-solicit icmpv6 taddr {others6} return"] if others6 else []),
        f"icmpv6 type {MULTICAST_REPORTS} drop",
        drop,
    ]
    besides = but4 and f"arp saddr ip {but4}"
    senders_rules = [
        f"arp saddr ether . arp saddr ip != {arp} {besides} {drop}",
        f"ether saddr . arp saddr ip != {arp} {besides} {drop}",
    ]
    if allowed is None:
        rules, senders_rules = [f"icmpv6 type {ROUTER} {drop}"], []
    lines = [
        f"add set {own4} {{ type ether_addr . ipv4_addr; }}",
        f"add set {own6} {{ type ether_addr . ipv6_addr; }}",
        *_drop(TABLE, bridge),
        f"add chain {TABLE} {joining}",
        f"flush chain {TABLE} {joining}",
        *(f"add rule {TABLE} {joining} {rule}" for rule in joining_rules),
        f"add chain {TABLE} {chain}",
        f"flush chain {TABLE} {chain}",
        *(f"add rule {TABLE} {chain} {rule}" for rule in rules),
        f'add element {TABLE} entrances {{ "{bridge}" : jump {chain} }}',
        f"add table {ARP_TABLE}",
        f"add map {ARP_TABLE} entrances {{ type ifname : verdict; }}",
        f"add chain {ARP_TABLE} arriving {{ type filter hook input priority filter; }}",
        f"flush chain {ARP_TABLE} arriving",
        f"add rule {ARP_TABLE} arriving iifname vmap @entrances",
        f"add set {senders} {{ type ether_addr . ipv4_addr; }}",
        *_drop(ARP_TABLE, bridge),
        f"add chain {ARP_TABLE} {chain}",
        f"flush chain {ARP_TABLE} {chain}",
        *(f"add rule {ARP_TABLE} {chain} {rule}" for rule in senders_rules),
        f'add element {ARP_TABLE} entrances {{ "{bridge}" : jump {chain} }}',
    ]
    return "\n".join(lines) + "\n"


def bridged_families() -> list[str]:
    """The families (`ip`, `ip6`) whose bridged packets pass the rules."""
    return [family for family, path in BRIDGED_PASS_RULES.items() if _switched_on(path)]


def _switched_on(path: Path) -> bool:
    try:
        return path.read_text().strip() != "0"
    except OSError:  # the kernel has no br_netfilter, or has not loaded it
        return False


def between_ports(families: Iterable[str]) -> str:
    """The script for a host whose bridged packets of these families (`ip`, `ip6`) pass the rules:
    frames of all others pass between no two containers. None: no rule, as ports are isolated."""
    passing = ", ".join(families)
    if not passing:
        return ""
    lines = [
        f"add table {BRIDGE_TABLE}",
        f"add chain {BRIDGE_TABLE} passing {{ type filter hook forward priority filter; }}",
        f"flush chain {BRIDGE_TABLE} passing",
        f"add rule {BRIDGE_TABLE} passing iifname {VETHS} ether type != {{ {passing} }} drop",
    ]
    return "\n".join(lines) + "\n"


def _gone(table: str, chains: Iterable[str]) -> Iterator[str]:
    for chain in chains:
        yield f"add chain {table} {chain}"
        yield f"flush chain {table} {chain}"
        yield f"delete chain {table} {chain}"


def removal(bridge: str) -> str:
    """The reverse of a network's `script`; what is not there is fine."""
    names, chain = sets(bridge), f"from_{bridge}"
    lines = []
    for table in (TABLE, ARP_TABLE):
        element = f'{table} entrances {{ "{bridge}" : jump {chain} }}'
        lines += [
            f"add table {table}",
            f"add map {table} entrances {{ type ifname : verdict; }}",
            f"add chain {table} {chain}",
            f"add element {element}",
            f"delete element {element}",
            *_gone(table, [chain, f"joining_{bridge}", f"forged_{bridge}"]),
        ]
    kinds = ("ipv4_addr", "ipv6_addr", "ipv4_addr")
    lines += [
        f"{verb} set {name}{f' {{ type ether_addr . {kind}; }}' if verb == 'add' else ''}"
        for name, kind in zip(names, kinds, strict=True)
        for verb in ("add", "delete")
    ]
    for table in (TABLE, ARP_TABLE):
        lines += [_drop(table, bridge)[0], f"delete set {table} forgers_{bridge}"]
    return "\n".join(lines) + "\n"
