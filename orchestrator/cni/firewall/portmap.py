# SPDX-License-Identifier: Apache-2.0
"""Published ports of this host alone, in the table `inet orc` (see `networkfirewall`).

A published port is one element of a map, so that publishing one touches no other, and a look-up
costs the same for one port and for ten thousand. There are four maps: of each family one for ports
of any address of this host, and one for ports of one address.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.firewall import antispoofing, networkfirewall
from orchestrator.cni.firewall.antispoofing import End
from orchestrator.cni.firewall.networkfirewall import GONE
from orchestrator.cni.firewall.nftables import TABLE, Nftables, NftError, failed
from orchestrator.cni.netconf import ANY_ADDRESS, NetConf, PortMapping
from orchestrator.cni.netlink.links import Address

TAKEN = "File exists"
CONTAINERS = "containers"
"""What the rules know of containers, as a subject of `Nftables.ensure`."""
BRIDGED = "bridged"
"""The rules for bridged packets, likewise."""
FAMILIES = {4: ("published", "ip", "ipv4_addr"), 6: ("published6", "ip6", "ipv6_addr")}

Target = tuple[PortMapping, Address]
"""A port, and the container's address to which it leads."""


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
        # A bridge's own address belongs to its network, with the name server on it.
        f"add rule {TABLE} arriving iifname @members fib daddr . iif type local return",
        f"add rule {TABLE} arriving fib daddr type local jump ports",
        f"add rule {TABLE} starting fib daddr type local jump ports",
    ]
    return "\n".join(lines) + "\n"


BASE = _base()
MAPS = [name + suffix for name, _, _ in FAMILIES.values() for suffix in ("", "_at")]


def _leads(port: PortMapping, address: Address) -> bool:
    return port.host_ip == ANY_ADDRESS or port.host_ip.version == address.version


def _element(port: PortMapping, version: int) -> tuple[str, str]:
    """Which map and which key a port has."""
    name, _, _ = FAMILIES[version]
    key = f"{port.protocol} . {port.host_port}"
    return (name, key) if port.host_ip == ANY_ADDRESS else (f"{name}_at", f"{port.host_ip} . {key}")


def _value(port: PortMapping, address: Address) -> str:
    return f"{address} . {port.container_port}"


def _put(targets: Iterable[Target]) -> str:
    script = ""
    for port, address in targets:
        if _leads(port, address):
            name, key = _element(port, address.version)
            script += f"add element {TABLE} {name} {{ {key} : {_value(port, address)} }}\n"
    return script


def script(conf: NetConf) -> str:
    """What has the tables and one network's rules."""
    return networkfirewall.script(conf) + BASE


def ensure_bridged(nft: Nftables) -> None:
    """Have what bridged packets need where they pass the rules, which others switch on and off."""
    rules = antispoofing.between_ports(antispoofing.bridged_families())
    try:
        if rules:
            nft.ensure(BRIDGED, rules)
    except NftError as error:
        raise failed("nftables rules", error) from error


def ensure(nft: Nftables, conf: NetConf, ends: Iterable[End]) -> None:
    """Have the tables and one network's rules; what is published stays published.

    `ends` are those of the network's containers on this host, for when the tables are new or were
    changed by others.
    """
    ensure_bridged(nft)
    try:
        nft.ensure(conf.bridge, script(conf), lambda: antispoofing.rebind(conf.bridge, ends))
    except NftError as error:
        raise failed("nftables rules", error) from error


def restore(nft: Nftables, targets: Iterable[Target], ends: Iterable[End]) -> None:
    """Have exactly these ports published, and these containers' ends able to reach themselves.

    In one transaction, so that none is out meanwhile.
    """
    script = "".join(f"flush map {TABLE} {name}\n" for name in MAPS)
    script += f"flush set {TABLE} itself4\nflush set {TABLE} itself6\n"
    try:
        nft.ensure(CONTAINERS, script + networkfirewall.itself(ends) + _put(targets))
    except NftError as error:
        raise failed("published ports", error) from error


def restored(nft: Nftables) -> bool:
    """Whether what `restore` had last is in force still, with nothing changed since."""
    return nft.holds(CONTAINERS)


def publish(nft: Nftables, targets: Iterable[Target], end: End) -> None:
    """Bind a container's end and publish its ports, all or none; those that already are published,
    with the same target, are fine."""
    script = networkfirewall.admit(end) + _put(targets)
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


def withdraw(nft: Nftables, ports: Iterable[PortMapping], end: End | None) -> None:
    """Publish these no more, whatever they lead to, nor let the container's end send; what is not
    there is fine. None: the end belongs to no network that is known."""
    nft.doubt(CONTAINERS)
    scripts = (
        [networkfirewall.dismiss(end), *networkfirewall.absolve(end)] if end is not None else []
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
    """A description of a port that is not published as it should be; empty if all are."""
    for port, address in targets:
        if not _leads(port, address):
            continue
        name, key = _element(port, address.version)
        try:
            found = nft.run(f"get element {TABLE} {name} {{ {key} }}")
        except NftError:
            found = ""
        if f": {_value(port, address)}" not in " ".join(found.split()):
            return f"port {port} of this host no longer leads to {address}"
    return ""
