"""Which nodes of a network are others than this one, and which addresses are theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from orchestrator.cni import netlink, peers
from orchestrator.cni.endpoints import Network, Node, Service
from orchestrator.cni.netlink import Address
from orchestrator.cni.rtnetlink import RouteSocket


@dataclass(frozen=True, slots=True)
class Abroad:
    """The other nodes of a `network` that has the tunnel end `device` (an index) here.

    A network may have a thousand nodes: what it takes long to find is found once.
    """

    network: Network
    device: int
    mine: frozenset[Address]
    nodes: tuple[Node, ...]
    parts: frozenset[tuple[int, int, int]]
    """Of their subnets: version, length of the prefix, prefix."""
    lengths: frozenset[tuple[int, int]]
    alone: frozenset[Address]

    @classmethod
    def of(cls, sock: RouteSocket, network: Network, before: Self | None) -> Self | None:
        """Those of a network, now; `before` again if nothing differs. None without a tunnel end."""
        link = netlink.get_link(sock, network.device) if network.device else None
        if link is None:
            return None
        mine = frozenset(address.ip for _, address in netlink.addresses(sock, link.index))
        known = before is not None and (before.device, before.mine) == (link.index, mine)
        if before is not None and known and before.network == network:
            return before
        nodes = tuple(one for one in network.nodes if peers.vtep_address(one.subnet) not in mine)
        parts = frozenset(
            (part.version, part.prefixlen, _prefix(part.network_address, part.prefixlen))
            for node in nodes
            for part in (node.subnet, node.subnet6)
            if part is not None
        )
        lengths = frozenset((version, length) for version, length, _ in parts)
        alone = frozenset(address for node in nodes for address in node.addresses)
        return cls(network, link.index, mine, nodes, parts, lengths, alone)

    def __contains__(self, address: Address) -> bool:
        return address in self.alone or any(
            (version, length, _prefix(address, length)) in self.parts
            for version, length in self.lengths
            if version == address.version
        )

    def answers(self, service: Service) -> bool:
        """Whether a published port of another node may lead to a task of this one."""
        return bool(service.ports) and any(
            address not in self
            for endpoint in service.endpoints
            for address in (endpoint.address, endpoint.address6)
            if address is not None
        )


def _prefix(address: Address, length: int) -> int:
    return int(address) >> (address.max_prefixlen - length)
