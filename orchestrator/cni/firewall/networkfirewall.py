# SPDX-License-Identifier: Apache-2.0
"""The packet filter of networks: the table `inet orc`, and `inet orc_cni` for the networks of other
container runtimes on the same host.

Isolation           containers of a network are reachable from the network itself, from this host,
                    and by published ports; all else is dropped. An `internal` network has no
                    published ports.
Masquerading        packets that leave a network get the host's address.
Hairpin             a container that connects to itself by a translated address (a published port, a
                    service) would receive a packet from its own address, and drop it: the packet
                    gets the host's. Containers' addresses are in the sets `itself4`, `itself6`.
Sources             packets of a container must have its own source addresses (`antispoofing`).
Tunnels             nothing is forwarded to the tunnel ports (VXLAN, WireGuard) of a host of the
                    cluster, masqueraded or not: a container could pose as a host and inject packets
                    into other networks. This host accepts VXLAN of our networks only from hosts of
                    the cluster, by the interface of the route to them.
Closed              containers reach neither the control plane's ports on hosts of the cluster nor
                    the metadata services of clouds, as far as these are closed (see `hostaccess`).
Redirects           ICMP redirects are dropped: containers send to neighbours through the host.
Name server         DNS queries to the gateway, and its responses, are not tracked. A resolver uses
                    a new port for each query, which would take a conntrack entry for half a minute:
                    a busy container would fill the table, and the host could open no connection.
                    No NAT is needed there. Queries beyond a few thousand a second from one address
                    are dropped, so that those of others are answered.
Loopback            route_localnet makes 127.0.0.1 reachable through the bridge's device, which
                    published ports need and containers must not use (cf. CVE-2020-8558).

Networks are elements of sets, so rules cost the same with one network and with a hundred; only the
first packet of a connection passes each network's masquerading chain. Rules that rule out most
packets come first, and there is one chain for each hook: a chain costs every packet some 40 ns.
Tables of other programs are never changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.cni.firewall import antispoofing, hostaccess, tunnelguard
from orchestrator.cni.firewall.antispoofing import SourceBinding
from orchestrator.cni.firewall.nftables import TABLE, TABLES, Nftables, NftError, failed
from orchestrator.cni.netconf import DEFAULT_PORT, NetConf
from orchestrator.cni.netlink.links import Network

GONE = "No such file or directory"
MOST_QUESTIONS = "limit rate over 4000/second burst 2000 packets"
"""Per address; the name server can answer five times as many."""
TUNNEL_PORTS = f"{{ {DEFAULT_PORT}, {', '.join(map(str, tunnelguard.PORTS))} }}"
DENY = "reject with icmpx admin-prohibited"

BASE = f"""
add table {TABLE}
add set {TABLE} members {{ type ifname; }}
add set {TABLE} internal {{ type ifname; }}
add set {TABLE} ways {{ type ifname . ifname; }}
add set {TABLE} itself4 {{ type ipv4_addr . ipv4_addr; }}
add set {TABLE} itself6 {{ type ipv6_addr . ipv6_addr; }}
add set {TABLE} askers4 {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 10s; }}
add set {TABLE} askers6 {{ type ipv6_addr; size 65535; flags dynamic,timeout; timeout 10s; }}
add chain {TABLE} forward {{ type filter hook forward priority filter; }}
add chain {TABLE} input {{ type filter hook input priority filter; }}
add map {TABLE} entrances {{ type ifname : verdict; }}
{hostaccess.SETS}add map {TABLE} vnis {{ typeof {tunnelguard.VNI} : verdict; }}
add chain {TABLE} tunneled
add chain {TABLE} closed
add chain {TABLE} own {{ type filter hook output priority raw; }}
add chain {TABLE} guard {{ type filter hook prerouting priority raw; }}
add chain {TABLE} question
add chain {TABLE} hairpin {{ type nat hook postrouting priority srcnat; }}
flush chain {TABLE} forward
flush chain {TABLE} input
flush chain {TABLE} own
flush chain {TABLE} guard
flush chain {TABLE} question
flush chain {TABLE} hairpin
flush chain {TABLE} tunneled
flush chain {TABLE} closed
add rule {TABLE} tunneled ip saddr != @hosts drop
add rule {TABLE} tunneled fib saddr . iif oif 0 drop
add rule {TABLE} closed ip daddr @closed4 {DENY}
add rule {TABLE} closed ip6 daddr @closed6 {DENY}
add rule {TABLE} closed ip daddr @hosts tcp dport @closed_ports {DENY}
add rule {TABLE} closed tcp dport @closed_ports fib daddr type local {DENY}
add rule {TABLE} forward udp dport {TUNNEL_PORTS} ip daddr @hosts drop
add rule {TABLE} forward ct state established,related accept
add rule {TABLE} forward iifname . oifname @ways accept
add rule {TABLE} forward iifname @members udp dport {DEFAULT_PORT} drop
add rule {TABLE} forward iifname @internal {DENY}
add rule {TABLE} forward iifname @members jump closed
add rule {TABLE} forward ip saddr @guests4 jump closed
add rule {TABLE} forward ip6 saddr @guests6 jump closed
add rule {TABLE} forward oifname @internal drop
add rule {TABLE} forward ct status dnat accept
add rule {TABLE} forward oifname @members drop
add rule {TABLE} input udp dport {DEFAULT_PORT} iifname . ip saddr @sources accept
add rule {TABLE} input udp dport {DEFAULT_PORT} {tunnelguard.VNI} vmap @vnis
add rule {TABLE} input ct state established,related accept
add rule {TABLE} input iifname @members udp dport {DEFAULT_PORT} drop
add rule {TABLE} input iifname @members jump closed
add rule {TABLE} input ip saddr @guests4 jump closed
add rule {TABLE} input ip6 saddr @guests6 jump closed
add rule {TABLE} input iifname != @internal accept
add rule {TABLE} input meta l4proto {{ icmp, icmpv6 }} accept
add rule {TABLE} input meta l4proto {{ tcp, udp }} th dport 53 accept
add rule {TABLE} input {DENY}
add rule {TABLE} own icmp type redirect oifname @members drop
add rule {TABLE} own icmpv6 type nd-redirect oifname @members drop
add rule {TABLE} own udp sport 53 oifname @members fib saddr . oif type local notrack
add rule {TABLE} guard iifname vmap @entrances
add rule {TABLE} guard ip daddr 127.0.0.0/8 iifname @members drop
add rule {TABLE} guard udp dport 53 iifname @members fib daddr . iif type local goto question
add rule {TABLE} question update @askers4 {{ ip saddr {MOST_QUESTIONS} }} drop
add rule {TABLE} question update @askers6 {{ ip6 saddr {MOST_QUESTIONS} }} drop
add rule {TABLE} question notrack
add rule {TABLE} hairpin ip saddr . ip daddr @itself4 masquerade
add rule {TABLE} hairpin ip6 saddr . ip6 daddr @itself6 masquerade
"""


def _devices(conf: NetConf) -> list[str]:
    return [conf.bridge, *([conf.overlay.device] if conf.overlay else [])]


def _elements(conf: NetConf) -> dict[str, list[str]]:
    """Set → elements of the network."""
    names = [f'"{name}"' for name in _devices(conf)]
    ways = [f"{one} . {two}" for one in names for two in names]
    return {"members": names, "ways": ways, "internal": names if conf.internal else []}


def _network(conf: NetConf) -> str:
    out = f"{TABLE} masquerade_{conf.bridge}"
    names = ", ".join(f'"{name}"' for name in _devices(conf))
    script = ""
    for name, elements in _elements(conf).items():
        if elements:
            script += f"add element {TABLE} {name} {{ {', '.join(elements)} }}\n"
    if not conf.internal:
        # Added first, so that the deletion works if it is missing.
        script += f"add element {TABLE} internal {{ {names} }}\n"
        script += f"delete element {TABLE} internal {{ {names} }}\n"
    script += _tunnel(conf)
    script += f"add chain {out} {{ type nat hook postrouting priority srcnat; }}\n"
    script += f"flush chain {out}\n"
    script += f'add rule {out} oifname "{conf.bridge}" ip saddr 127.0.0.0/8 masquerade\n'
    if conf.masquerade:
        # Only packets from this host's bridge: those of other hosts are masqueraded already.
        inside = f"{{ {conf.cluster}, 224.0.0.0/4, 255.255.255.255 }}"
        script += (
            f"add rule {out} oifname != {{ {names} }}{_from('ip', conf, conf.cluster)}"
            f' iifname "{conf.bridge}" ip daddr != {inside} masquerade\n'
        )
        if conf.ipv6 is not None:
            script += (
                f"add rule {out} oifname != {{ {names} }}"
                f"{_from('ip6', conf, conf.ipv6.cluster)}"
                f' iifname "{conf.bridge}" ip6 daddr != {{ {conf.ipv6.cluster}, fe80::/10,'
                " ff00::/8 } masquerade\n"
            )
    return script


def _from(family: str, conf: NetConf, cluster: Network) -> str:
    """Match of masqueraded sources: the network's; any, where sources are not checked, since its
    containers may forward packets of others."""
    if not conf.source_check:
        return ""
    others = [one for one in conf.allowed_sources if one.version == cluster.version]
    sources = ", ".join(str(one) for one in antispoofing.merged([cluster, *others]))
    return f" {family} saddr {{ {sources} }}"


def _allowed(conf: NetConf) -> tuple[Network, ...] | None:
    return conf.allowed_sources if conf.source_check else None


def _tunnel(conf: NetConf) -> str:
    """The elements that admit a network's other hosts; encrypted networks have `tunnelguard`."""
    if conf.overlay is None or conf.overlay.encrypted:
        return ""
    hosts = {str(peer.address) for peer in conf.overlay.peers} | {str(conf.overlay.node)}
    return (
        f"add element {TABLE} vnis {{ {conf.overlay.vni} : jump tunneled }}\n"
        f"add element {TABLE} hosts {{ {', '.join(sorted(hosts))} }}\n"
    )


def incomplete(nft: Nftables, conf: NetConf) -> list[str]:
    """The sets that lack elements of the network."""
    wanted = {f"{TABLE} {name}": elements for name, elements in _elements(conf).items()}
    wanted |= {name: [f'"{conf.bridge}"'] for name in antispoofing.ENTRANCES}
    lacking = []
    for name, elements in wanted.items():
        try:
            if elements:
                nft.run(f"get element {name} {{ {', '.join(elements)} }}")
        except NftError:
            lacking.append(name)
    return lacking


def present(nft: Nftables, conf: NetConf) -> bool:
    """Whether the table has the rules of a network."""
    try:
        nft.run(f"list chain {TABLE} masquerade_{conf.bridge}")
    except NftError:
        return False
    return True


def script(conf: NetConf) -> str:
    """The script for the table and the rules of one network; other networks' rules stay."""
    return (
        BASE
        + _network(conf)
        + antispoofing.script(conf.bridge, _allowed(conf))
        + tunnelguard.script(conf)
    )


def _hairpin(bindings: Iterable[SourceBinding]) -> list[tuple[str, str]]:
    return [
        (f"{TABLE} itself{one.version}", f"{one} . {one}")
        for binding in bindings
        for one in binding.addresses
    ]


def hairpin(bindings: Iterable[SourceBinding]) -> str:
    """The script that lets containers connect to themselves by translated addresses."""
    return "".join(f"add element {name} {{ {key} }}\n" for name, key in _hairpin(bindings))


def bind(binding: SourceBinding) -> str:
    """The script that adds a container: its source binding, and hairpin."""
    return hairpin([binding]) + antispoofing.bind([binding])


def unbind(binding: SourceBinding) -> str:
    """The reverse of `bind`; missing elements are ignored."""
    return "".join(
        f"{verb} element {name} {{ {key} }}\n"
        for name, key in (*_hairpin([binding]), *antispoofing.elements(binding))
        for verb in ("add", "delete")
    )


def forget_drops(binding: SourceBinding) -> list[str]:
    """Separate scripts that remove a container's counters of dropped packets, since its MAC may be
    reused."""
    return [
        f"delete element {name} {{ {binding.mac} }}\n"
        for name in antispoofing.forgers(binding.bridge)
    ]


def remove(nft: Nftables, conf: NetConf, *, last: bool) -> None:
    """Remove a network's rules; with the `last` one also the tables."""
    nft.doubt_all()
    scripts = [f"add table {table}\ndelete table {table}\n" for table in TABLES]
    if not last:
        scripts = [
            "".join(
                f"{verb} element {TABLE} {name} {{ {', '.join(elements)} }}\n"
                for name, elements in _elements(conf).items()
                if elements
                for verb in ("add", "delete")
            ),
            f"delete chain {TABLE} masquerade_{conf.bridge}\n",
            antispoofing.removal(conf.bridge),
            f"delete element {TABLE} vnis {{ {conf.overlay.vni} : jump tunneled }}\n"
            if conf.overlay is not None and not conf.overlay.encrypted
            else "",
            tunnelguard.removal(conf),
        ]
    for one in filter(None, scripts):
        try:
            nft.run(one)
        except NftError as error:
            if GONE not in str(error):
                raise failed("nftables rules", error) from error
