# SPDX-License-Identifier: Apache-2.0
"""Source addresses bound to each container's bridge port (anti-spoofing); pure.

A container may open raw sockets (CAP_NET_RAW) and so send with any source address. Its packets are
checked where they enter this host, before routing, NAT and policies:

MAC                 The bridge port is locked: the bridge drops frames from another MAC than that of
                    the port's FDB entry (`links.port_request`).
IP                  The pair of MAC and source address must be that of a container of this network.
                    In IPv6 each container also has the link-local address that derives from its MAC
                    (RFC 4291, appendix A), and may do duplicate address detection for its own
                    addresses (from `::`, RFC 4862).
Neighbours (IPv6)   An advertisement must be for an address of the sender. Router advertisements and
                    redirects are dropped.
Neighbours (IPv4)   The sender of an ARP packet, in the frame and in the packet, must be such a
pair. Bridged frames      Where bridged packets pass the rules (br_netfilter), ports are not
isolated from
                    each other (`overlay.veth`). Frames that pass no rule, all but IP, are dropped
                    between ports: they are not needed, since all containers send to the gateway.

For a network whose containers forward packets of others (VPN gateways, floating addresses), the
configuration can switch this off (`sourceCheck`): ports are not locked, sources not checked.

Dropped packets are counted per container, by its MAC, which the locked port guarantees: see
`forgers`.

The pairs are elements of one set for each network and family, so that a packet costs two look-ups,
whatever the number of networks and containers, and a container costs an element of each set, in the
transaction of its ADD.
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
"""ICMPv6 types of routers, and of group membership, which are sent before a host has an
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
class SourceBinding:
    """The MAC and source addresses that a container may use on a bridge."""

    bridge: str
    mac: str
    addresses: tuple[Address, ...]


def link_local(mac: str) -> IPv6Address:
    """The link-local address of an interface with that MAC (modified EUI-64)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([raw[0] ^ 0x02]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def sets(bridge: str) -> tuple[str, str, str]:
    """The sets of a network: IPv4 sources, IPv6 sources, ARP senders."""
    return f"{TABLE} own4_{bridge}", f"{TABLE} own6_{bridge}", f"{ARP_TABLE} own_{bridge}"


def elements(binding: SourceBinding) -> Iterator[tuple[str, str]]:
    """The (set, element) pairs of a container."""
    own4, own6, senders = sets(binding.bridge)
    for address in binding.addresses:
        key = f"{binding.mac} . {address}"
        if isinstance(address, IPv4Address):
            yield own4, key
            yield senders, key
        else:
            yield own6, key
    yield own6, f"{binding.mac} . {link_local(binding.mac)}"


def bind(bindings: Iterable[SourceBinding]) -> str:
    """The script that adds these containers to the sets."""
    found: dict[str, list[str]] = {}
    for binding in bindings:
        for name, key in elements(binding):
            found.setdefault(name, []).append(key)
    return "".join(f"add element {name} {{ {', '.join(keys)} }}\n" for name, keys in found.items())


def rebind(bridge: str, bindings: Iterable[SourceBinding]) -> str:
    """The script that replaces the containers in the sets of their network."""
    return "".join(f"flush set {name}\n" for name in sets(bridge)) + bind(bindings)


def forgers(bridge: str) -> tuple[str, str]:
    """The sets with counters of dropped packets by MAC: for IP and for ARP. An element expires an
    hour after its last packet."""
    return f"{TABLE} forgers_{bridge}", f"{ARP_TABLE} forgers_{bridge}"


def dropped(listed: str) -> dict[str, int]:
    """Packets by MAC, from nft's listing of such a set."""
    return {mac: int(packets) for mac, packets in _DROPPED.findall(listed)}


def listed(networks: Iterable[Network], version: int) -> str:
    """The networks of one family as an nft set; empty if there are none."""
    found = merged(one for one in networks if one.version == version)
    return f"{{ {', '.join(map(str, found))} }}" if found else ""


def _drop(table: str, bridge: str) -> list[str]:
    """A chain that counts and drops, in two rules: the first has no effect if the set is full."""
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
    """The same addresses as networks that do not overlap; all of one family."""
    return list(collapse_addresses(networks))  # type: ignore[type-var]


def script(bridge: str, allowed: Collection[Network] | None = ()) -> str:
    """The sets and rules of a network; elements of the sets are kept.

    `allowed` are networks of further sources that containers may use; None: any source, but still
    no router advertisements and redirects.
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
    # Sent before an interface has an address; membership reports are dropped without counting.
    joining_rules = [
        f"icmpv6 type nd-neighbor-solicit ether saddr . icmpv6 taddr {six} return",
        *([f"icmpv6 type nd-neighbor-solicit icmpv6 taddr {others6} return"] if others6 else []),
        f"icmpv6 type {MULTICAST_REPORTS} drop",
        drop,
    ]
    not_allowed = but4 and f"arp saddr ip {but4}"
    senders_rules = [
        f"arp saddr ether . arp saddr ip != {arp} {not_allowed} {drop}",
        f"ether saddr . arp saddr ip != {arp} {not_allowed} {drop}",
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
    except OSError:  # br_netfilter is missing or not loaded
        return False


def between_ports(families: Iterable[str]) -> str:
    """The script for a host whose bridged packets of these families (`ip`, `ip6`) pass the rules:
    it drops all other frames between containers. Empty for no family, as ports are isolated."""
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
    """The reverse of a network's `script`; works also if parts are missing."""
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
