"""The operations of CNI, over a `Host`: what the plugin and the helper both do.

The order of steps is what makes a kill -9 at any point harmless. ADD: lease, cable, ports. DEL:
ports, cable, lease. So whatever exists in the kernel has a lease, under whose name it is found.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import bridge, conntrack, namespaces, netlink, overlay, peers, portmap, results, vxlan
from .bridge import Cable
from .config import NetConf, PortMapping, address_in
from .errors import CniError, Code
from .ipam import Ipam, Key, Lease
from .nft import Nftables
from .rtnetlink import RouteSocket


class Host:
    """This host's kernel and leases, open while the context lasts."""

    def __init__(self, data_dir: Path) -> None:
        self.ipam = Ipam(data_dir)
        self.sock = RouteSocket()

    @functools.cached_property
    def nft(self) -> Nftables:
        """Loaded when it is first used: most operations publish no port."""
        return Nftables()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sock.__exit__(kind, error, trace)
        self.ipam.__exit__(kind, error, trace)


@dataclass(frozen=True, slots=True)
class Attachment:
    """Which interface of which container, and where its namespace is (may be gone on DEL)."""

    container_id: str
    ifname: str
    netns: str


def _key(conf: NetConf, attachment: Attachment) -> Key:
    return Key(conf.name, attachment.container_id, attachment.ifname)


def _cable(conf: NetConf, lease: Lease) -> Cable:
    address = address_in(conf, lease.address)
    return Cable(
        container_id=lease.key.container,
        ifname=lease.key.ifname,
        address=address,
        gateway=peers.gateway(conf.subnet),
    )


def add(host: Host, conf: NetConf, attachment: Attachment) -> dict[str, Any]:
    """Connect a container; the network itself must exist (`overlay.ensure`).

    Doing it twice gives the same address and mends what is broken. If it fails, what it took is
    given back, except the address of an attachment that already had one.
    """
    link = netlink.get_link(host.sock, conf.bridge)
    if link is None:
        raise CniError(Code.NOT_AVAILABLE, f"network {conf.name} is not set up on this host")
    with namespaces.opened(attachment.netns) as namespace:
        key = _key(conf, attachment)
        before = host.ipam.lease(key)
        lease = host.ipam.reserve(key, conf.subnet, conf.ports, conf.requested)
        try:
            if before is not None and (before.ports or before.address != lease.address):
                kept = lease.ports if before.address == lease.address else ()
                _withdraw(host, before, kept=kept)
            cable = _cable(conf, lease)
            end = bridge.connect(host.sock, link, cable, namespace)
            if lease.ports:
                portmap.publish(host.nft, [(port, lease.address) for port in lease.ports])
                _forget_flows(lease.ports)
        except BaseException:
            if before is None:
                _dismantle(host, lease)
            raise
    return results.success(conf, cable, link, end, attachment.netns)


def delete(host: Host, conf: NetConf, attachment: Attachment) -> None:
    """Disconnect a container and free what it held; what is gone already is fine."""
    lease = host.ipam.lease(_key(conf, attachment))
    if lease is not None:
        _dismantle(host, lease)
    else:
        bridge.disconnect(host.sock, bridge.veth_name(attachment.container_id, attachment.ifname))


def retire(host: Host, conf: NetConf, attachment: Attachment) -> None:
    """`delete` for a namespace that nobody uses any more, and its removal; several times faster."""
    lease = host.ipam.lease(_key(conf, attachment))
    if lease is None or not namespaces.exists(attachment.netns):
        delete(host, conf, attachment)
    else:
        cable = _cable(conf, lease)
        _withdraw(host, lease)
        with namespaces.opened(attachment.netns) as namespace:
            bridge.abandon(host.sock, cable.host, cable.ifname, cable.mac, namespace)
        host.ipam.release(lease.key)
    namespaces.remove(Path(attachment.netns))


def _withdraw(host: Host, lease: Lease, kept: Collection[PortMapping] = ()) -> None:
    ports = [port for port in lease.ports if port not in kept]
    if ports:
        portmap.withdraw(host.nft, ports)
        _forget_flows(ports)


def _forget_flows(ports: Collection[PortMapping]) -> None:
    conntrack.forget_udp({port.host_port for port in ports if port.protocol == "udp"})


def _dismantle(host: Host, lease: Lease) -> None:
    _withdraw(host, lease)
    bridge.disconnect(host.sock, bridge.veth_name(lease.key.container, lease.key.ifname))
    host.ipam.release(lease.key)


def check(host: Host, conf: NetConf, attachment: Attachment) -> None:
    """Raise `CniError` CHECK_FAILED, with the reason, unless all is as ADD left it."""
    lease = host.ipam.lease(_key(conf, attachment))
    if lease is None:
        raise CniError(
            Code.UNKNOWN_CONTAINER,
            f"container {attachment.container_id} has no address in network {conf.name}",
        )
    cable = _cable(conf, lease)
    reason = results.contradiction(conf.previous, cable) if conf.previous is not None else ""
    if not reason:
        with (
            namespaces.opened(attachment.netns) as namespace,
            namespaces.route_socket(namespace) as within,
        ):
            reason = bridge.deviation(host.sock, within, conf.bridge, cable)
    if not reason and lease.ports:
        targets = [(port, lease.address) for port in lease.ports]
        reason = portmap.missing(host.nft, targets)
    if reason:
        raise CniError(Code.CHECK_FAILED, f"container {attachment.container_id}: {reason}")


def status(host: Host, conf: NetConf) -> None:
    """Raise `CniError` NOT_AVAILABLE or LIMITED_CONNECTIVITY if ADD could not do its work."""
    if host.ipam.free(conf.name, conf.subnet) <= 0:
        raise CniError(Code.NOT_AVAILABLE, f"all addresses of {conf.subnet} are in use")
    if conf.overlay is None:
        return
    try:
        under = vxlan.underlay(host.sock, conf.overlay.me.address)
    except CniError as error:
        raise CniError(Code.NOT_AVAILABLE, str(error)) from error
    if not under.up:
        raise CniError(
            Code.LIMITED_CONNECTIVITY,
            f"interface {under.name} is down: containers of other hosts cannot be reached",
        )


def collect(host: Host, conf: NetConf, valid: Collection[tuple[str, str]]) -> None:
    """Remove every attachment of the network that is not in `valid` (container, interface)."""
    stale, kept = [], set()
    for lease in host.ipam.leases():
        identity = (lease.key.container, lease.key.ifname)
        if lease.key.network == conf.name and identity not in valid:
            stale.append(lease)
            _withdraw(host, lease)
        else:
            kept.add(bridge.veth_name(*identity))
    ends = {end.name: end.index for end in bridge.cables(host.sock, conf.bridge)}
    for lease in stale:
        name = bridge.veth_name(lease.key.container, lease.key.ifname)
        unplugged = None if name in ends else netlink.get_link(host.sock, name)
        if unplugged is not None:
            ends[name] = unplugged.index
    netlink.delete_links(host.sock, [index for name, index in ends.items() if name not in kept])
    for lease in stale:
        host.ipam.release(lease.key)


def apply(host: Host, conf: NetConf) -> None:
    """Have the network as configured, and plugged in and published what the leases say."""
    link = overlay.ensure(host.sock, host.nft, conf)
    leases = host.ipam.leases(conf.name)
    bridge.ensure_plugged(host.sock, link, [_cable(conf, lease) for lease in leases])
    restore_ports(host)


def restore_ports(host: Host) -> None:
    """Have exactly those ports published that the leases say; the table must exist."""
    portmap.restore(
        host.nft,
        [(port, lease.address) for lease in host.ipam.leases() for port in lease.ports],
    )
