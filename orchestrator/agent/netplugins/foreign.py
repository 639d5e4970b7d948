"""All of this package, put together for one node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.agent.netplugins.chains import Chains
from orchestrator.agent.netplugins.driverapi import NetworkPlugin
from orchestrator.agent.netplugins.mixed import AllNetworks
from orchestrator.agent.netplugins.pluginnetworks import PluginNetworks
from orchestrator.agent.netplugins.program import Programs
from orchestrator.agent.netplugins.records import Records
from orchestrator.agent.network.node import NodeNetwork
from orchestrator.agent.network.values import Guest
from orchestrator.agent.plugins.discovery import PluginSet
from orchestrator.model.nodes import NodeDescription


class ForeignNetworks:
    """The networks of this node that others make."""

    def __init__(self, folder: Path, hostname: str, own: NodeNetwork) -> None:
        """`folder` outlives a reboot; `own` makes ours, and containers' namespaces."""
        self._chains = Chains(Records(folder / "cni"), Programs(hostname))
        plugins = PluginSet(NetworkPlugin.activate, "network plugin")
        self._plugged = PluginNetworks(Records(folder / "docker"), plugins, own)
        self.with_own = AllNetworks(own, self._chains, self._plugged)
        """Together with ours."""

    def addresses(self) -> frozenset[str]:
        """The addresses of containers on networks that others make."""
        return self._chains.addresses() | self._plugged.addresses()

    def checked(self) -> list[Guest]:
        """The interfaces of containers on these networks whose source addresses are checked."""
        return [*self._chains.checked(), *self._plugged.checked()]

    def described(self, node: NodeDescription) -> NodeDescription:
        """The node's description with what its networks can be had by."""
        return replace(
            node,
            cni_plugins=self._chains.names,
            network_drivers=self._plugged.scopes,
            ipam_drivers=self._plugged.ipam,
        )

    async def run(self, changed: Callable[[], None]) -> None:
        """Do what is to be done by itself until cancelled; `changed` is called when `described` has
        changed."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._chains.run(), name="CNI networks")
            group.create_task(self._plugged.run(), name="networks of plugins")
            for event in (self._chains.changed, self._plugged.changed):
                group.create_task(_tell(event, changed), name="network plugins")


async def _tell(event: asyncio.Event, changed: Callable[[], None]) -> None:
    while True:
        await event.wait()
        event.clear()
        changed()
