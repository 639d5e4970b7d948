"""What a diagnosis of the paths between nodes measures, and who tests whom. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EchoResult:
    """Packets that were to come back; `latency` in seconds, the median."""

    sent: int = 0
    received: int = 0
    latency: float = 0.0

    @property
    def lost(self) -> float:
        """The share that did not come back."""
        return 1 - self.received / self.sent if self.sent else 0.0


@dataclass(frozen=True, slots=True)
class ConfigurationDrift:
    """What of a network (all, if empty) the kernel has not as it was made, and why it cannot be."""

    network: str
    deviations: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True)
class DroppedPackets:
    """Packets of a container, by name, that had source addresses of others."""

    network: str
    container: str
    packets: int


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node, and what it told of itself."""

    name: str
    address: str = ""
    state: str = "ready"
    trouble: str = ""
    """Why it was not tested; empty: it was."""
    mtu: int = 0
    """Of the network there, in bytes; 0: the node has not got it."""
    device: str = ""
    device_mtu: int = 0
    drifts: tuple[ConfigurationDrift, ...] = ()
    tracked: int = 0
    """Connections that the kernel tracks, of at most `trackable`."""
    trackable: int = 0
    dropped: tuple[DroppedPackets, ...] = ()

    @property
    def tested(self) -> bool:
        return self.state == "ready" and not self.trouble


@dataclass(frozen=True, slots=True)
class PathFacts:
    """What was measured from one node, by name, to another."""

    source: str
    target: str
    underlay: EchoResult = EchoResult()
    overlay: EchoResult = EchoResult()
    large: EchoResult = EchoResult()
    """As large as the network's MTU at the source."""
    path_mtu: int = 0
    """Bytes; 0: not found out."""
    datagrams: int = 0
    """Of each kind that were sent over the network; 0: none, or nobody tells what arrived."""
    checked: int = 0
    """Datagrams with a checksum that arrived."""
    unchecked: int = 0
    """Those without one."""
    rate: float = 0.0
    """Bits a second; 0: not measured."""

    @property
    def pair(self) -> frozenset[str]:
        return frozenset((self.source, self.target))


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """The network that was tested. `asked_mtu`: bytes that its maker wanted; 0: left to us."""

    name: str
    vni: int = 0
    asked_mtu: int = 0
    encrypted: bool = False

    @property
    def overhead(self) -> int:
        """Bytes by which its packets grow on their way between nodes: VXLAN over IPv4; or over
        IPv6, in WireGuard."""
        return 130 if self.encrypted else 50

    @property
    def transport(self) -> str:
        """What of a firewall lets its packets through."""
        return "UDP ports 51840 and 51841" if self.encrypted else "UDP port 4789"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence on what is `wrong`, or only worth knowing, and one on what mends it."""

    wrong: bool
    nodes: tuple[str, ...]
    text: str
    mend: str = ""


def measurement_rounds(names: Sequence[str], most: int) -> list[list[tuple[str, str]]]:
    """Every pair once, in rounds in which nobody has two; no more rounds than `most`, so that each
    node meets as many others. (The circle method of round-robin tournaments.)"""
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
