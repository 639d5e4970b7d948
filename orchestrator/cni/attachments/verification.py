# SPDX-License-Identifier: Apache-2.0
"""CHECK, STATUS and drift detection: compare the kernel with the desired state; change nothing.

CHECK compares one attachment with what ADD made, STATUS says whether ADD would work. `deviations`
reports what `attachment.apply` would repair.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface

from orchestrator.cni import peers
from orchestrator.cni.attachments import attachment, cniresult
from orchestrator.cni.attachments.attachment import Attachment, Host
from orchestrator.cni.attachments.cniresult import Claims
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.firewall import antispoofing, networkfirewall, nftables, portmap
from orchestrator.cni.firewall.nftables import TABLES
from orchestrator.cni.netconf import NetConf
from orchestrator.cni.netlink import links, namespaces, routing
from orchestrator.cni.netlink.links import Interface, Link
from orchestrator.cni.netlink.netlinksocket import RouteSocket
from orchestrator.cni.netlink.routing import RouteEntry
from orchestrator.cni.overlay import hostnetwork, veth, vxlan
from orchestrator.cni.overlay.veth import VethConfig
from orchestrator.cni.peers import Entry, FdbEntry, Neighbour

_RULE = re.compile(rf"^add rule ((?:{'|'.join(TABLES)}) \S+) ", re.MULTILINE)


def deviations(host: Host, conf: NetConf) -> list[str]:
    """What the next pass over this network would repair, for the user; empty if nothing.

    Raises `CniError` for errors that would also fail the pass.
    """
    mtu = hostnetwork.fitting_mtu(host.sock, conf)
    found = [
        f"net.{name.replace('/', '.')} is switched off" for name in hostnetwork.switched_off(conf)
    ]
    found += _bridge(host, conf, mtu)
    found += rules(host, conf)
    found += _tunnel(host, conf, mtu)
    found += _veth_pairs(host, conf)
    return found


def _bridge(host: Host, conf: NetConf, mtu: int) -> Iterator[str]:
    link = links.get_link(host.sock, conf.bridge)
    if link is None:
        yield f"bridge {conf.bridge} is gone"
        return
    yield from _link(link, peers.derive_mac("b", conf.gateway), mtu)
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
    present = {address for _, address in links.addresses(host.sock, link.index)}
    for address in wanted:
        if address not in present:
            yield f"interface {link.name} has lost the address {address}"


def rules(host: Host, conf: NetConf) -> Iterator[str]:
    """Deviations of the network's nftables rules. Rules and set elements are compared by number,
    since none is edited in place."""
    between = antispoofing.between_ports(antispoofing.bridged_families())
    wanted = Counter(_RULE.findall(portmap.script(conf) + between))
    for name in antispoofing.sets(conf.bridge):
        wanted[name] = 0
    for end in attachment.bindings(host, conf):
        wanted.update(name for name, _ in antispoofing.elements(end))
    found = nftables.counts(map(host.nft.qualified, TABLES))
    yield from nftables.deviations(
        found, {host.nft.qualified(name): number for name, number in wanted.items()}
    )
    for name in networkfirewall.incomplete(host.nft, conf):
        yield f"nftables: set {name} has lost the devices of the network"


def _tunnel(host: Host, conf: NetConf, mtu: int) -> Iterator[str]:
    if conf.overlay is None:
        return
    over = conf.overlay
    link = links.get_link(host.sock, over.device)
    wanted = over.vxlan
    if link is None:
        yield f"tunnel {over.device} is gone"
        return
    if why := vxlan.difference(link, wanted):
        yield f"interface {over.device} is not the tunnel: {why}"
        return
    yield from _link(link, peers.vtep_mac(over.me.subnet), mtu)
    yield from _addresses(host, link, [IPv4Interface((peers.vtep_address(over.me.subnet), 32))])
    held = attachment.addresses_outside_subnet(conf, host.ipam.leases(conf.name))
    operations = peers.diff(
        hostnetwork.entries(conf, held), vxlan.present_entries(host.sock, link.index)
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
        case FdbEntry():
            return f"the forwarding entry (FDB) of {entry.mac} to {entry.host}"


def _veth_pairs(host: Host, conf: NetConf) -> Iterator[str]:
    for pair, lease in attachment.veth_configs(host, conf):
        if not namespaces.exists(lease.netns):
            continue
        with (
            namespaces.opened(lease.netns) as namespace,
            namespaces.route_socket(namespace) as within,
        ):
            reason = veth.deviation(host.sock, within, conf.bridge, pair)
        if reason:
            yield f"container {pair.container_id}: {reason}"


def check(host: Host, conf: NetConf, target: Attachment) -> None:
    """Raise `CniError` CHECK_FAILED, with the reason, unless the kernel and `prevResult` are as
    ADD left them."""
    pair, lease = attachment.veth_config(host, conf, target)
    with (
        namespaces.opened(target.netns) as namespace,
        namespaces.route_socket(namespace) as within,
    ):
        reason = ""
        if conf.previous is not None:
            reason = cniresult.contradiction(
                conf.previous,
                pair,
                conf.bridge,
                lambda path: _is_namespace(path, target, namespace),
            )
        reason = reason or veth.deviation(host.sock, within, conf.bridge, pair)
        if not reason and conf.previous is not None:
            reason = _missing(within, pair, cniresult.claims(conf.previous, pair))
    reason = reason or next(rules(host, conf), "") or attachment.missing_port(host, lease)
    if reason:
        raise CniError(Code.CHECK_FAILED, f"container {target.container_id}: {reason}")


def _is_namespace(path: str, target: Attachment, namespace: int) -> bool:
    """Whether a path is of the container's namespace."""
    if path == target.netns:
        return True
    try:
        with namespaces.opened(path) as other:
            return namespaces.same(other, namespace)
    except CniError:
        return False


def _missing(within: RouteSocket, pair: VethConfig, claims: Claims) -> str:
    """An address or route of the claims that the container lacks; empty if it has all."""
    inside = links.get_link(within, pair.ifname)
    index = inside.index if inside is not None else 0
    present = links.addresses(within, index)
    for address in claims.addresses:
        if (index, address) not in present:
            return f"prevResult has the address {address}, which {pair.ifname} does not have"
    present_routes = [
        one for link in links.links(within) for one in routing.routes(within, link.index)
    ]
    for destination, gateway in claims.routes:
        if not any(
            one.destination == destination and gateway in (None, one.gateway)
            for one in present_routes
        ):
            via = f" via {gateway}" if gateway else ""
            return (
                f"prevResult has a route to {destination}{via}, which the container does not have"
            )
    return ""


def status(host: Host, conf: NetConf) -> None:
    """Raise `CniError` unless the network can accept containers: NOT_AVAILABLE, or
    LIMITED_CONNECTIVITY if its present containers are affected, too.

    A network without containers needs nothing on this host: the first ADD sets it up.
    """
    if host.ipam.free(conf) <= 0:
        raise CniError(Code.NOT_AVAILABLE, f"all addresses of {conf.range} are in use")
    if conf.overlay is not None:
        try:
            under = vxlan.underlay(host.sock, conf.overlay.node)
        except CniError as error:
            raise CniError(Code.NOT_AVAILABLE, str(error)) from error
        if not under.up:
            raise CniError(
                Code.LIMITED_CONNECTIVITY,
                f"interface {under.name} is down: containers of other hosts cannot be reached",
            )
    if host.ipam.leases(conf.name) and (reason := _damage(host, conf)):
        raise CniError(
            Code.LIMITED_CONNECTIVITY,
            f"{reason}: containers of network {conf.name} have limited connectivity",
        )


def _damage(host: Host, conf: NetConf) -> str:
    """What the network's containers need and is gone, for the user; empty if nothing."""
    if links.get_link(host.sock, conf.bridge) is None:
        return f"bridge {conf.bridge} is gone"
    if off := hostnetwork.switched_off(conf):
        return f"net.{off[0].replace('/', '.')} is switched off"
    return next(rules(host, conf), "")
