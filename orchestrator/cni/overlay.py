"""A network on this host as a whole: forwarding, bridge, rules, tunnel, peers."""

from __future__ import annotations

from pathlib import Path

from . import bridge, netlink, peers, portmap, vxlan
from .config import NetConf, invalid
from .errors import CniError, Code
from .netlink import Link
from .nft import Nftables
from .rtnetlink import RouteSocket

SYSCTL = Path("/proc/sys/net/ipv4")


def ensure(sock: RouteSocket, nft: Nftables, conf: NetConf) -> Link:
    """Have all of the network but its containers; return the bridge. Level-triggered, cheap."""
    mtu = conf.mtu
    wanted = None
    if conf.overlay is not None:
        try:
            wanted = peers.desired(conf.overlay.me, conf.overlay.peers)
        except ValueError as error:
            raise invalid(f"peers: {error}") from error
        under = vxlan.underlay(sock, conf.overlay.me.address)
        mtu = mtu or under.mtu - vxlan.OVERHEAD
    _sysctl("ip_forward")
    link = bridge.ensure(sock, conf.bridge, conf.subnet, mtu)
    portmap.ensure(nft, conf.bridge, conf.subnet, conf.cluster, conf.masquerade)
    # After the rules that guard it.
    _sysctl(f"conf/{conf.bridge}/route_localnet")
    if conf.overlay is not None and wanted is not None:
        overlay = conf.overlay
        device = vxlan.ensure(sock, overlay.device, overlay.me, mtu, overlay.vni, overlay.port)
        vxlan.apply_peers(sock, device.index, wanted)
    return link


def remove(sock: RouteSocket, nft: Nftables, conf: NetConf, *, last: bool) -> None:
    """Remove the network's devices and rules; with the `last` network goes the table."""
    names = [conf.bridge, *([conf.overlay.device] if conf.overlay else [])]
    netlink.delete_links(sock, [port.index for port in bridge.cables(sock, conf.bridge)])
    for name in names:
        link = netlink.get_link(sock, name)
        if link is not None:
            netlink.delete_link(sock, link.index)
    portmap.remove(nft, conf.bridge, last=last)


def _sysctl(name: str) -> None:
    """Switch a setting of IPv4 on. Written only if it is off: writing resets what hangs on it."""
    path = SYSCTL / name
    try:
        if path.read_text().strip() == "0":
            path.write_text("1")
    except OSError as error:
        raise CniError(
            Code.IO_FAILURE,
            f"sysctl net.ipv4.{name.replace('/', '.')} cannot be set: {error.strerror}",
        ) from error
