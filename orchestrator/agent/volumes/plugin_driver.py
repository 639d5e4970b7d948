# SPDX-License-Identifier: Apache-2.0
"""Volume drivers of Docker's volume plugin protocol. Answers are checked, never trusted.

Source: Docker's "Docker volume plugins" (`/VolumeDriver.*`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from orchestrator.agent.plugins import plugin_client
from orchestrator.agent.plugins.plugin_client import (
    Address,
    call_long,
    call_plugin,
    listener,
    with_retries,
)
from orchestrator.agent.plugins.plugin_discovery import SOCKET_FOLDERS, SPEC_FOLDERS, PluginSet
from orchestrator.agent.volumes.mountpoints import mount_at, mounts, resolved
from orchestrator.agent.volumes.volume_errors import (
    VolumeError,
    VolumePluginUnavailable,
    of_volumes,
)


@dataclass(frozen=True, slots=True)
class PluginVolume:
    """A volume in the list of its plugin."""

    name: str
    mountpoint: str = ""


class VolumePlugin:
    """One volume plugin."""

    def __init__(self, name: str, address: Address, scope: str) -> None:
        self.name = name
        self.scope = scope
        """`local` or `global`."""
        self._address = address

    @classmethod
    async def activate(cls, name: str, address: Address, implements: list[str]) -> Self | None:
        """The volume plugin of this name; None if it is of another kind. Raises PluginError."""
        if "VolumeDriver" not in implements:
            return None
        try:
            answer = await call_plugin(address, "/VolumeDriver.Capabilities", {}, _named(name))
        except plugin_client.PluginUnavailable:
            raise
        except plugin_client.PluginError:
            # Optional: older plugins do not know the call.
            return cls(name, address, "local")
        capabilities = answer.get("Capabilities")
        scope = capabilities.get("Scope") if isinstance(capabilities, dict) else None
        return cls(name, address, "global" if str(scope).lower() == "global" else "local")

    async def create(self, volume: str, options: Mapping[str, str]) -> None:
        """Create a volume; correct plugins accept a repetition. Raises VolumeError."""
        await self._call_with_retries("Create", {"Name": volume, "Opts": dict(options)})

    async def remove(self, volume: str) -> None:
        """Remove a volume and its data. Raises VolumeError."""
        await self._call_with_retries("Remove", {"Name": volume})

    async def mount(self, volume: str, user: str) -> Path:
        """Mount a volume for a container; return where. Raises VolumeError."""
        answer = await self._call_with_retries("Mount", {"Name": volume, "ID": user})
        path = self._path(volume, answer.get("Mountpoint"))
        await self._check_seen(volume, path)
        return path

    async def _check_seen(self, volume: str, path: Path) -> None:
        """Raise VolumeError if the plugin has mounted the volume at `path` in another mount
        namespace than this agent's: containers would write to the folder beneath.

        A plugin that uses plain folders has no mounts, and a remote one cannot be checked.
        """
        with of_volumes():
            process = await listener(self._address)
        place = resolved(path)
        try:
            theirs = mount_at(place, mounts(process)) if process else None
        except OSError:
            return  # it has ended since
        if theirs is None:
            return
        ours = mount_at(place, mounts())
        if ours is None or ours.device != theirs.device:
            raise VolumeError(
                f"volume driver {self.name} has mounted {volume} at {path} in a mount namespace of "
                "its own, which containers do not see; run the plugin in the host's, or share the "
                "folder with it (rshared)"
            )

    async def unmount(self, volume: str, user: str) -> None:
        """Release a container's mount. Raises VolumeError."""
        await self._once("/VolumeDriver.Unmount", {"Name": volume, "ID": user})

    async def path(self, volume: str) -> Path | None:
        """The mount point of a volume; None when it is not mounted. Raises VolumeError."""
        answer = await self._once("/VolumeDriver.Path", {"Name": volume})
        mountpoint = answer.get("Mountpoint")
        return self._path(volume, mountpoint) if mountpoint else None

    async def get(self, volume: str) -> PluginVolume | None:
        """A volume; None when the plugin has none of that name. Raises VolumePluginUnavailable."""
        try:
            answer = await self._once("/VolumeDriver.Get", {"Name": volume})
        except VolumePluginUnavailable:
            raise
        except VolumeError:
            return None
        return _volume(answer.get("Volume"))

    async def list(self) -> list[PluginVolume]:
        """All volumes of the plugin. Raises VolumeError."""
        answer = await self._once("/VolumeDriver.List", {})
        found = answer.get("Volumes") or []
        if not isinstance(found, list):
            raise VolumePluginUnavailable("its list of volumes is invalid")
        return [volume for each in found if (volume := _volume(each)) is not None]

    def _path(self, volume: str, mountpoint: object) -> Path:
        if not isinstance(mountpoint, str) or not os.path.isabs(mountpoint) or "\0" in mountpoint:
            raise VolumeError(
                f"volume driver {self.name} reports that {volume} is mounted at {mountpoint!r}, "
                "which is not an absolute path"
            )
        return Path(mountpoint)

    async def _call_with_retries(self, method: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a call that may take long; repeat it while the plugin is unreachable or hangs up."""
        path = f"/VolumeDriver.{method}"
        with of_volumes():
            try:
                return await with_retries(
                    lambda: call_long(self._address, path, body, _named(self.name))
                )
            except plugin_client.PluginUnavailable as error:
                raise VolumePluginUnavailable(
                    f"{_named(self.name)} does not answer: {error}"
                ) from error

    async def _once(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Raises VolumePluginUnavailable, or VolumeError with the plugin's own message."""
        with of_volumes():
            try:
                return await call_plugin(self._address, path, body, _named(self.name))
            except plugin_client.PluginUnavailable as error:
                raise plugin_client.PluginUnavailable(
                    f"{_named(self.name)} does not answer: {error}"
                ) from error


def _named(name: str) -> str:
    return f"volume driver {name}"


def _volume(found: object) -> PluginVolume | None:
    if not isinstance(found, dict) or not isinstance(found.get("Name"), str) or not found["Name"]:
        return None
    mountpoint = found.get("Mountpoint")
    return PluginVolume(found["Name"], mountpoint if isinstance(mountpoint, str) else "")


class VolumePlugins(PluginSet[VolumePlugin]):
    """The volume plugins of this node; their errors are VolumeErrors."""

    def __init__(
        self, sockets: Sequence[Path] = SOCKET_FOLDERS, specs: Sequence[Path] = SPEC_FOLDERS
    ) -> None:
        super().__init__(VolumePlugin.activate, "volume driver", sockets, specs)

    @property
    def scopes(self) -> Mapping[str, str]:
        """Name → `local` or `global` of plugins that have answered and whose file exists."""
        return {name: plugin.scope for name, plugin in self.all().items()}

    async def named(self, name: str) -> VolumePlugin:
        """The plugin of this name. Raises VolumeError."""
        with of_volumes():
            return await self.get(name)

    async def awaited(self, name: str) -> VolumePlugin:
        """As `get`, with retries while it does not answer. Raises VolumeError."""
        with of_volumes():
            return await self.get_with_retries(name)

    @contextmanager
    def judged(self, name: str) -> Iterator[None]:
        """For calls of a plugin within the block: if it does not answer, it counts as silent from
        then on, which spares the next caller the wait."""
        try:
            yield
        except VolumePluginUnavailable as error:
            self.mark_silent(name, str(error))
            raise
