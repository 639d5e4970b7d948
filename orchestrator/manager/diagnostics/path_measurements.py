# SPDX-License-Identifier: Apache-2.0
"""Measurements of the paths between nodes, and the rounds in which they are taken. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EchoResult:
    """Echo requests and replies; `latency` in seconds, the median."""

    sent: int = 0
    received: int = 0
    latency: float = 0.0

    @property
    def lost(self) -> float:
        """The share of lost packets."""
        return 1 - self.received / self.sent if self.sent else 0.0


@dataclass(frozen=True, slots=True)
class ConfigurationDrift:
    """How the kernel's state of a network (all, if empty) differs from its configuration, and why
    it cannot be repaired."""

    network: str
    deviations: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True)
class DroppedPackets:
    """Packets of a container, by name, that were dropped for foreign source addresses."""

    network: str
    container: str
    packets: int


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node and its report."""

    name: str
    address: str = ""
    state: str = "ready"
    trouble: str = ""
    """Why it was not tested; empty if it was."""
    mtu: int = 0
    """Of the network on that node, in bytes; 0: the node does not have it."""
    device: str = ""
    device_mtu: int = 0
    drifts: tuple[ConfigurationDrift, ...] = ()
    tracked: int = 0
    """Tracked connections, of at most `trackable`."""
    trackable: int = 0
    dropped: tuple[DroppedPackets, ...] = ()

    @property
    def tested(self) -> bool:
        return self.state == "ready" and not self.trouble


@dataclass(frozen=True, slots=True)
class PathFacts:
    """Measurements from one node, by name, to another."""

    source: str
    target: str
    underlay: EchoResult = EchoResult()
    overlay: EchoResult = EchoResult()
    large: EchoResult = EchoResult()
    """Echoes as large as the network's MTU at the source."""
    path_mtu: int = 0
    """Bytes; 0: unknown."""
    datagrams: int = 0
    """Datagrams of each kind that were sent over the network; 0: none, or arrivals are unknown."""
    checked: int = 0
    """Datagrams with a checksum that arrived."""
    unchecked: int = 0
    """Datagrams without a checksum that arrived."""
    rate: float = 0.0
    """Bits per second; 0: not measured."""

    @property
    def pair(self) -> frozenset[str]:
        return frozenset((self.source, self.target))


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """The network that was tested. `asked_mtu`: the configured MTU in bytes; 0: automatic."""

    name: str
    vni: int = 0
    asked_mtu: int = 0
    encrypted: bool = False

    @property
    def overhead(self) -> int:
        """Encapsulation overhead in bytes: VXLAN over IPv4; or over IPv6, in WireGuard."""
        return 130 if self.encrypted else 50

    @property
    def transport(self) -> str:
        """What a firewall has to allow for its packets."""
        return "UDP ports 51840 and 51841" if self.encrypted else "UDP port 4789"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about a problem (`wrong`) or a notable fact, and one about the remedy."""

    wrong: bool
    nodes: tuple[str, ...]
    text: str
    remedy: str = ""


def measurement_rounds(names: Sequence[str], most: int) -> list[list[tuple[str, str]]]:
    """Every pair once, in rounds in which every node has one partner; at most `most` rounds, so
    that each node meets as many others. (The circle method of round-robin tournaments.)"""
    ring: list[str | None] = list(names)
    if len(ring) % 2:
        ring.append(None)
    found = []
    for _ in range(min(most, len(ring) - 1)):
        half = len(ring) // 2
        pairs = zip(ring[:half], reversed(ring[half:]), strict=True)
        if met := [(one, two) for one, two in pairs if one is not None and two is not None]:
            found.append(met)
        ring.insert(1, ring.pop())
    return found
