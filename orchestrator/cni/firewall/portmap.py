# SPDX-License-Identifier: Apache-2.0
"""Published ports of single containers, in the table `inet orc` (see `networkfirewall`).

A published port is one element of a map, so that publishing one does not affect others, and a
look-up costs the same for one port and for ten thousand. There are four maps: for each family one
for ports on all addresses of this host, and one for ports on one address.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.firewall import antispoofing, networkfirewall
from orchestrator.cni.firewall.antispoofing import SourceBinding
from orchestrator.cni.firewall.networkfirewall import GONE
from orchestrator.cni.firewall.nftables import TABLE, Nftables, NftError, failed
from orchestrator.cni.netconf import ANY_ADDRESS, NetConf, PortMapping
from orchestrator.cni.netlink.links import Address

TAKEN = "File exists"
CONTAINERS = "containers"
"""The subject of containers' ports and addresses for `Nftables.ensure`."""
BRIDGED = "bridged"
"""The subject of the rules for bridged frames."""
FAMILIES = {4: ("published", "ip", "ipv4_addr"), 6: ("published6", "ip6", "ipv6_addr")}

Target = tuple[PortMapping, Address]
"""A port, and the container's address behind it."""


def _base() -> str:
    lines = [f"add table {TABLE}"]
    rules = []
    for name, family, kind in FAMILIES.values():
        key, value = "inet_proto . inet_service", f"{kind} . inet_service"
        lines += [
            f"add map {TABLE} {name} {{ type {key} : {value}; }}",
            f"add map {TABLE} {name}_at {{ type {kind} . {key} : {value}; }}",
        ]
        transport = "meta l4proto . th dport"
        rules += [
            f"add rule {TABLE} ports dnat {family} to {family} daddr . {transport} map @{name}_at",
            f"add rule {TABLE} ports meta nfproto {kind[:4]} dnat {family} to"
            f" {transport} map @{name}",
        ]
    lines += [
        f"add chain {TABLE} ports",
        f"add chain {TABLE} arriving {{ type nat hook prerouting priority dstnat; }}",
        f"add chain {TABLE} starting {{ type nat hook output priority -100; }}",
        *(f"flush chain {TABLE} {name}" for name in ("ports", "arriving", "starting")),
        *rules,
        # Not on a bridge's own address, on which the name server listens.
        f"add rule {TABLE} arriving iifname @members fib daddr . iif type local return",
        f"add rule {TABLE} arriving fib daddr type local jump ports",
        f"add rule {TABLE} starting fib daddr type local jump ports",
    ]
    return "\n".join(lines) + "\n"


BASE = _base()
MAPS = [name + suffix for name, _, _ in FAMILIES.values() for suffix in ("", "_at")]


def _same_family(port: PortMapping, address: Address) -> bool:
    return port.host_ip == ANY_ADDRESS or port.host_ip.version == address.version


def _element(port: PortMapping, version: int) -> tuple[str, str]:
    """The map and the key of a port."""
    name, _, _ = FAMILIES[version]
    key = f"{port.protocol} . {port.host_port}"
    return (name, key) if port.host_ip == ANY_ADDRESS else (f"{name}_at", f"{port.host_ip} . {key}")


def _value(port: PortMapping, address: Address) -> str:
    return f"{address} . {port.container_port}"


def _put(targets: Iterable[Target]) -> str:
    script = ""
    for port, address in targets:
        if _same_family(port, address):
            name, key = _element(port, address.version)
            script += f"add element {TABLE} {name} {{ {key} : {_value(port, address)} }}\n"
    return script


def script(conf: NetConf) -> str:
    """The script for the tables and one network's rules."""
    return networkfirewall.script(conf) + BASE


def ensure_bridged(nft: Nftables) -> None:
    """Ensure the rules for bridged frames if br_netfilter is on, which other programs may
    switch."""
    rules = antispoofing.between_ports(antispoofing.bridged_families())
    try:
        if rules:
            nft.ensure(BRIDGED, rules)
    except NftError as error:
        raise failed("nftables rules", error) from error


def ensure(nft: Nftables, conf: NetConf, bindings: Iterable[SourceBinding]) -> None:
    """Ensure the tables and one network's rules; published ports stay.

    `bindings` are those of the network's containers on this host, used if the tables are new or
    were changed by others.
    """
    ensure_bridged(nft)
    try:
        nft.ensure(conf.bridge, script(conf), lambda: antispoofing.rebind(conf.bridge, bindings))
    except NftError as error:
        raise failed("nftables rules", error) from error


def restore(nft: Nftables, targets: Iterable[Target], bindings: Iterable[SourceBinding]) -> None:
    """Replace all published ports and hairpin addresses, in one transaction without an outage."""
    script = "".join(f"flush map {TABLE} {name}\n" for name in MAPS)
    script += f"flush set {TABLE} itself4\nflush set {TABLE} itself6\n"
    try:
        nft.ensure(CONTAINERS, script + networkfirewall.hairpin(bindings) + _put(targets))
    except NftError as error:
        raise failed("published ports", error) from error


def restored(nft: Nftables) -> bool:
    """Whether the last `restore` is still in force."""
    return nft.holds(CONTAINERS)


def publish(nft: Nftables, targets: Iterable[Target], binding: SourceBinding) -> None:
    """Add a container's source binding and publish its ports, atomically; ports that are published
    already with the same target are no error."""
    script = networkfirewall.bind(binding) + _put(targets)
    nft.doubt(CONTAINERS)
    try:
        nft.run(script)
    except NftError as error:
        if TAKEN in str(error):
            raise CniError(
                Code.PORT_IN_USE,
                "a port is already published to another container of this host",
                str(error),
            ) from error
        raise failed("published ports", error) from error


def unpublish(nft: Nftables, ports: Iterable[PortMapping], binding: SourceBinding | None) -> None:
    """Unpublish ports, whatever their target, and remove the container's source binding; missing
    ones are ignored. `binding` None: the network is unknown."""
    nft.doubt(CONTAINERS)
    scripts = (
        [networkfirewall.unbind(binding), *networkfirewall.forget_drops(binding)]
        if binding is not None
        else []
    )
    for port in ports:
        for version in FAMILIES:
            if port.host_ip == ANY_ADDRESS or port.host_ip.version == version:
                name, key = _element(port, version)
                scripts.append(f"delete element {TABLE} {name} {{ {key} }}")
    for script in scripts:
        try:
            nft.run(script)
        except NftError as error:
            if GONE not in str(error):
                raise failed("published ports", error) from error


def missing(nft: Nftables, targets: Iterable[Target]) -> str:
    """A port that is not published with its target, for the user; empty if all are."""
    for port, address in targets:
        if not _same_family(port, address):
            continue
        name, key = _element(port, address.version)
        try:
            found = nft.run(f"get element {TABLE} {name} {{ {key} }}")
        except NftError:
            found = ""
        if f": {_value(port, address)}" not in " ".join(found.split()):
            return f"port {port} of this host no longer leads to {address}"
    return ""
