# SPDX-License-Identifier: Apache-2.0
"""Anti-spoofing for containers on networks of other plugins (CNI plugins, Docker's plugins).

Where such a container's interface is a veth whose peer is on this host, as the plugins `bridge` and
`ptp` create it, its packets are checked at the peer: in a chain at the netdev ingress hook, before
bridges, routing and other rules. The checks are those of `antispoofing`: the MAC, IPv4 and IPv6
sources, the sender in ARP, the target of neighbour advertisements; router advertisements and
redirects are dropped. They use the addresses in the plugins' results:

- Without a MAC in the result, the MAC is not checked, and any link-local address is allowed.
- Without an IP address in the result (a layer 2 network), only the MAC is checked.
- Addresses leased by DHCP are renewed from 0.0.0.0.
- A network may allow further sources.

Packets of an interface without such a peer (macvlan, ipvlan, host-device, SR-IOV) bypass this
host's network stack and cannot be checked here.

The table `netdev orc_guests` has a chain and a counter of dropped packets for each such peer, named
after its index. The kernel removes a chain with its interface.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from ipaddress import ip_network

from orchestrator.cni import jsonfields
from orchestrator.cni.fastrecord import TYPE_CHECKING, record
from orchestrator.cni.firewall import antispoofing, nftables
from orchestrator.cni.firewall.nftables import Nftables, NftError, failed
from orchestrator.cni.netlink import links, namespaces
from orchestrator.cni.netlink.links import Address, Network
from orchestrator.cni.netlink.netlinksocket import RouteSocket

if TYPE_CHECKING:
    from typing import Any

TABLE = "netdev orc_guests"
_COUNTER = re.compile(r"counter (port\d+) \{\s*packets (\d+)")


@record
class Guest:
    """A container's interface on an external network, and its allowed sources."""

    network: str
    container: str
    netns: str
    ifname: str
    mac: str
    addresses: tuple[Address, ...]
    allowed: tuple[Network, ...] = ()
    dhcp: bool = False


@record
class Port:
    """This host's peer of a guest's interface."""

    index: int
    device: str
    guest: Guest

    @property
    def name(self) -> str:
        """The name of its chain and its counter."""
        return f"port{self.index}"


def parse(raw: object) -> tuple[Guest, ...]:
    """Validate the agent's request; raises `CniError`."""
    return tuple(_guest(entry) for entry in jsonfields.mappings(raw, "guests"))


def _guest(raw: Any) -> Guest:
    mac = raw.get("mac")
    return Guest(
        network=str(raw.get("network", "")),
        container=str(raw.get("container", "")),
        netns=jsonfields.text(raw, "netns"),
        ifname=jsonfields.interface(raw.get("ifname"), "ifname"),
        mac=jsonfields.mac(mac, "mac") if mac else "",
        addresses=tuple(
            jsonfields.address(one, "addresses")
            for one in jsonfields.listed(raw.get("addresses"), "addresses")
        ),
        allowed=jsonfields.networks(raw.get("allowed"), "allowed"),
        dhcp=raw.get("dhcp", False) is True,
    )


def ports(sock: RouteSocket, guests: Iterable[Guest]) -> list[Port]:
    """This host's peers of the guests that have one."""
    from orchestrator.cni.netlink import devices  # imports pyroute2

    found = []
    for guest in guests:
        if not namespaces.exists(guest.netns):
            continue
        with (
            namespaces.opened(guest.netns) as namespace,
            namespaces.route_socket(namespace) as within,
        ):
            inside = links.get_link(within, guest.ifname)
            if inside is None or inside.kind != "veth":
                continue
            host = links.get_link(sock, index=inside.peer)
            # The index may be of another namespace, and be in use here too.
            if (
                host is not None
                and host.kind == "veth"
                and host.peer == inside.index
                and host.peer_namespace == devices.namespace_id(sock, namespace)
            ):
                found.append(Port(host.index, host.name, guest))
    return found


def script(port: Port) -> str:
    """The script of a port's chain; it keeps the counter."""
    chain = f"{TABLE} {port.name}"
    hook = f'{{ type filter hook ingress device "{port.device}" priority filter; }}'
    lines = [
        f"add table {TABLE}",
        f"add counter {chain}",
        f"add chain {chain} {hook}",
        f"flush chain {chain}",
        *(
            f"add rule {chain} {rule}"
            for rule in _rules(port.guest, f"counter name {port.name} drop")
        ),
    ]
    return "\n".join(lines) + "\n"


def _rules(guest: Guest, drop: str) -> Iterator[str]:
    local = ip_network(antispoofing.link_local(guest.mac) if guest.mac else "fe80::/10")
    if guest.mac:
        yield f"ether saddr != {guest.mac} {drop}"
        yield f"arp saddr ether != {guest.mac} {drop}"
    if not guest.addresses:
        return
    sources = [*map(ip_network, guest.addresses), *guest.allowed, local]
    four, own = (antispoofing.listed(sources, version) for version in (4, 6))
    if four:
        yield f"ip saddr {four} accept"
        yield f"arp saddr ip {four} accept"
    if guest.dhcp:
        yield "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept"
    yield f"meta protocol ip {drop}"
    # Address conflict detection (RFC 5227).
    yield "arp saddr ip 0.0.0.0 accept"
    yield f"ip6 saddr :: icmpv6 type nd-neighbor-solicit icmpv6 taddr {own} accept"
    yield f"ip6 saddr :: icmpv6 type {antispoofing.MULTICAST_REPORTS} accept"
    yield f"ip6 saddr != {own} {drop}"
    yield f"icmpv6 type nd-neighbor-advert icmpv6 taddr != {own} {drop}"
    yield f"icmpv6 type {antispoofing.ROUTER} {drop}"
    yield f"meta protocol != ip6 {drop}"


def ensure(sock: RouteSocket, nft: Nftables, guests: Iterable[Guest]) -> None:
    """Check the sources of exactly these guests, where possible; raises `CniError`."""
    wanted = ports(sock, guests)
    for port in wanted:
        try:
            nft.ensure(f"{TABLE} {port.name}", script(port))
        except NftError as error:
            if links.get_link(sock, index=port.index) is not None:
                raise failed("source checks of plugins' networks", error) from error
    try:
        _clear(nft, {port.name for port in wanted})
    except NftError as error:
        raise failed("source checks of plugins' networks", error) from error


def _clear(nft: Nftables, wanted: Set[str]) -> None:
    """Remove the chains and counters of other ports."""
    present = nftables.names(TABLE)
    stale = sorted(present - wanted)
    for name in stale:
        nft.doubt(f"{TABLE} {name}")
    if not wanted and present:
        nft.run(f"delete table {TABLE}\n")
        return
    for name in stale:
        # The chain may be gone with its interface; add one without a hook, so that delete works.
        nft.run(
            f"add chain {TABLE} {name}\nflush chain {TABLE} {name}\n"
            f"delete chain {TABLE} {name}\nadd counter {TABLE} {name}\n"
            f"delete counter {TABLE} {name}\n"
        )


def deviations(sock: RouteSocket, guests: Iterable[Guest]) -> Iterator[str]:
    """What the next `ensure` would repair, for the user."""
    wanted = ports(sock, guests)
    found = nftables.counts([TABLE])
    rules = {f"{TABLE} {port.name}": len(list(_rules(port.guest, ""))) for port in wanted}
    yield from nftables.deviations(found, rules)


def dropped(
    sock: RouteSocket, nft: Nftables, guests: Iterable[Guest]
) -> Iterator[tuple[Guest, int]]:
    """The guests with dropped packets, and their number."""
    try:
        counters = dict(_COUNTER.findall(nft.run(f"list counters table {TABLE}")))
    except NftError:
        return
    for port in ports(sock, guests):
        if packets := int(counters.get(port.name, 0)):
            yield port.guest, packets
