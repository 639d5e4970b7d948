# SPDX-License-Identifier: Apache-2.0
"""The VXLAN device of a network, and its peers in the kernel."""

from __future__ import annotations

import errno
from ipaddress import IPv4Interface

from orchestrator.cni import peers
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.netlink import links, routing
from orchestrator.cni.netlink.links import Address, Link, Vxlan
from orchestrator.cni.netlink.netlinksocket import NetlinkError, Request, RouteSocket
from orchestrator.cni.netlink.routing import RouteEntry
from orchestrator.cni.peers import Entry, FdbEntry, Neighbour, Peer

GONE = frozenset({errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL})


def underlay(sock: RouteSocket, address: Address) -> Link:
    """The interface that has this host's own `address`; raises `CniError` if none has."""
    for index, present in links.addresses(sock):
        if present.ip == address:
            link = links.get_link(sock, index=index)
            if link is not None:
                return link
    raise CniError(
        Code.INVALID_CONFIG,
        f"no interface of this host has the address {address}: give the node an address that"
        " the other nodes reach it by",
    )


def refused(name: str, vni: int, error: NetlinkError) -> CniError:
    """The error for a VXLAN device that the kernel refused to create."""
    if error.errno in (errno.EOPNOTSUPP, errno.ENODEV):
        return CniError(
            Code.KERNEL_LACKS,
            "this kernel has no VXLAN: load the module vxlan, or use a kernel built with"
            " CONFIG_VXLAN",
            str(error),
        )
    if error.errno == errno.EPERM:
        return CniError(Code.IO_FAILURE, "networks need root (CAP_NET_ADMIN)", str(error))
    if error.errno == errno.EEXIST:
        return CniError(
            Code.INVALID_CONFIG,
            f"another VXLAN device already uses VNI {vni} on this host: remove it"
            " (ip -d link show type vxlan), or choose another VNI",
            str(error),
        )
    return CniError(Code.IO_FAILURE, f"VXLAN device {name}: {error.strerror}", str(error))


def difference(link: Link, wanted: Vxlan) -> str:
    """Why an existing device must be replaced, for the user; empty if it need not."""
    if link.kind != "vxlan" or link.vxlan is None:
        return f"it is a {link.kind or 'physical'} device"
    if link.vxlan != wanted:
        return f"it has {link.vxlan}"
    return ""


def ensure(sock: RouteSocket, name: str, me: Peer, mtu: int, wanted: Vxlan) -> Link:
    """Ensure the VXLAN device exists with these properties, up, with its address; return it.

    Properties that can be changed are changed in place. A device that differs otherwise is created
    again without its peers, which the caller adds next, at every pass.
    """
    mac = peers.vtep_mac(me.subnet)
    link = links.get_link(sock, name)
    if link is not None and difference(link, wanted):
        links.delete_link(sock, link.index)
        link = None
    if link is None:
        from orchestrator.cni.netlink import devices  # imports pyroute2

        try:
            devices.create_vxlan(sock, name, mac, mtu, wanted)
        except NetlinkError as error:
            raise refused(name, wanted.vni, error) from error
        link = links.get_link(sock, name)
        if link is None:
            raise CniError(
                Code.TRY_AGAIN_LATER, f"VXLAN device {name} vanished while being created"
            )
    if not link.up or link.mtu != mtu or link.mac != mac:
        sock.execute(links.link_request(link.index, mtu=mtu, mac=mac))
    links.ensure_addresses(sock, link.index, {IPv4Interface((peers.vtep_address(me.subnet), 32))})
    return link


def present_entries(sock: RouteSocket, index: int) -> frozenset[Entry]:
    """The kernel's entries of the device."""
    entries: list[Entry] = list(routing.routes(sock, index))
    entries += [Neighbour(address, mac) for address, mac in routing.neighbours(sock, index)]
    entries += [FdbEntry(mac, host) for mac, host in routing.vxlan_fdb(sock, index)]
    return frozenset(entries)


def _request(index: int, entry: Entry, *, remove: bool = False) -> Request:
    match entry:
        case RouteEntry():
            return routing.route_request(index, entry, remove=remove)
        case Neighbour():
            return routing.neighbour_request(index, entry.address, entry.mac, remove=remove)
        case FdbEntry():
            return routing.vxlan_fdb_request(index, entry.mac, entry.host, remove=remove)


def apply_peers(sock: RouteSocket, index: int, wanted: frozenset[Entry]) -> int:
    """Change the device's entries to the wanted ones; return the number of changes."""
    operations = peers.diff(wanted, present_entries(sock, index))
    removals = [_request(index, entry, remove=True) for entry in operations.remove]
    for outcome in sock.attempt(removals):
        if outcome is not None and outcome.errno not in GONE:
            raise outcome
    sock.execute(*[_request(index, entry) for entry in operations.put])
    return len(operations.remove) + len(operations.put)
