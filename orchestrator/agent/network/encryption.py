# SPDX-License-Identifier: Apache-2.0
"""Encrypted networks: this node's tunnels to other nodes, and its public keys.

All encrypted networks share one key and one set of tunnels, which exist while there is such a
network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import NetworkConfig
from orchestrator.agent.network.node_network import TunnelHost, TunnelKey, Tunnels
from orchestrator.model import nodes
from orchestrator.model.networks import ENCRYPTED
from orchestrator.pb import dispatch_pb2

log = logging.getLogger(__name__)


class Tunnelling(Protocol):
    """The methods of `node_network.NodeNetwork` that are used here; see there."""

    async def encryption(self) -> tuple[str, tuple[TunnelKey, ...]]: ...

    async def tunnels(
        self, address: str, hosts: Sequence[TunnelHost], *, rotation: int, most_age: float
    ) -> Tunnels: ...

    async def remove_tunnels(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TunnelOrder:
    """The tunnels of an encrypted network: to which hosts, and the number of the key rotation."""

    hosts: tuple[TunnelHost, ...]
    rotation: int


def tunnel_order(network: dispatch_pb2.AssignedNetwork) -> TunnelOrder | None:
    """The tunnels that a network needs; None if it needs none."""
    if not network.encrypted:
        return None
    return TunnelOrder(
        tuple(
            TunnelHost(
                peer.address, tuple(TunnelKey(key.public, key.port) for key in peer.tunnel_keys)
            )
            for peer in network.peers
        ),
        network.key_rotation,
    )


class Encryption:
    """Maintains the node's tunnels. `changed` is called when its keys have changed."""

    def __init__(
        self,
        network: Tunnelling,
        node_address: str,
        most_age: float,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`most_age`: seconds after which a key is replaced (0: never)."""
        self._network = network
        self._node_address = node_address
        self._most_age = most_age
        self._changed = changed
        self._unsupported = ""
        """Why the kernel cannot encrypt; empty if it can."""
        self._may_exist = False
        """Whether tunnels may exist."""
        self._keys: tuple[TunnelKey, ...] = ()
        self._tunnels = Tunnels()
        self._failure: NetworkError | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """The network features that encryption adds to this node."""
        return () if self._unsupported else (ENCRYPTED,)

    @property
    def keys(self) -> tuple[nodes.TunnelKey, ...]:
        """The public keys for the other nodes, oldest first."""
        return tuple(nodes.TunnelKey(key.public, key.port) for key in self._keys)

    @property
    def tunnels(self) -> Tunnels:
        """The tunnels as of the last pass."""
        return self._tunnels

    async def read_keys(self) -> None:
        """Read whether the kernel supports encryption, and the keys of an earlier agent, to which
        other nodes have tunnels. Raises NetworkError."""
        self._unsupported, self._keys = await self._network.encryption()
        self._may_exist = bool(self._keys)
        if self._unsupported:
            log.info("encrypted networks are not supported on this node: %s", self._unsupported)

    async def apply(self, orders: Iterable[TunnelOrder]) -> None:
        """Ensure the tunnels of all encrypted networks. After a failure `through` raises the
        error."""
        wanted = list(orders)
        before = self._keys
        try:
            if wanted:
                self._may_exist = True
                self._tunnels = await self._network.tunnels(
                    self._node_address,
                    _merged(wanted),
                    rotation=max(order.rotation for order in wanted),
                    most_age=self._most_age,
                )
            elif self._may_exist:
                await self._network.remove_tunnels()
                self._may_exist, self._tunnels = False, Tunnels()
            self._keys, self._failure = self._tunnels.keys, None
        except NetworkError as error:
            self._failure = error
        if self._keys != before:
            self._changed()

    def through(self, config: NetworkConfig) -> NetworkConfig:
        """An encrypted network with its peers' addresses inside the tunnels, without peers that
        have no tunnel yet. Raises NetworkError."""
        if self._failure is not None:
            raise self._failure
        hosts = self._tunnels.hosts
        return replace(
            config,
            peers=tuple(
                replace(peer, address=hosts[peer.address])
                for peer in config.peers
                if peer.address in hosts
            ),
        )


def _merged(orders: Sequence[TunnelOrder]) -> list[TunnelHost]:
    """The distinct hosts; all networks of an assignment have the same keys of a host."""
    return sorted(
        {host.address: host for order in orders for host in order.hosts if host.keys}.values(),
        key=lambda host: host.address,
    )
