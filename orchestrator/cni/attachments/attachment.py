# SPDX-License-Identifier: Apache-2.0
"""The operations of CNI, over a `Host`: what the plugin and the helper both do.

The order of steps is what makes a kill -9 at any point harmless. ADD: lease, cable, ports. DEL:
ports, cable, lease. So whatever exists in the kernel has a lease, under whose name it is found.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from orchestrator.cni.attachments import cniresult
from orchestrator.cni.attachments.ipam import Ipam, Key, Lease
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.fastrecord import TYPE_CHECKING, record
from orchestrator.cni.firewall import antispoofing, networkfirewall, nftables, portmap
from orchestrator.cni.firewall.antispoofing import End
from orchestrator.cni.firewall.nftables import TABLE, Nftables, NftError
from orchestrator.cni.netconf import NetConf, PortMapping, parse
from orchestrator.cni.netlink import conntrack, links, namespaces
from orchestrator.cni.netlink.links import Address
from orchestrator.cni.netlink.netlinksocket import RouteSocket
from orchestrator.cni.overlay import bridge, hostnetwork, veth
from orchestrator.cni.overlay.veth import Cable, Place

if TYPE_CHECKING:
    from typing import Any, Self


class Host:
    """This host's kernel and leases, open while the context lasts.

    `table` is the nftables table for the networks that these leases are of.
    """

    def __init__(self, data_dir: Path, table: str = TABLE) -> None:
        self.table = table
        self.data_dir = data_dir
        self.ipam = Ipam(data_dir)
        self.published: tuple[int, int] | None = None
        """The leases' version when all their ports were last published."""
        self.sock = RouteSocket()

    @functools.cached_property
    def nft(self) -> Nftables:
        """Loaded when it is first used."""
        return Nftables(self.table)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.__exit__()
        self.ipam.__exit__()


@record
class Attachment:
    """Which interface of which container, and where its namespace is (may be gone on DEL)."""

    container_id: str
    ifname: str
    netns: str


def _key(conf: NetConf, attachment: Attachment) -> Key:
    return Key(conf.name, attachment.container_id, attachment.ifname)


def _cable(conf: NetConf, lease: Lease) -> Cable:
    local = lease.address in conf.subnet
    places = [
        Place(
            links.with_prefix(lease.address, conf.subnet.prefixlen if local else 32),
            conf.gateway,
            conf.cluster,
            local,
        )
    ]
    if lease.address6 is not None and conf.ipv6 is not None:
        local = lease.address6 in conf.ipv6.subnet
        prefix = conf.ipv6.subnet.prefixlen if local else 128
        places.append(
            Place(
                links.with_prefix(lease.address6, prefix),
                conf.ipv6.gateway,
                conf.ipv6.cluster,
                local,
            )
        )
    return Cable(
        container_id=lease.key.container,
        ifname=lease.key.ifname,
        mac=_mac(lease),
        places=tuple(places),
        default_route=lease.default_route and not conf.internal,
        locked=conf.source_check,
    )


def _targets(leases: Iterable[Lease]) -> list[portmap.Target]:
    return [
        (port, address) for lease in leases for port in lease.ports for address in lease.addresses
    ]


def _mac(lease: Lease) -> str:
    return lease.mac or veth.derived_mac(lease.address)


def _end(bridge: str, lease: Lease) -> End:
    return End(bridge, _mac(lease), tuple(lease.addresses))


def add(host: Host, conf: NetConf, attachment: Attachment) -> dict[str, Any]:
    """Connect a container; the network itself must exist (`establish`).

    Doing it twice gives the same address and mends what is broken. If it fails, what it took is
    given back, except the address of an attachment that already had one.
    """
    link = links.get_link(host.sock, conf.bridge)
    if link is None:
        raise CniError(Code.NOT_AVAILABLE, f"network {conf.name} is not set up on this host")
    with namespaces.opened(attachment.netns) as namespace:
        if namespaces.is_own(namespace):
            raise CniError(
                Code.INVALID_NETNS,
                f"CNI_NETNS {attachment.netns} is this host's own network namespace:"
                " give the container's",
            )
        key = _key(conf, attachment)
        _refuse_connected(host, key, namespace)
        before = host.ipam.lease(key)
        lease = host.ipam.reserve(key, conf, attachment.netns)
        try:
            if before is not None:
                _give_up(host, conf, link.index, before, lease)
            laid = _cable(conf, lease)
            portmap.ensure_bridged(host.nft)
            end = veth.connect(host.sock, link, laid, namespace)
            portmap.publish(host.nft, _targets([lease]), _end(conf.bridge, lease))
            _forget_flows(lease.ports)
        except BaseException:
            if before is None:
                _dismantle(host, conf, lease)
            raise
    return cniresult.success(conf, laid, link, end, attachment.netns)


def _refuse_connected(host: Host, key: Key, namespace: int) -> None:
    """Raise `CniError` INTERFACE_IN_USE if this interface of the container is connected already, in
    another namespace or to another network. What a vanished namespace has left is no obstacle."""
    for lease in host.ipam.leases(container=key.container):
        if lease.key.ifname != key.ifname or not namespaces.exists(lease.netns):
            continue
        with namespaces.opened(lease.netns) as present:
            if lease.key == key and namespaces.same(present, namespace):
                continue
            with namespaces.route_socket(present) as within:
                connected = veth.connected(host.sock, within, key.container, key.ifname)
        if connected:
            raise CniError(
                Code.INTERFACE_IN_USE,
                f"interface {key.ifname} of container {key.container} is already connected to"
                f" network {lease.key.network} in {lease.netns}: run DEL there first",
            )


def _give_up(host: Host, conf: NetConf, bridge_index: int, before: Lease, now: Lease) -> None:
    """Take back what an attachment held and holds no more."""
    if before.ports or _end(conf.bridge, before) != _end(conf.bridge, now):
        kept = now.ports if before.addresses == now.addresses else ()
        same = _end(conf.bridge, before) == _end(conf.bridge, now)
        _withdraw(host, None if same else conf, before, kept=kept)
    if before.addresses != now.addresses:
        veth.withdraw(host.sock, bridge_index, _cable(conf, before))


def delete(host: Host, conf: NetConf, attachment: Attachment) -> None:
    """Disconnect a container and free what it held; what is gone already is fine."""
    lease = host.ipam.lease(_key(conf, attachment))
    if lease is not None:
        _dismantle(host, conf, lease)
    else:
        veth.disconnect(host.sock, veth.veth_name(attachment.container_id, attachment.ifname))


def retire(host: Host, container: str, netns: Path) -> None:
    """Disconnect a container from all networks, and remove its namespace, which is unused.

    Several times faster than `delete` of each.
    """
    lives = namespaces.exists(netns)
    for lease in host.ipam.leases(container=container):
        conf = known(host, lease.key.network)
        if conf is None or not lives:
            _dismantle(host, conf, lease)
            continue
        _withdraw(host, conf, lease)
        laid = _cable(conf, lease)
        with namespaces.opened(netns) as namespace:
            veth.abandon(host.sock, laid, namespace)
        _unknown(host, conf, laid)
        host.ipam.release(lease.key)
    namespaces.remove(netns)


def _unknown(host: Host, conf: NetConf, laid: Cable) -> None:
    link = links.get_link(host.sock, conf.bridge)
    if link is not None:
        veth.withdraw(host.sock, link.index, laid)


def _withdraw(
    host: Host, conf: NetConf | None, lease: Lease, kept: Collection[PortMapping] = ()
) -> None:
    """Take back the ports but those that are `kept` and, if its network is given, the end."""
    ports = [port for port in lease.ports if port not in kept]
    portmap.withdraw(host.nft, ports, _end(conf.bridge, lease) if conf is not None else None)
    _forget_flows(ports)


def _forget_flows(ports: Collection[PortMapping]) -> None:
    conntrack.forget_udp({port.host_port for port in ports if port.protocol == "udp"})


def _dismantle(host: Host, conf: NetConf | None, lease: Lease) -> None:
    _withdraw(host, conf, lease)
    veth.disconnect(host.sock, veth.veth_name(lease.key.container, lease.key.ifname))
    if conf is not None:
        _unknown(host, conf, _cable(conf, lease))
    host.ipam.release(lease.key)


def cable_of(host: Host, conf: NetConf, attachment: Attachment) -> tuple[Cable, Lease]:
    """An attachment's cable as ADD laid it; raises `CniError` UNKNOWN_CONTAINER."""
    lease = host.ipam.lease(_key(conf, attachment))
    if lease is None:
        raise CniError(
            Code.UNKNOWN_CONTAINER,
            f"container {attachment.container_id} has no address in network {conf.name}",
        )
    return _cable(conf, lease), lease


def unpublished(host: Host, lease: Lease) -> str:
    """A description of a port of an attachment that is not published; empty if all are."""
    return portmap.missing(host.nft, _targets([lease])) if lease.ports else ""


def collect(host: Host, conf: NetConf, valid: Collection[tuple[str, str]]) -> None:
    """Remove every attachment of the network that is not in `valid` (container, interface)."""
    stale, kept = [], set()
    for lease in host.ipam.leases():
        identity = (lease.key.container, lease.key.ifname)
        if lease.key.network == conf.name and identity not in valid:
            stale.append(lease)
            _withdraw(host, conf, lease)
        else:
            kept.add(veth.veth_name(*identity))
    ends = {end.name: end.index for end in bridge.ports(host.sock, conf.bridge)}
    for lease in stale:
        name = veth.veth_name(lease.key.container, lease.key.ifname)
        unplugged = None if name in ends else links.get_link(host.sock, name)
        if unplugged is not None:
            ends[name] = unplugged.index
        _unknown(host, conf, _cable(conf, lease))
    links.delete_links(host.sock, [index for name, index in ends.items() if name not in kept])
    for lease in stale:
        host.ipam.release(lease.key)


def laid(host: Host, conf: NetConf) -> list[tuple[Cable, Lease]]:
    """The network's cables on this host as they are to be."""
    return [(_cable(conf, lease), lease) for lease in host.ipam.leases(conf.name)]


def ends(host: Host, conf: NetConf) -> list[End]:
    """What the network's containers on this host may send as."""
    return [_end(conf.bridge, lease) for lease in host.ipam.leases(conf.name)]


def forgeries(host: Host, conf: NetConf) -> dict[str, int]:
    """How many packets of which containers were dropped lately as they had forged sources."""
    found: dict[str, int] = {}
    sets = nftables.filled(map(host.nft.qualified, antispoofing.forgers(conf.bridge)))
    if not sets:
        return found
    owners = {_mac(lease): lease.key.container for lease in host.ipam.leases(conf.name)}
    for name in sets:
        try:
            listed = host.nft.run(f"list set {name}")
        except NftError:
            continue  # removed concurrently
        for mac, packets in antispoofing.dropped(listed).items():
            if mac in owners:
                found[owners[mac]] = found.get(owners[mac], 0) + packets
    return found


def elsewhere(conf: NetConf, leases: Iterable[Lease]) -> set[Address]:
    """The addresses of this host's containers that are not of its part of the network."""
    return {
        place.address.ip
        for lease in leases
        for place in _cable(conf, lease).places
        if not place.local
    }


def establish(host: Host, conf: NetConf) -> list[Lease]:
    """Have the network as configured, but for its containers; return their leases."""
    leases = host.ipam.leases(conf.name)
    bound = (_end(conf.bridge, lease) for lease in leases)
    hostnetwork.ensure(host.sock, host.nft, conf, elsewhere(conf, leases), bound)
    return leases


def revive(host: Host, conf: NetConf) -> None:
    """`establish`; where the network's rules were removed, with what they had of its containers."""
    lost = not host.nft.holds(conf.bridge) and not networkfirewall.present(host.nft, conf)
    for lease in establish(host, conf):
        if lost:
            portmap.publish(host.nft, _targets([lease]), _end(conf.bridge, lease))


def apply(host: Host, conf: NetConf) -> None:
    """Have the network as configured, and its containers plugged in and published."""
    leases = establish(host, conf)
    link = links.get_link(host.sock, conf.bridge)
    if link is None:
        raise veth.vanished(conf.bridge)
    cables = {_cable(conf, lease): lease for lease in leases}
    for lost in bridge.ensure_plugged(host.sock, link, cables):
        _lay_again(host, link, lost, cables[lost])
    bridge.ensure_known(host.sock, link, cables)
    restore_ports(host)


def _lay_again(host: Host, link: links.Link, laid: Cable, lease: Lease) -> None:
    """Connect a container again whose veth pair was removed, if it still exists."""
    if not namespaces.exists(lease.netns):
        return
    with namespaces.opened(lease.netns) as namespace:
        veth.connect(host.sock, link, laid, namespace)


def restore_ports(host: Host) -> None:
    """Have exactly those ports published that the leases say; the table must exist.

    Each network's pass asks for it, so all leases are read only if any has changed since."""
    version = host.ipam.version()
    if version == host.published and portmap.restored(host.nft):
        return
    leases = host.ipam.leases()
    # A network's bridge matters to none of this.
    portmap.restore(host.nft, _targets(leases), [_end("", lease) for lease in leases])
    host.published = version


def remember(host: Host, raw: Mapping[str, Any]) -> None:
    """Record a network, as it was configured and without its peers, until `forget`."""
    kept = {key: value for key, value in raw.items() if key != "peers"}
    host.ipam.remember(parse(raw).name, json.dumps(kept, sort_keys=True))


def known(host: Host, name: str) -> NetConf | None:
    """A network as it was configured last, without its peers; None if there is none."""
    text = host.ipam.networks().get(name)
    return parse(json.loads(text)) if text is not None else None


def remove(host: Host, conf: NetConf) -> None:
    """Remove the network from this host, and everything attached to it."""
    collect(host, conf, ())
    host.ipam.remember(conf.name, None)
    last = not host.ipam.networks() and not host.ipam.leases()
    hostnetwork.remove(host.sock, host.nft, conf, last=last)
