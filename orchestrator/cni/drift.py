"""How far the kernel is from what a network is to be: a pass that mends nothing, in words.

It asks what `attachment.apply` asks and what that would put right it tells. Containers' ends are
looked at as CHECK does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface

from orchestrator.cni import (
    attachment,
    binding,
    cable,
    firewall,
    namespaces,
    netlink,
    nftcount,
    overlay,
    peers,
    portmap,
    vxlan,
)
from orchestrator.cni.attachment import Host
from orchestrator.cni.config import NetConf
from orchestrator.cni.netlink import Interface, Link
from orchestrator.cni.nft import TABLES
from orchestrator.cni.peers import Entry, Forward, Neighbour
from orchestrator.cni.routing import RouteEntry

_RULE = re.compile(rf"^add rule ((?:{'|'.join(TABLES)}) \S+) ", re.MULTILINE)


def deviations(host: Host, conf: NetConf) -> list[str]:
    """What the next pass over this network would mend; empty if the kernel has it as it is to be.

    Raises `CniError` for what would also end the pass.
    """
    mtu = overlay.fitting_mtu(host.sock, conf)
    found = [f"net.{name.replace('/', '.')} is switched off" for name in overlay.switched_off(conf)]
    found += _bridge(host, conf, mtu)
    found += rules(host, conf)
    found += _tunnel(host, conf, mtu)
    found += _cables(host, conf)
    return found


def _bridge(host: Host, conf: NetConf, mtu: int) -> Iterator[str]:
    link = netlink.get_link(host.sock, conf.bridge)
    if link is None:
        yield f"bridge {conf.bridge} is gone"
        return
    yield from _link(link, peers.derived_mac("b", conf.gateway), mtu)
    addresses: list[Interface] = [IPv4Interface((conf.gateway, conf.subnet.prefixlen))]
    if conf.ipv6 is not None:
        addresses.append(IPv6Interface((conf.ipv6.gateway, conf.ipv6.subnet.prefixlen)))
    yield from _addresses(host, link, addresses)


def _link(link: Link, mac: str, mtu: int) -> Iterator[str]:
    if not link.up:
        yield f"interface {link.name} is down"
    if link.mac != mac:
        yield f"interface {link.name} has the MAC {link.mac} instead of {mac}"
    if mtu and link.mtu != mtu:
        yield f"interface {link.name} has the MTU {link.mtu} instead of {mtu}"


def _addresses(host: Host, link: Link, wanted: list[Interface]) -> Iterator[str]:
    present = {address for _, address in netlink.addresses(host.sock, link.index)}
    for address in wanted:
        if address not in present:
            yield f"interface {link.name} has lost the address {address}"


def rules(host: Host, conf: NetConf) -> Iterator[str]:
    """What the nftables rules of the network lack. Rules and containers' addresses by their number:
    nobody edits one."""
    between = binding.between_ports(cable.bridged_families())
    wanted = Counter(_RULE.findall(portmap.script(conf) + between))
    for name in binding.sets(conf.bridge):
        wanted[name] = 0
    for end in attachment.ends(host, conf):
        wanted.update(name for name, _ in binding.elements(end))
    found = nftcount.counts(map(host.nft.qualified, TABLES))
    yield from nftcount.deviations(
        found, {host.nft.qualified(name): number for name, number in wanted.items()}
    )
    for name in firewall.incomplete(host.nft, conf):
        yield f"nftables: set {name} has lost the devices of the network"


def _tunnel(host: Host, conf: NetConf, mtu: int) -> Iterator[str]:
    if conf.overlay is None:
        return
    over = conf.overlay
    link = netlink.get_link(host.sock, over.device)
    wanted = over.vxlan
    if link is None:
        yield f"tunnel {over.device} is gone"
        return
    if why := vxlan.difference(link, wanted):
        yield f"interface {over.device} is not the tunnel: {why}"
        return
    yield from _link(link, peers.vtep_mac(over.me.subnet), mtu)
    yield from _addresses(host, link, [IPv4Interface((peers.vtep_address(over.me.subnet), 32))])
    held = attachment.elsewhere(conf, host.ipam.leases(conf.name))
    operations = peers.diff(
        overlay.entries(conf, held), vxlan.present_entries(host.sock, link.index)
    )
    for entry in operations.put:
        yield f"{_words(entry)} is missing on {over.device}"
    for entry in operations.remove:
        yield f"{_words(entry)} does not belong on {over.device}"


def _words(entry: Entry) -> str:
    match entry:
        case RouteEntry():
            return f"the route to {entry.destination}"
        case Neighbour():
            return f"the neighbour {entry.address} at {entry.mac}"
        case Forward():
            return f"the forwarding entry (FDB) of {entry.mac} to {entry.host}"


def _cables(host: Host, conf: NetConf) -> Iterator[str]:
    for laid, lease in attachment.laid(host, conf):
        if not namespaces.exists(lease.netns):
            continue
        with (
            namespaces.opened(lease.netns) as namespace,
            namespaces.route_socket(namespace) as within,
        ):
            reason = cable.deviation(host.sock, within, conf.bridge, laid)
        if reason:
            yield f"container {laid.container_id}: {reason}"
