# SPDX-License-Identifier: Apache-2.0
"""The operations of CNI on a `Host`, for the plugin and the helper.

The order of steps makes a kill -9 at any point harmless. ADD: lease, veth pair, ports. DEL: ports,
veth pair, lease. So all that exists in the kernel has a lease, from which its names derive.
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
from orchestrator.cni.firewall.antispoofing import SourceBinding
from orchestrator.cni.firewall.nftables import TABLE, Nftables, NftError
from orchestrator.cni.netconf import NetConf, PortMapping, parse
from orchestrator.cni.netlink import conntrack, links, namespaces
from orchestrator.cni.netlink.links import Address
from orchestrator.cni.netlink.netlinksocket import RouteSocket
from orchestrator.cni.overlay import bridge, hostnetwork, veth
from orchestrator.cni.overlay.veth import IPConfig, VethConfig

if TYPE_CHECKING:
    from typing import Any, Self


class Host:
    """This host's kernel and leases, open while the context lasts.

    `table` is the nftables table of the networks of these leases.
    """

    def __init__(self, data_dir: Path, table: str = TABLE) -> None:
        self.table = table
        self.data_dir = data_dir
        self.ipam = Ipam(data_dir)
        self.published: tuple[int, int] | None = None
        """Version of the leases at the last `restore_published`."""
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
    """An interface of a container; `netns` is its namespace's path, which DEL may find removed."""

    container_id: str
    ifname: str
    netns: str


def _key(conf: NetConf, attachment: Attachment) -> Key:
    return Key(conf.name, attachment.container_id, attachment.ifname)


def _veth_config(conf: NetConf, lease: Lease) -> VethConfig:
    local = lease.address in conf.subnet
    ips = [
        IPConfig(
            links.with_prefix(lease.address, conf.subnet.prefixlen if local else 32),
            conf.gateway,
            conf.cluster,
            local,
        )
    ]
    if lease.address6 is not None and conf.ipv6 is not None:
        local = lease.address6 in conf.ipv6.subnet
        prefix = conf.ipv6.subnet.prefixlen if local else 128
        ips.append(
            IPConfig(
                links.with_prefix(lease.address6, prefix),
                conf.ipv6.gateway,
                conf.ipv6.cluster,
                local,
            )
        )
    return VethConfig(
        container_id=lease.key.container,
        ifname=lease.key.ifname,
        mac=_mac(lease),
        ips=tuple(ips),
        default_route=lease.default_route and not conf.internal,
        locked=conf.source_check,
    )


def _targets(leases: Iterable[Lease]) -> list[portmap.Target]:
    return [
        (port, address) for lease in leases for port in lease.ports for address in lease.addresses
    ]


def _mac(lease: Lease) -> str:
    return lease.mac or veth.derive_mac(lease.address)


def _binding(bridge: str, lease: Lease) -> SourceBinding:
    return SourceBinding(bridge, _mac(lease), tuple(lease.addresses))


def add(host: Host, conf: NetConf, attachment: Attachment) -> dict[str, Any]:
    """Connect a container; the network itself must exist (`establish`).

    Idempotent: a repetition keeps the address and repairs the rest. If it fails, everything is
    released, except the address of an attachment that already had one.
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
                _release_changed(host, conf, link.index, before, lease)
            pair = _veth_config(conf, lease)
            portmap.ensure_bridged(host.nft)
            end = veth.connect(host.sock, link, pair, namespace)
            portmap.publish(host.nft, _targets([lease]), _binding(conf.bridge, lease))
            _delete_flows(lease.ports)
        except BaseException:
            if before is None:
                _disconnect(host, conf, lease)
            raise
    return cniresult.success(conf, pair, link, end, attachment.netns)


def _refuse_connected(host: Host, key: Key, namespace: int) -> None:
    """Raise `CniError` INTERFACE_IN_USE if this interface of the container is connected already, in
    another namespace or to another network. Leases of removed namespaces are ignored."""
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


def _release_changed(
    host: Host, conf: NetConf, bridge_index: int, before: Lease, now: Lease
) -> None:
    """Release what an attachment had `before` and no longer has."""
    if before.ports or _binding(conf.bridge, before) != _binding(conf.bridge, now):
        kept = now.ports if before.addresses == now.addresses else ()
        same = _binding(conf.bridge, before) == _binding(conf.bridge, now)
        _unpublish(host, None if same else conf, before, kept=kept)
    if before.addresses != now.addresses:
        veth.remove_host_entries(host.sock, bridge_index, _veth_config(conf, before))


def delete(host: Host, conf: NetConf, attachment: Attachment) -> None:
    """Disconnect a container and release its lease; idempotent."""
    lease = host.ipam.lease(_key(conf, attachment))
    if lease is not None:
        _disconnect(host, conf, lease)
    else:
        veth.disconnect(host.sock, veth.veth_name(attachment.container_id, attachment.ifname))


def detach_container(host: Host, container: str, netns: Path) -> None:
    """Disconnect a container from all networks, and remove its namespace, which must be unused.

    Several times faster than `delete` for each.
    """
    exists = namespaces.exists(netns)
    for lease in host.ipam.leases(container=container):
        conf = known(host, lease.key.network)
        if conf is None or not exists:
            _disconnect(host, conf, lease)
            continue
        _unpublish(host, conf, lease)
        pair = _veth_config(conf, lease)
        with namespaces.opened(netns) as namespace:
            veth.detach(host.sock, pair, namespace)
        _remove_host_entries(host, conf, pair)
        host.ipam.release(lease.key)
    namespaces.remove(netns)


def _remove_host_entries(host: Host, conf: NetConf, pair: VethConfig) -> None:
    link = links.get_link(host.sock, conf.bridge)
    if link is not None:
        veth.remove_host_entries(host.sock, link.index, pair)


def _unpublish(
    host: Host, conf: NetConf | None, lease: Lease, kept: Collection[PortMapping] = ()
) -> None:
    """Unpublish the ports except `kept` and, if its network is given, remove the source binding."""
    ports = [port for port in lease.ports if port not in kept]
    portmap.unpublish(host.nft, ports, _binding(conf.bridge, lease) if conf is not None else None)
    _delete_flows(ports)


def _delete_flows(ports: Collection[PortMapping]) -> None:
    conntrack.delete_udp({port.host_port for port in ports if port.protocol == "udp"})


def _disconnect(host: Host, conf: NetConf | None, lease: Lease) -> None:
    _unpublish(host, conf, lease)
    veth.disconnect(host.sock, veth.veth_name(lease.key.container, lease.key.ifname))
    if conf is not None:
        _remove_host_entries(host, conf, _veth_config(conf, lease))
    host.ipam.release(lease.key)


def veth_config(host: Host, conf: NetConf, attachment: Attachment) -> tuple[VethConfig, Lease]:
    """An attachment's veth pair and lease; raises `CniError` UNKNOWN_CONTAINER."""
    lease = host.ipam.lease(_key(conf, attachment))
    if lease is None:
        raise CniError(
            Code.UNKNOWN_CONTAINER,
            f"container {attachment.container_id} has no address in network {conf.name}",
        )
    return _veth_config(conf, lease), lease


def missing_port(host: Host, lease: Lease) -> str:
    """A port of an attachment that is not published, for the user; empty if all are."""
    return portmap.missing(host.nft, _targets([lease])) if lease.ports else ""


def collect(host: Host, conf: NetConf, valid: Collection[tuple[str, str]]) -> None:
    """Remove every attachment of the network that is not in `valid` (container, interface)."""
    stale, kept = [], set()
    for lease in host.ipam.leases():
        identity = (lease.key.container, lease.key.ifname)
        if lease.key.network == conf.name and identity not in valid:
            stale.append(lease)
            _unpublish(host, conf, lease)
        else:
            kept.add(veth.veth_name(*identity))
    ports = {end.name: end.index for end in bridge.ports(host.sock, conf.bridge)}
    for lease in stale:
        name = veth.veth_name(lease.key.container, lease.key.ifname)
        port = None if name in ports else links.get_link(host.sock, name)
        if port is not None:
            ports[name] = port.index
        _remove_host_entries(host, conf, _veth_config(conf, lease))
    links.delete_links(host.sock, [index for name, index in ports.items() if name not in kept])
    for lease in stale:
        host.ipam.release(lease.key)


def veth_configs(host: Host, conf: NetConf) -> list[tuple[VethConfig, Lease]]:
    """The desired veth pairs of the network on this host."""
    return [(_veth_config(conf, lease), lease) for lease in host.ipam.leases(conf.name)]


def bindings(host: Host, conf: NetConf) -> list[SourceBinding]:
    """The source bindings of the network's containers on this host."""
    return [_binding(conf.bridge, lease) for lease in host.ipam.leases(conf.name)]


def forgeries(host: Host, conf: NetConf) -> dict[str, int]:
    """Packets with forged sources that were dropped in the last hour, by container."""
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


def addresses_outside_subnet(conf: NetConf, leases: Iterable[Lease]) -> set[Address]:
    """The addresses of this host's containers outside its subnet of the network."""
    return {
        ip.address.ip for lease in leases for ip in _veth_config(conf, lease).ips if not ip.local
    }


def establish(host: Host, conf: NetConf) -> list[Lease]:
    """Ensure the network is as configured, except its containers; return their leases."""
    leases = host.ipam.leases(conf.name)
    bound = (_binding(conf.bridge, lease) for lease in leases)
    hostnetwork.ensure(host.sock, host.nft, conf, addresses_outside_subnet(conf, leases), bound)
    return leases


def restore_network(host: Host, conf: NetConf) -> None:
    """`establish`; if the network's rules were removed, also restore those of its containers."""
    lost = not host.nft.holds(conf.bridge) and not networkfirewall.present(host.nft, conf)
    for lease in establish(host, conf):
        if lost:
            portmap.publish(host.nft, _targets([lease]), _binding(conf.bridge, lease))


def apply(host: Host, conf: NetConf) -> None:
    """Ensure the network is as configured, and its containers connected and published."""
    leases = establish(host, conf)
    link = links.get_link(host.sock, conf.bridge)
    if link is None:
        raise veth.interface_vanished(conf.bridge)
    pairs = {_veth_config(conf, lease): lease for lease in leases}
    for missing in bridge.ensure_ports(host.sock, link, pairs):
        _reconnect(host, link, missing, pairs[missing])
    bridge.ensure_host_entries(host.sock, link, pairs)
    restore_published(host)


def _reconnect(host: Host, link: links.Link, pair: VethConfig, lease: Lease) -> None:
    """Create a removed veth pair again, if the container still exists."""
    if not namespaces.exists(lease.netns):
        return
    with namespaces.opened(lease.netns) as namespace:
        veth.connect(host.sock, link, pair, namespace)


def restore_published(host: Host) -> None:
    """Publish exactly the ports of all leases; the table must exist.

    Each network's pass calls it, so leases are read only if any has changed since the last call.
    """
    version = host.ipam.version()
    if version == host.published and portmap.restored(host.nft):
        return
    leases = host.ipam.leases()
    # The bridge does not matter here.
    portmap.restore(host.nft, _targets(leases), [_binding("", lease) for lease in leases])
    host.published = version


def remember(host: Host, raw: Mapping[str, Any]) -> None:
    """Record a network's configuration, without its peers, until `remove`."""
    kept = {key: value for key, value in raw.items() if key != "peers"}
    host.ipam.remember(parse(raw).name, json.dumps(kept, sort_keys=True))


def known(host: Host, name: str) -> NetConf | None:
    """The recorded configuration of a network, without its peers, or None."""
    text = host.ipam.networks().get(name)
    return parse(json.loads(text)) if text is not None else None


def remove(host: Host, conf: NetConf) -> None:
    """Remove the network from this host, and everything attached to it."""
    collect(host, conf, ())
    host.ipam.remember(conf.name, None)
    last = not host.ipam.networks() and not host.ipam.leases()
    hostnetwork.remove(host.sock, host.nft, conf, last=last)
