# SPDX-License-Identifier: Apache-2.0
"""Rules that keep traffic of encrypted networks inside the tunnels, in the table `inet orc`; pure.

Output  packets of such a network leave by a tunnel's device only: also when the device is missing
        and a default route would match.
Input   unencrypted packets that claim to be of such a network, or from a host behind a tunnel, are
        dropped. WireGuard is accepted only from hosts of the cluster, by the interface of the route
        to them.
Forward nothing is forwarded into a tunnel or out of one: only this host's VXLAN uses tunnels, so no
        container can pose as a host. ICMPv6 is allowed, for troubleshooting.

As a second barrier, an encrypted network's VXLAN socket is IPv6 only, which packets of the IPv4
underlay cannot reach.
"""

from __future__ import annotations

from ipaddress import IPv6Network

from orchestrator.cni.firewall import hostaccess
from orchestrator.cni.firewall.nftables import TABLE
from orchestrator.cni.netconf import DEFAULT_PORT, NetConf

DEVICES = ("orcwg0", "orcwg1")
"""WireGuard devices; see `overlay.tunnelkeys`."""
PORTS = (51840, 51841)
"""UDP ports of these devices."""
PREFIX = IPv6Network("fd6f:7263::/32")
"""Addresses inside the tunnels; RFC 4193."""
TUNNELS = f"{{ {', '.join(DEVICES)} }}"
OURS = f"{{ {', '.join(DEVICES)}, lo }}"
_TO_WIREGUARD = f"udp dport {{ {', '.join(map(str, PORTS))} }} fib daddr type local"
VNI = "@th,96,24"  # behind 8 bytes of UDP and 4 of VXLAN (RFC 7348, section 5)

HOOKS = {
    "sealed_in": "type filter hook prerouting priority raw;",
    "sealed_through": "type filter hook forward priority filter;",
    "sealed_out": "type filter hook output priority filter;",
}

BASE = "".join(
    [
        f"add table {TABLE}\n",
        hostaccess.SETS,
        *(f"add chain {TABLE} {name} {{ {hook} }}\n" for name, hook in HOOKS.items()),
        *(f"flush chain {TABLE} {name}\n" for name in HOOKS),
        f"add rule {TABLE} sealed_in iifname != {OURS} ip6 saddr {PREFIX} drop\n",
        f"add rule {TABLE} sealed_in iifname != {OURS} ip6 daddr {PREFIX} drop\n",
        f"add rule {TABLE} sealed_in {_TO_WIREGUARD} ip saddr != @hosts drop\n",
        f"add rule {TABLE} sealed_in {_TO_WIREGUARD} fib saddr . iif oif 0 drop\n",
        f"add rule {TABLE} sealed_in iifname != {TUNNELS} accept\n",
        f"add rule {TABLE} sealed_in udp dport {DEFAULT_PORT} accept\n",
        f"add rule {TABLE} sealed_in meta l4proto != icmpv6 drop\n",
        f"add rule {TABLE} sealed_through iifname {TUNNELS} drop\n",
        f"add rule {TABLE} sealed_through oifname {TUNNELS} drop\n",
        f"add rule {TABLE} sealed_out oifname != {OURS} ip6 daddr {PREFIX} drop\n",
        f"add rule {TABLE} sealed_out oifname != {TUNNELS} accept\n",
        f"add rule {TABLE} sealed_out udp dport {DEFAULT_PORT} accept\n",
        f"add rule {TABLE} sealed_out meta l4proto != icmpv6 drop\n",
    ]
)


def _chains(conf: NetConf) -> dict[str, tuple[str, str]]:
    """The network's own chains: hook and rule."""
    if conf.overlay is None or not conf.overlay.encrypted:
        return {}
    what = f"udp dport {conf.overlay.port} {VNI} {conf.overlay.vni} drop"
    return {
        f"sealed_in_{conf.bridge}": (HOOKS["sealed_in"], f"iifname != {TUNNELS} {what}"),
        f"sealed_out_{conf.bridge}": (HOOKS["sealed_out"], f"oifname != {TUNNELS} {what}"),
    }


def script(conf: NetConf) -> str:
    """The script for a network; empty unless it is encrypted."""
    chains = _chains(conf)
    return (BASE if chains else "") + "".join(
        f"add chain {TABLE} {name} {{ {hook} }}\nflush chain {TABLE} {name}\n"
        f"add rule {TABLE} {name} {rule}\n"
        for name, (hook, rule) in chains.items()
    )


REMOVAL = tuple(f"delete chain {TABLE} {name}\n" for name in HOOKS)
"""The reverse of `BASE`; separate scripts, since some chains may be missing."""


def removal(conf: NetConf) -> str:
    """The reverse of a network's own chains in `script`; missing ones are ignored."""
    return "".join(
        f"add chain {TABLE} {name} {{ {hook} }}\ndelete chain {TABLE} {name}\n"
        for name, (hook, _) in _chains(conf).items()
    )
