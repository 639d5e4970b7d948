# SPDX-License-Identifier: Apache-2.0
"""All networks of this node, Orc's and those of third-party plugins, behind one interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from orchestrator.agent.netplugins.attachment_records import AttachmentRecords
from orchestrator.agent.netplugins.cni_chains import Chains
from orchestrator.agent.netplugins.cni_program import Programs
from orchestrator.agent.netplugins.plugin_results import Place
from orchestrator.agent.netplugins.remote_driver import NetworkPlugin
from orchestrator.agent.netplugins.remote_networks import RemoteNetworks
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import (
    Attachment,
    Exposure,
    Guest,
    Interface,
    NetworkConfig,
)
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.agent.network.reconciler import NodeNetworking
from orchestrator.agent.plugins.plugin_discovery import PluginSet
from orchestrator.model.networks import CNI
from orchestrator.model.nodes import NodeDescription


class Driver(Protocol):
    """Implements networks of one kind. A release that fails is retried later."""

    async def apply(self, config: NetworkConfig) -> None:
        """Ensure a network. Raises NetworkError."""
        ...

    async def attach(
        self, config: NetworkConfig, container: str, interface: Interface, netns: str
    ) -> Attachment:
        """Connect a container, whose namespace exists; repeated, return the same attachment. A
        failed call leaves nothing behind. Raises NetworkError."""
        ...

    async def disconnect(self, network: str, container: str) -> None:
        """Disconnect a container from a network, if it is on it. Raises NetworkError."""
        ...

    async def detach(self, container: str) -> None:
        """Disconnect it from all networks of this kind. Raises NetworkError."""
        ...

    def collect(self, valid: Collection[str]) -> None:
        """Schedule the release of all other containers' attachments."""
        ...

    def interfaces(self, container: str) -> Mapping[str, str]:
        """Network → interface of a container."""
        ...

    def unused(self) -> Collection[str]:
        """Networks of this node without a container."""
        ...

    async def remove(self, network: str) -> None:
        """Schedule the removal of a network from this node, if it is of this kind."""
        ...

    def places(self) -> Mapping[str, Place]:
        """Network id → where this node can serve DNS in it."""
        ...


class CompositeNetwork:
    """As `node_network.NodeNetwork`, for networks of all kinds."""

    def __init__(self, own: NodeNetworking, chains: Driver, plugins: Driver) -> None:
        """`chains` implements networks of driver `cni`, `plugins` those of Docker's plugins."""
        self._own = own
        self._drivers = (chains, plugins)
        self._third_party: dict[str, NetworkConfig] = {}
        """Applied networks of plugins, by id."""

    async def apply(self, config: NetworkConfig) -> None:
        """Ensure a network as configured."""
        if not config.driver:
            await self._own.apply(config)
            return
        self._third_party[config.id] = config
        await self._driver(config).apply(config)

    async def expose(self, exposure: Exposure) -> None:
        """Apply an exposure to containers of Orc's own networks."""
        await self._own.expose(exposure)

    async def attach(self, network: str, container_id: str, interface: Interface) -> Attachment:
        """Connect a container to an applied network."""
        config = self._third_party.get(network)
        if config is None:
            return await self._own.attach(network, container_id, interface)
        netns = await self._own.namespace(container_id)
        try:
            return await self._driver(config).attach(config, container_id, interface, netns)
        except NetworkError as error:
            raise NetworkError(
                f"network {config.name}: {error}", error.code, error.details
            ) from error

    async def disconnect(self, network: str, container_id: str) -> None:
        """Disconnect a container from one network."""
        for driver in self._drivers:
            await driver.disconnect(network, container_id)
        await self._own.disconnect(network, container_id)

    async def detach(self, container_id: str) -> None:
        """Disconnect a container from all networks, and remove its namespace."""
        for driver in self._drivers:
            await driver.detach(container_id)
        await self._own.detach(container_id)

    async def collect(self, valid: Collection[str]) -> None:
        """Remove what belongs to all other containers."""
        for driver in self._drivers:
            driver.collect(valid)
        await self._own.collect(valid)

    async def namespace(self, container_id: str) -> str:
        """The path of a container's namespace, created if there is none."""
        return await self._own.namespace(container_id)

    async def interfaces(self, container_id: str) -> dict[str, str]:
        """Network → the container's interface in it."""
        found = dict(await self._own.interfaces(container_id))
        for driver in self._drivers:
            found.update(driver.interfaces(container_id))
        return found

    async def unused(self) -> list[str]:
        """The networks of this node without a container."""
        others = [network for driver in self._drivers for network in driver.unused()]
        return [*await self._own.unused(), *others]

    async def remove(self, network: str) -> None:
        """Remove a network without containers."""
        self._third_party.pop(network, None)
        for driver in self._drivers:
            await driver.remove(network)
        await self._own.remove(network)

    def places(self) -> dict[str, Place]:
        """Network id → where this node can serve DNS, for networks of plugins."""
        return {network: at for each in self._drivers for network, at in each.places().items()}

    def _driver(self, config: NetworkConfig) -> Driver:
        return self._drivers[0 if config.driver == CNI else -1]


class ThirdPartyNetworks:
    """The networks of plugins on this node."""

    def __init__(self, folder: Path, hostname: str, own: NodeNetwork) -> None:
        """`folder` survives a reboot; `own` implements Orc's networks, and containers'
        namespaces."""
        self._chains = Chains(AttachmentRecords(folder / "cni"), Programs(hostname))
        plugins = PluginSet(NetworkPlugin.activate, "network plugin")
        self._remote = RemoteNetworks(AttachmentRecords(folder / "docker"), plugins, own)
        self.with_own = CompositeNetwork(own, self._chains, self._remote)
        """All networks, including Orc's own."""

    def addresses(self) -> frozenset[str]:
        """The addresses of containers on networks of plugins."""
        return self._chains.addresses() | self._remote.addresses()

    def checked(self) -> list[Guest]:
        """The interfaces of containers on these networks whose source addresses are checked."""
        return [*self._chains.checked(), *self._remote.checked()]

    def described(self, node: NodeDescription) -> NodeDescription:
        """The node's description with its network and IPAM drivers."""
        return replace(
            node,
            cni_plugins=self._chains.names,
            network_drivers=self._remote.scopes,
            ipam_drivers=self._remote.ipam,
        )

    async def run(self, changed: Callable[[], None]) -> None:
        """Release attachments and discover plugins until cancelled; `changed` is called when
        `described` has changed."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._chains.run(), name="CNI networks")
            group.create_task(self._remote.run(), name="networks of plugins")
            for event in (self._chains.changed, self._remote.changed):
                group.create_task(_notify(event, changed), name="network plugins")


async def _notify(event: asyncio.Event, changed: Callable[[], None]) -> None:
    while True:
        await event.wait()
        event.clear()
        changed()
