# SPDX-License-Identifier: Apache-2.0
"""A node's tunnels: their peers, the reported keys, and the peers of an encrypted network."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrator.agent.network.encryption import Encryption, TunnelOrder, tunnel_order
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import NetworkConfig, Peer
from orchestrator.agent.network.node_network import TunnelHost, TunnelKey, Tunnels
from orchestrator.model import nodes
from orchestrator.pb import dispatch_pb2, types_pb2

MINE, NEXT, OLD = (TunnelKey(name, 51840) for name in ("mine", "next", "old"))
ONE = TunnelHost("10.0.0.1", (TunnelKey("one", 51840),))
TWO = TunnelHost("10.0.0.2", (TunnelKey("two", 51840), TunnelKey("two+", 51841)))
NOBODY = TunnelHost("10.0.0.3", ())


class FakeTunnels:
    """A kernel's tunnels in memory."""

    def __init__(self, why: str = "", *kept: TunnelKey) -> None:
        self.why, self.kept = why, kept
        self.keys = (MINE,)
        self.asked: list[tuple[list[TunnelHost], int, float]] = []
        self.removed = 0
        self.broken = ""

    async def encryption(self) -> tuple[str, tuple[TunnelKey, ...]]:
        return self.why, self.kept

    async def tunnels(
        self, address: str, hosts: Sequence[TunnelHost], *, rotation: int, most_age: float
    ) -> Tunnels:
        if self.broken:
            raise NetworkError(self.broken)
        self.asked.append((list(hosts), rotation, most_age))
        return Tunnels(self.keys, {host.address: f"inside {host.address}" for host in hosts})

    async def remove_tunnels(self) -> None:
        self.removed += 1


def encryption(network: FakeTunnels) -> tuple[Encryption, list[int]]:
    """The object, and a list that grows with each change of its keys."""
    changes: list[int] = []
    return Encryption(network, "10.0.0.9", 60.0, lambda: changes.append(1)), changes


def public(made: Encryption) -> list[str]:
    return [key.public for key in made.keys]


CONFIG = NetworkConfig(
    id="n",
    name="back",
    vni=5,
    cluster_cidr="10.5.0.0/16",
    subnet="10.5.9.0/24",
    mtu=0,
    node_address="10.0.0.9",
    peers=tuple(Peer(f"10.5.{n}.0/24", f"10.0.0.{n}") for n in (1, 2, 3)),
    encrypted=True,
)


async def test_networks_share_tunnels_and_changed_keys_are_reported() -> None:
    network = FakeTunnels()
    made, changes = encryption(network)
    await made.read_keys()
    assert made.features == ("encrypted",)
    await made.apply([TunnelOrder((TWO, NOBODY), 1), TunnelOrder((ONE, TWO), 3)])
    assert network.asked == [([ONE, TWO], 3, 60.0)]
    assert (public(made), changes) == (["mine"], [1])
    assert made.keys == (nodes.TunnelKey("mine", 51840),)
    peers = made.through(CONFIG).peers
    # To the third there is no tunnel yet.
    assert [peer.address for peer in peers] == ["inside 10.0.0.1", "inside 10.0.0.2"]
    await made.apply([TunnelOrder((ONE,), 3)])
    assert changes == [1], "nothing has changed"
    network.keys = (MINE, NEXT)
    await made.apply([TunnelOrder((ONE,), 4)])
    assert (public(made), changes) == (["mine", "next"], [1, 1])


async def test_tunnels_are_removed_with_the_last_encrypted_network() -> None:
    network = FakeTunnels()
    made, changes = encryption(network)
    await made.read_keys()
    await made.apply([])
    assert network.removed == 0
    await made.apply([TunnelOrder((), 0)])
    await made.apply([])
    await made.apply([])
    assert (network.removed, public(made), changes) == (1, [], [1, 1])


async def test_a_restarted_agent_reports_the_keys_in_use() -> None:
    """Else the manager would take them from the others until the first pass is over."""
    network = FakeTunnels("", OLD)
    made, changes = encryption(network)
    await made.read_keys()
    assert (public(made), changes) == (["old"], [])
    await made.apply([])
    assert (network.removed, public(made), changes) == (1, [], [1])


async def test_a_failure_is_raised_where_needed_and_keys_stay() -> None:
    network = FakeTunnels()
    made, changes = encryption(network)
    await made.apply([TunnelOrder((ONE,), 0)])
    network.broken = "UDP port 51840 of this host is taken"
    await made.apply([TunnelOrder((ONE,), 0)])
    with pytest.raises(NetworkError, match="51840"):
        made.through(CONFIG)
    assert (public(made), changes) == (["mine"], [1])
    network.broken = ""
    await made.apply([TunnelOrder((ONE,), 0)])
    assert made.through(CONFIG).peers


async def test_a_kernel_without_encryption_is_not_reported_as_capable() -> None:
    made, _ = encryption(FakeTunnels("this kernel has no WireGuard"))
    await made.read_keys()
    assert (made.features, public(made)) == ((), [])


def test_an_order_of_a_manager() -> None:
    order = dispatch_pb2.AssignedNetwork(encrypted=True, key_rotation=7)
    order.peers.add(address="10.0.0.1", tunnel_keys=[types_pb2.TunnelKey(public="one", port=51840)])
    order.peers.add(address="10.0.0.3")
    assert tunnel_order(order) == TunnelOrder((ONE, NOBODY), 7)
    order.encrypted = False
    assert tunnel_order(order) is None
