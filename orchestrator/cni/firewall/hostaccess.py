# SPDX-License-Identifier: Apache-2.0
"""Access of containers to hosts of the cluster and metadata services; the list of hosts. Pure.

    hosts      addresses of all hosts of the cluster on the underlay, this one included
    ports      TCP ports of these hosts that are closed to containers
    addresses  closed to containers on all ports: metadata services of clouds
    guests     addresses of containers on networks of other plugins (`externalnetworks`)
    checked    the interfaces of such containers

The set `sources` also has the interface by which hosts are expected, the one with this host's own
address: packets from them by that interface are accepted without further checks.

The agent sends it for all networks at once. The rules are in `networkfirewall`; the sets exist
from the first network on, empty except for the hosts in the network's configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address

from orchestrator.cni import jsonfields
from orchestrator.cni.fastrecord import TYPE_CHECKING, record
from orchestrator.cni.firewall import externalnetworks, nftables
from orchestrator.cni.firewall.externalnetworks import Guest
from orchestrator.cni.firewall.nftables import TABLE, Nftables, NftError
from orchestrator.cni.netlink.links import Address

if TYPE_CHECKING:
    from typing import Any

SUBJECT = "exposure"
"""The subject for `Nftables.ensure`."""
KINDS = {
    "hosts": "ipv4_addr",
    "sources": "ifname . ipv4_addr",
    "closed_ports": "inet_service",
    "closed4": "ipv4_addr",
    "closed6": "ipv6_addr",
    "guests4": "ipv4_addr",
    "guests6": "ipv6_addr",
}
MEANINGS = {
    "hosts": "hosts of the cluster",
    "sources": "interfaces to hosts of the cluster",
    "closed_ports": "control-plane ports closed to containers",
    "closed4": "addresses closed to containers",
    "closed6": "addresses closed to containers",
    "guests4": "containers on networks of plugins",
    "guests6": "containers on networks of plugins",
}
"""Set → its meaning, for messages."""
SETS = "".join(f"add set {TABLE} {name} {{ type {kind}; }}\n" for name, kind in KINDS.items())


@record
class Exposure:
    """The agent's request; see the module."""

    hosts: tuple[IPv4Address, ...]
    ports: tuple[int, ...]
    addresses: tuple[Address, ...]
    guests: tuple[Address, ...] = ()
    checked: tuple[Guest, ...] = ()


def parse(raw: Mapping[str, Any]) -> Exposure:
    """Validate the agent's request; raises `CniError`."""
    return Exposure(
        tuple(
            jsonfields.address4(one, "hosts")
            for one in jsonfields.listed(raw.get("hosts"), "hosts")
        ),
        tuple(
            jsonfields.integer(one, "ports", 1, 65535)
            for one in jsonfields.listed(raw.get("ports"), "ports")
        ),
        tuple(
            jsonfields.address(one, "addresses")
            for one in jsonfields.listed(raw.get("addresses"), "addresses")
        ),
        tuple(
            jsonfields.address(one, "guests")
            for one in jsonfields.listed(raw.get("guests"), "guests")
        ),
        externalnetworks.parse(raw.get("checked")),
    )


def elements(exposure: Exposure, underlay: Iterable[str]) -> dict[str, list[str]]:
    """What is to be in which set; `underlay` are the interfaces with an address of the hosts'."""
    hosts = sorted({str(one) for one in exposure.hosts})
    return {
        "hosts": hosts,
        "sources": [f'"{name}" . {host}' for name in sorted(underlay) for host in hosts],
        "closed_ports": sorted({str(one) for one in exposure.ports}),
        **_by_family("closed", exposure.addresses),
        **_by_family("guests", exposure.guests),
    }


def deviations(nft: Nftables, exposure: Exposure, underlay: Iterable[str]) -> Iterator[str]:
    """What the kernel's sets lack or have in addition, for the user."""
    counts = nftables.counts([nft.qualified(TABLE)])
    for name, wanted in elements(exposure, underlay).items():
        label = f"{TABLE} {name}"
        found = counts.get(nft.qualified(label))
        # Networks add the hosts of their configuration.
        surplus = found is not None and found > len(wanted) and name != "hosts"
        if found is None or surplus or not _holds(nft, label, wanted):
            number = "is gone" if found is None else f"has {found} entries, of {len(wanted)}"
            yield f"nftables: {label} ({MEANINGS[name]}) {number}"


def _holds(nft: Nftables, name: str, wanted: Sequence[str]) -> bool:
    try:
        if wanted:
            nft.run(f"get element {name} {{ {', '.join(wanted)} }}")
    except NftError:
        return False
    return True


def _by_family(name: str, addresses: Iterable[Address]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {f"{name}4": [], f"{name}6": []}
    for address in sorted(set(map(str, addresses))):
        found[f"{name}{6 if ':' in address else 4}"].append(address)
    return found


def script(exposure: Exposure, underlay: Iterable[str]) -> str:
    """The script that sets the sets' elements; see `elements`."""
    lines = [f"add table {TABLE}\n", SETS]
    for name, found in elements(exposure, underlay).items():
        lines.append(f"flush set {TABLE} {name}\n")
        if found:
            lines.append(f"add element {TABLE} {name} {{ {', '.join(found)} }}\n")
    return "".join(lines)
