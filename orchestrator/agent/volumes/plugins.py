"""The volume plugins of this node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.agent.plugins.discovery import SOCKET_FOLDERS, SPEC_FOLDERS, PluginSet
from orchestrator.agent.volumes.errors import PluginAway, of_volumes
from orchestrator.agent.volumes.pluginapi import VolumePlugin


class Plugins(PluginSet[VolumePlugin]):
    """Those that speak Docker's volume plugin protocol; what is raised are VolumeErrors."""

    def __init__(
        self, sockets: Sequence[Path] = SOCKET_FOLDERS, specs: Sequence[Path] = SPEC_FOLDERS
    ) -> None:
        super().__init__(VolumePlugin.activate, "volume driver", sockets, specs)

    @property
    def scopes(self) -> Mapping[str, str]:
        """Name → `local` or `global` of those that have answered, and whose file is there."""
        return {name: plugin.scope for name, plugin in self.all().items()}

    async def named(self, name: str) -> VolumePlugin:
        """The plugin of this name. Raises VolumeError."""
        with of_volumes():
            return await self.get(name)

    async def awaited(self, name: str) -> VolumePlugin:
        """The same; one that does not answer is waited for. Raises VolumeError."""
        with of_volumes():
            return await self.patiently(name)

    @contextmanager
    def judged(self, name: str) -> Iterator[None]:
        """Calls of a plugin within: one that does not answer them counts as silent from then on, so
        that it costs the next caller less."""
        try:
            yield
        except PluginAway as error:
            self.doubt(name, str(error))
            raise
