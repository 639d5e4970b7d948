# SPDX-License-Identifier: Apache-2.0
"""The volumes of this node: created, filled, mounted for containers, listed, removed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from orchestrator.agent.plugins.plugin_client import OnWait, report_if_slow
from orchestrator.agent.runtime.interface import Mount
from orchestrator.agent.runtime.spec.privileges import own_users
from orchestrator.agent.volumes import bind_mounts, copyup, local_driver, mountpoints
from orchestrator.agent.volumes.mount_plan import Holder, Wanted, wanted_mounts
from orchestrator.agent.volumes.plugin_driver import VolumePlugin, VolumePlugins
from orchestrator.agent.volumes.volume_errors import VolumeError, VolumePluginUnavailable
from orchestrator.agent.volumes.volume_records import Use, VolumeRecord, VolumeRecords
from orchestrator.linux import spawn
from orchestrator.model.mounts import LOCAL_DRIVER, MountType
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Volume

log = logging.getLogger(__name__)

CONTAINER_LABEL = "orc.container"
"""Label of an anonymous volume: the id of its task."""

_A = TypeVar("_A")

_PERIOD = 5.0
"""Seconds between two discoveries of plugins, and between attempts to release mounts."""
_UNMOUNT_TIMEOUT = 5.0
"""Maximum seconds that the end of a container waits for a plugin."""


def _ignore(_: str) -> None:
    """A `OnWait` without an effect."""


@dataclass(frozen=True, slots=True)
class VolumeUsers:
    """A recorded volume and the containers that use it."""

    record: VolumeRecord
    users: tuple[str, ...]


class VolumeStore:
    """All volumes of the node. `run` discovers plugins; other methods may be called
    concurrently."""

    def __init__(
        self,
        folder: Path,
        node: Callable[[], Node],
        plugins: VolumePlugins,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`folder` survives a reboot, on the disk for the data of volumes."""
        self._records = VolumeRecords(folder)
        self._scratch = folder / "scratch"
        self._scratch.mkdir(exist_ok=True, mode=0o700)
        self._places = folder / "subpaths"
        self._places.mkdir(exist_ok=True, mode=0o711)
        self._node = node
        self.plugins = plugins
        self._clock = clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="volume-records")
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        known = self._records.uses()
        self._uses = {id: use for id, use in known.items() if not use.leaving}
        self._leaving = {id: use for id, use in known.items() if use.leaving}
        self.changed = asyncio.Event()
        """Set when the set of plugins that respond has changed."""

    async def run(self) -> None:
        """Remove the remains of an earlier agent, then discover plugins until cancelled."""
        for path in self._records.leftovers():
            await _delete(path)
        copyup.clear_scratch(self._scratch)
        while True:
            before = dict(self.plugins.scopes)
            await self.plugins.discover()
            if self.plugins.scopes != before:
                self.changed.set()
            for use in list(self._leaving.values()):
                await self._leave(use)
            await asyncio.sleep(_PERIOD)

    async def attach(
        self, holder: Holder, declared: Mapping[str, Volume], on_wait: OnWait = _ignore
    ) -> tuple[Mount, ...]:
        """Mount all volumes of a container; `declared` are the cluster's objects of its named
        volumes, `on_wait` gets the plugin that it waits for. `detach` undoes it, whether it
        succeeds or not. Raises VolumeError.
        """
        container_id = holder.task.id
        wanted = wanted_mounts(holder, self._node())
        drivers = {
            each.spec.source: self._driver(each, declared)
            for each in wanted
            if each.spec.type is MountType.VOLUME
        }
        if drivers:
            self._uses[container_id] = use = Use(container_id, drivers)
            await self._write(self._records.put_use, use)
        users = own_users(holder.task.spec.container)
        attached = []
        for each in wanted:
            mount = await self._mount(each, container_id, declared, on_wait)
            if mount.owned and users and not self._maps_ids(each.spec.source):
                mount = replace(mount, owned=False)
                self._check_accessible(each.spec.source, Path(mount.source))
            attached.append(mount)
        return tuple(attached)

    async def detach(self, container_id: str, *, drop: bool) -> None:
        """Undo `attach`; with `drop`, also remove the container's anonymous volumes. A plugin that
        does not respond is called again later. Raises VolumeError.
        """
        use = self._uses.pop(container_id, None)
        if use is not None:
            use = replace(use, leaving=True)
            try:
                await self._write(self._records.put_use, use)
            except OSError as error:
                # The older record suffices: an agent finds out that the container is gone.
                log.warning(
                    "end of a volume's use is not recorded",
                    extra={"task": container_id, "error": str(error)},
                )
            await self._leave(use)
        if drop:
            for record in list(self._records.volumes()):
                if record.owner == container_id and not self.users(record.name):
                    await self._discard(record)

    async def retain(self, container_ids: Collection[str]) -> None:
        """Release the volumes of all other containers."""
        for container_id in [id for id in self._uses if id not in container_ids]:
            log.warning("releasing volumes of a removed container", extra={"task": container_id})
            await self.detach(container_id, drop=False)

    async def create(self, volume: Volume) -> None:
        """Create a volume unless it exists. Raises VolumeError."""
        async with self._locks[volume.name]:
            await self._forget_shared(await self._ensure(volume, "", _ignore))

    async def remove(self, volume: Volume, *, force: bool) -> None:
        """Remove a volume with its data, if it exists. Raises VolumeError, also if it is in use."""
        # The plugin counts mounts that are not released yet.
        for use in [use for use in self._leaving.values() if volume.name in use.volumes]:
            await self._leave(use)
        async with self._locks[volume.name]:
            if self.users(volume.name):
                raise VolumeError(f"volume {volume.name} is in use by a container")
            record = self._records.volume(volume.name)
            driver = record.driver if record else volume.driver
            if driver not in ("", LOCAL_DRIVER):
                await self._remove_from_plugin(volume.name, driver, force=force)
            if record is None and self._records.has_data(volume.name):
                record = VolumeRecord(volume.name, LOCAL_DRIVER)
            if record is not None:
                await self._discard(record)

    def users(self, name: str) -> tuple[str, ...]:
        """Ids of the containers that have a volume mounted."""
        return tuple(sorted(id for id, use in self._uses.items() if name in use.volumes))

    def known(self) -> list[VolumeUsers]:
        """The recorded volumes of this node."""
        return [VolumeUsers(record, self.users(record.name)) for record in self._records.volumes()]

    def folder(self, name: str) -> Path:
        """A volume's own folder."""
        return self._records.folder(name)

    def _driver(self, wanted: Wanted, declared: Mapping[str, Volume]) -> str:
        name = wanted.spec.source
        if (record := self._records.volume(name)) is not None:
            return record.driver
        volume = declared.get(name)
        return (volume.driver if volume else wanted.spec.driver) or LOCAL_DRIVER

    async def _mount(
        self,
        wanted: Wanted,
        container_id: str,
        declared: Mapping[str, Volume],
        on_wait: OnWait,
    ) -> Mount:
        spec = wanted.spec
        if spec.type is MountType.TMPFS:
            return bind_mounts.tmpfs(spec)
        if spec.type is MountType.BIND:
            return await bind_mounts.bind(spec, self._node().description.hostname)
        volume = declared.get(spec.source) or Volume(
            id=spec.source, driver=spec.driver, options=spec.options, labels=spec.labels
        )
        async with self._locks[spec.source]:
            record = await self._ensure(volume, wanted.owner, on_wait)
            path = await self._path(record, container_id, on_wait)
            record = await self._probe_id_mapping(record, path)
            # Only a whole volume is filled: a restarted copy empties all of it.
            if not spec.no_copy and not spec.subpath:
                await self._fill(record, path, wanted)
        if spec.subpath:
            path = await bind_mounts.ensure_subpath(self._places, container_id, spec, path)
        return Mount(target=spec.target, source=str(path), read_only=spec.read_only, owned=True)

    async def _probe_id_mapping(self, record: VolumeRecord, path: Path) -> VolumeRecord:
        """The record, which states whether the volume's file system supports idmapped mounts."""
        if record.driver == LOCAL_DRIVER and not record.options.get("device"):
            return record
        found = replace(record, maps_ids=await mountpoints.maps_ids(path))
        if found != record:
            await self._write(self._records.update, found)
            if not found.maps_ids:
                log.warning(
                    "volume %s: containers see its files as nobody's: its file system cannot map "
                    "user ids", record.name, extra={"driver": record.driver},
                )  # fmt: skip
        return found

    def _maps_ids(self, name: str) -> bool:
        record = self._records.volume(name)
        return record is None or record.maps_ids

    def _check_accessible(self, name: str, path: Path) -> None:
        """Raise VolumeError for a FUSE file system without allow_other."""
        found = mountpoints.mount_of(mountpoints.resolved(path), mountpoints.mounts())
        if found is None or not found.kind.startswith("fuse") or "allow_other" in found.options:
            return
        raise VolumeError(
            f"volume {name} is a FUSE file system ({found.kind}) for the host's root alone; have "
            "its plugin mount it with allow_other (rclone: -o allow-other=true), or run the "
            "container with --userns host"
        )

    async def _ensure(self, volume: Volume, owner: str, on_wait: OnWait) -> VolumeRecord:
        if (record := self._records.volume(volume.name)) is not None:
            return record
        record = VolumeRecord(
            name=volume.name,
            driver=volume.driver or LOCAL_DRIVER,
            options=dict(volume.options),
            labels=dict(volume.labels) | ({CONTAINER_LABEL: owner} if owner else {}),
            created_at=volume.created_at or self._clock(),
            owner=owner,
        )
        if record.driver != LOCAL_DRIVER:
            async with self._answering(record, on_wait) as plugin:
                # A volume of global scope may already exist, created by another node.
                if await plugin.get(record.name) is None:
                    await plugin.create(record.name, record.options)
            record = replace(record, shared=plugin.scope == "global")
        await self._write(self._records.create, record)
        return record

    @asynccontextmanager
    async def _answering(
        self, record: VolumeRecord, on_wait: OnWait
    ) -> AsyncIterator[VolumePlugin]:
        """The plugin of a volume; `on_wait` gets a message while the block waits for it. Raises
        VolumeError."""
        driver = record.driver
        waiting = f"volume driver {driver} has not answered yet (volume {record.name})"
        with report_if_slow(on_wait, waiting):
            plugin = await self.plugins.awaited(driver)
            with self.plugins.judged(driver):
                yield plugin

    async def _path(self, record: VolumeRecord, container_id: str, on_wait: OnWait) -> Path:
        if record.driver == LOCAL_DRIVER:
            return await local_driver.ensure_mounted(record, self._records.folder(record.name))
        async with self._answering(record, on_wait) as plugin:
            path = await plugin.mount(record.name, container_id)
        if not await copyup.is_folder(path):
            raise VolumeError(
                f"volume driver {record.driver} reports that {record.name} is mounted at {path}, "
                "which is not a folder"
            )
        return path

    async def _fill(self, record: VolumeRecord, path: Path, wanted: Wanted) -> None:
        if record.filling and record.driver == LOCAL_DRIVER:
            await copyup.empty(path)
        if not await copyup.is_empty(path):
            return
        await self._write(self._records.update, replace(record, filling=True))
        try:
            await copyup.fill(wanted.layers, wanted.spec.target, path, self._scratch)
        except VolumeError as error:
            await copyup.empty(path)
            raise VolumeError(f"volume {record.name}: {error}") from error
        await self._write(self._records.update, replace(record, filling=False))

    async def _leave(self, use: Use) -> None:
        """Release the mounts of a removed container; those that a plugin has not released stay
        recorded."""
        if use.container_id not in self._uses:
            bind_mounts.ensure_no_subpaths(self._places, use.container_id)
        others = {name: driver for name, driver in use.volumes.items() if driver != LOCAL_DRIVER}
        for name in use.volumes.keys() - others.keys():
            await self._unmount_unused(name)
        released = await asyncio.gather(
            *(self._unmount(name, driver, use.container_id) for name, driver in others.items())
        )
        for name, done in zip(others, released, strict=True):
            if done and (record := self._records.volume(name)) is not None:
                await self._forget_shared(record)
        left = {name: others[name] for name, done in zip(others, released, strict=True) if not done}
        if use.container_id in self._uses:
            # It was started again meanwhile: its mounts are in use.
            self._leaving.pop(use.container_id, None)
        elif left:
            self._leaving[use.container_id] = replace(use, volumes=left)
            await self._write(self._records.put_use, self._leaving[use.container_id])
        else:
            self._leaving.pop(use.container_id, None)
            await self._write(self._records.drop_use, use.container_id)

    async def _forget_shared(self, record: VolumeRecord) -> None:
        """Forget an unused shared volume: another node may remove it without notice to this
        one."""
        if record.shared and not self.users(record.name):
            await self._discard(record)

    async def _unmount_unused(self, name: str) -> None:
        async with self._locks[name]:
            record = self._records.volume(name)
            if record is not None and not self.users(name):
                local_driver.ensure_unmounted(record, self._records.folder(name))

    async def _unmount(self, name: str, driver: str, container_id: str) -> bool:
        """Have a plugin release a container's mount; False if it has not done so yet."""
        try:
            async with asyncio.timeout(_UNMOUNT_TIMEOUT):
                plugin = await self.plugins.named(driver)
                with self.plugins.judged(driver):
                    await plugin.unmount(name, container_id)
        except (TimeoutError, VolumePluginUnavailable) as error:
            log.warning(
                "volume %s is not released yet; retrying: %s",
                name,
                error,
                extra={"task": container_id},
            )
            return False
        except VolumeError as error:
            # The plugin refuses because it does not know the mount: there is none.
            log.info("unmounting %s: %s", name, error, extra={"task": container_id})
        return True

    async def _remove_from_plugin(self, name: str, driver: str, *, force: bool) -> None:
        try:
            plugin = await self.plugins.named(driver)
            with self.plugins.judged(driver):
                if await plugin.get(name) is not None:
                    await plugin.remove(name)
        except VolumeError:
            if not force:
                raise

    async def _write(self, write: Callable[[_A], None], argument: _A) -> None:
        """Write to the records, which waits for the disk. Writes happen in the order of the calls,
        even if a caller is cancelled. Raises OSError."""
        await asyncio.get_running_loop().run_in_executor(self._writer, write, argument)

    async def _discard(self, record: VolumeRecord) -> None:
        if record.driver == LOCAL_DRIVER:
            local_driver.ensure_unmounted(record, self._records.folder(record.name))
        if (gone := self._records.retire(record.name)) is not None:
            await _delete(gone)


async def _delete(path: Path) -> None:
    status, stderr = await spawn.run(["rm", "-rf", "--one-file-system", "--", str(path)])
    if status != 0:
        log.warning("%s cannot be deleted: %s", path, stderr)
