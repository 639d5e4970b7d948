"""The node's network as the manager orders it, kept in force.

The order is applied at each change and every few seconds, level-triggered: whatever somebody
removed comes back. A container is connected only after the first pass, which also gives back what
no task of this node can hold any more.

This version connects every container to one network, the cluster's default.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.agent.network import (
    Attachment,
    Interface,
    NetworkConfig,
    NetworkError,
    Peer,
    PortMapping,
)
from orchestrator.model.specs import PortSpec, PublishMode
from orchestrator.pb import dispatch_pb2

log = logging.getLogger(__name__)

APPLY_PERIOD = 5.0
"""Seconds between two passes when nothing changes."""


class NodeNetworking(Protocol):
    """What is needed of `network.NodeNetwork`; see there."""

    async def apply(self, config: NetworkConfig) -> None: ...

    async def attach(self, network: str, container_id: str, interface: Interface) -> Attachment: ...

    async def detach(self, container_id: str) -> None: ...

    async def collect(self, valid: Collection[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Connected:
    """How a container is connected."""

    netns: Path
    addresses: Mapping[str, str]
    """Network name → IP address, no prefix length."""
    nameservers: tuple[str, ...] = ()
    """Who answers names there; none: the node's own."""


class Networks:
    """Applies the ordered network and connects containers to it."""

    def __init__(
        self,
        network: NodeNetworking,
        node_address: str,
        held: Callable[[], Collection[str]],
        period: float = APPLY_PERIOD,
    ) -> None:
        """`held` tells the ids of containers that may hold an address now; it is asked once,
        after the first pass."""
        self._network = network
        self._node_address = node_address
        self._held = held
        self._period = period
        self._wanted: NetworkConfig | None = None
        self._changed = asyncio.Event()
        self._passed = asyncio.Event()
        """A pass was made, well or badly, over the newest order."""
        self._failure: NetworkError | None = None
        self._collected = False

    def order(self, networks: Sequence[dispatch_pb2.AssignedNetwork]) -> None:
        """Take the complete list of this node's networks."""
        first = min(networks, key=lambda network: network.vni, default=None)
        wanted = _config(first, self._node_address) if first else None
        if wanted is None or wanted == self._wanted:
            return
        self._wanted = wanted
        self._passed.clear()
        self._changed.set()

    async def run(self) -> None:
        """Keep the order in force until cancelled."""
        while True:
            self._changed.clear()
            if self._wanted is not None:
                await self._pass(self._wanted)
            try:
                async with asyncio.timeout(self._period if self._wanted else None):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _pass(self, config: NetworkConfig) -> None:
        try:
            await self._network.apply(config)
            if not self._collected:
                await self._network.collect(self._held())
                self._collected = True
        except NetworkError as error:
            if str(error) != str(self._failure):
                log.error("the network cannot be applied: %s", error)
            self._failure = error
        else:
            if self._failure is not None:
                log.info("the network is applied again")
            self._failure = None
        if config is self._wanted:
            self._passed.set()

    async def ready(self) -> None:
        """Until the network as ordered is there, and what earlier containers left is given back:
        also their namespaces, so that new ones are made only now. Raises NetworkError."""
        await self._ready()

    async def attach(self, container_id: str, ports: Sequence[PortSpec]) -> Connected:
        """Connect a container, once the network as ordered is there, and publish those ports that
        this node alone is asked at; the others follow the endpoint table. Raises NetworkError."""
        config = await self._ready()
        mappings = [
            PortMapping(p.published, p.target, p.protocol.name.lower())
            for p in ports
            if p.mode is PublishMode.HOST
        ]
        interface = Interface(ports=tuple(mappings))
        attachment = await self._network.attach(config.id, container_id, interface)
        addresses = {config.name: attachment.address}
        return Connected(Path(attachment.netns), addresses, (attachment.gateway,))

    async def detach(self, container_id: str) -> None:
        """Disconnect a container and free what it had. Raises NetworkError."""
        if self._wanted is None:
            return
        await self._ready()
        await self._network.detach(container_id)

    async def _ready(self) -> NetworkConfig:
        if self._wanted is None:
            raise NetworkError("this node has no network yet: it gets one from a manager")
        await self._passed.wait()
        if self._failure is not None:
            raise self._failure
        return self._wanted


def _config(network: dispatch_pb2.AssignedNetwork, node_address: str) -> NetworkConfig:
    return NetworkConfig(
        id=network.id,
        name=network.name,
        vni=network.vni,
        cluster_cidr=network.cluster_cidr,
        subnet=network.subnet,
        mtu=0,
        node_address=node_address,
        peers=tuple(Peer(peer.subnet, peer.address) for peer in network.peers),
    )
