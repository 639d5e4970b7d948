# SPDX-License-Identifier: Apache-2.0
"""A whole network on this host: forwarding, bridge, rules, VXLAN device, peers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from orchestrator.cni import peers
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.firewall import networkfirewall, portmap
from orchestrator.cni.firewall.antispoofing import SourceBinding
from orchestrator.cni.firewall.nftables import Nftables
from orchestrator.cni.jsonfields import invalid
from orchestrator.cni.netconf import NetConf
from orchestrator.cni.netlink import links
from orchestrator.cni.netlink.links import Address, Link
from orchestrator.cni.netlink.netlinksocket import RouteSocket
from orchestrator.cni.overlay import bridge, vxlan
from orchestrator.cni.peers import Entry

SYSCTL = Path("/proc/sys/net")


def ensure(
    sock: RouteSocket,
    nft: Nftables,
    conf: NetConf,
    held: Collection[Address],
    bindings: Iterable[SourceBinding],
) -> Link:
    """Ensure all of the network except its containers; return the bridge. Idempotent and cheap.

    `held` are the addresses of this host's containers outside its subnet, `bindings` the source
    addresses that its containers may use.
    """
    wanted = entries(conf, held)
    mtu = fitting_mtu(sock, conf)
    _switch_on("ipv4/ip_forward")
    if conf.ipv6 is not None:
        _forward_ipv6()
    link = bridge.ensure(
        sock,
        conf.bridge,
        IPv4Interface((conf.gateway, conf.subnet.prefixlen)),
        IPv6Interface((conf.ipv6.gateway, conf.ipv6.subnet.prefixlen)) if conf.ipv6 else None,
        mtu,
    )
    _send_no_redirects(conf.bridge)
    portmap.ensure(nft, conf, bindings)
    # After the rules that guard it.
    _switch_on(f"ipv4/conf/{conf.bridge}/route_localnet")
    if conf.overlay is not None:
        overlay = conf.overlay
        device = vxlan.ensure(sock, overlay.device, overlay.me, mtu, overlay.vxlan)
        vxlan.apply_peers(sock, device.index, wanted)
    if not conf.source_check or conf.allowed_sources:
        _route_any_source(conf)
    return link


def entries(conf: NetConf, held: Collection[Address]) -> frozenset[Entry]:
    """The desired entries for the other hosts; none for a network of this host alone."""
    if conf.overlay is None:
        return frozenset()
    try:
        return peers.desired(conf.overlay.me, conf.overlay.peers, conf.gateway, held)
    except ValueError as error:
        raise invalid(f"peers: {error}") from error


def fitting_mtu(sock: RouteSocket, conf: NetConf) -> int:
    """The network's MTU in bytes: as configured, else as fits the tunnel. 0: the default."""
    if conf.overlay is None:
        return conf.mtu
    under = vxlan.underlay(sock, conf.overlay.node)
    most = under.mtu - conf.overlay.overhead
    if conf.mtu > most:
        raise invalid(
            f"mtu {conf.mtu} is too large: packets of at most {most} bytes fit the tunnel over"
            f" {under.name}, whose own mtu is {under.mtu}"
        )
    # Paths of the underlay may carry less than its interface.
    carried = min(under.mtu, conf.path_mtu or under.mtu)
    return conf.mtu or max(carried - conf.overlay.overhead, conf.least_mtu)


def remove(sock: RouteSocket, nft: Nftables, conf: NetConf, *, last: bool) -> None:
    """Remove the network's devices and rules; with the `last` network also the table."""
    names = [conf.bridge, *([conf.overlay.device] if conf.overlay else [])]
    links.delete_links(sock, [port.index for port in bridge.ports(sock, conf.bridge)])
    for name in names:
        link = links.get_link(sock, name)
        if link is not None:
            links.delete_link(sock, link.index)
    networkfirewall.remove(nft, conf, last=last)


def switched_off(conf: NetConf) -> list[str]:
    """The sysctls below `net` that the network needs and that are off."""
    needed = ["ipv4/ip_forward"]
    if (SYSCTL / "ipv4/conf" / conf.bridge).exists():
        needed.append(f"ipv4/conf/{conf.bridge}/route_localnet")
    if conf.ipv6 is not None:
        needed.append("ipv6/conf/all/forwarding")
    return [name for name in needed if _read(name) == "0"]


def _forward_ipv6() -> None:
    """Switch IPv6 forwarding on.

    A host that forwards ignores router advertisements and would lose its own default route:
    interfaces that accept them are set to accept them still (accept_ra 2).
    """
    if _read("ipv6/conf/all/forwarding") != "0":
        return
    for path in sorted((SYSCTL / "ipv6/conf").glob("*/accept_ra")):
        name = str(path.relative_to(SYSCTL))
        if _read(name) == "1":
            _write(name, "2")
    _write("ipv6/conf/all/forwarding", "1")


def _send_no_redirects(bridge: str) -> None:
    """Switch off ICMP redirects for packets between containers of this host.

    Our rules drop redirects, but the kernel counts them for the rate limit of ICMP errors
    (icmp_ratelimit): a client that has just sent to a neighbour would wait a second for the
    rejection by a service. The setting of `all` applies beside each interface's own, which is on
    by default.
    """
    for name in ("all", bridge):
        _switch(f"ipv4/conf/{name}/send_redirects", on=False)


def _route_any_source(conf: NetConf) -> None:
    """Make strict reverse path filtering (rp_filter 1) accept packets from the network whose
    sources are not routed there, such as those of a VPN behind a container."""
    if _read("ipv4/conf/all/rp_filter") != "1":
        return
    for device in (conf.bridge, *([conf.overlay.device] if conf.overlay else [])):
        name = f"ipv4/conf/{device}/rp_filter"
        # The larger of `all` and the device's counts, and 2 (loose) is more than 1.
        if _read(name) != "2":
            _write(name, "2")


def _switch_on(name: str) -> None:
    _switch(name, on=True)


def _switch(name: str, *, on: bool) -> None:
    """Write only if it differs: writing resets dependent settings."""
    if on != (_read(name) != "0"):
        _write(name, str(int(on)))


def _read(name: str) -> str:
    try:
        return (SYSCTL / name).read_text().strip()
    except OSError as error:
        raise _refused(name, "read", error) from error


def _write(name: str, value: str) -> None:
    try:
        (SYSCTL / name).write_text(value)
    except OSError as error:
        raise _refused(name, "set", error) from error


def _refused(name: str, what: str, error: OSError) -> CniError:
    setting = f"net.{name.replace('/', '.')}"
    return CniError(Code.IO_FAILURE, f"sysctl {setting} cannot be {what}: {error.strerror}")
