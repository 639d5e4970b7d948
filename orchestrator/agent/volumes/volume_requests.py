# SPDX-License-Identifier: Apache-2.0
"""Requests of managers about volumes: list them within a time limit, create, remove."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from orchestrator.agent.volumes import local_driver
from orchestrator.agent.volumes.plugin_driver import PluginVolume, VolumePlugin
from orchestrator.agent.volumes.volume_errors import VolumeError
from orchestrator.agent.volumes.volume_records import VolumeRecord
from orchestrator.agent.volumes.volume_store import VolumeStore
from orchestrator.model.convert import from_proto
from orchestrator.model.mounts import LOCAL_DRIVER
from orchestrator.pb import dispatch_pb2, volumes_pb2

PATIENCE = 0.6
"""Timeout of a plugin's response, and of measuring the sizes of volumes, in seconds."""

_UNMAPPED = (
    "its file system cannot map user ids: containers see its files as nobody's (65534), unless "
    "they run with --userns host"
)


class VolumeListing:
    """Lists the volumes; a context manager. Measuring continues in a thread when a listing no
    longer waits for it; the next listing has the result."""

    def __init__(self, store: VolumeStore) -> None:
        self._store = store
        self._sizes: dict[str, int] = {}
        self._counting: Future[dict[str, int]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="volume-sizes")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def collect(self) -> dispatch_pb2.NodeVolumes:
        """All volumes, including those of plugins that Orc did not create, and a notice for each
        plugin that does not respond."""
        plugins = self._store.plugins
        responsive = list(plugins.all().values())
        answers, _, _ = await asyncio.gather(
            asyncio.gather(*(_volumes(plugin) for plugin in responsive)),
            plugins.discover(PATIENCE),
            self._count(),
        )
        result = dispatch_pb2.NodeVolumes()
        listed: dict[tuple[str, str], PluginVolume] = {}
        silent = dict(plugins.silent)
        for plugin, answer in zip(responsive, answers, strict=True):
            if isinstance(answer, str):
                silent[plugin.name] = answer
            else:
                listed |= {(plugin.name, volume.name): volume for volume in answer}
        for name, why in sorted(silent.items()):
            result.notices.append(f"volume driver {name} does not answer ({why})")
        for known in self._store.known():
            record = known.record
            seen = listed.pop((record.driver, record.name), None)
            result.volumes.append(self._row(record, known.users, seen))
        for (driver, name), volume in sorted(listed.items()):
            result.volumes.append(
                volumes_pb2.NodeVolume(
                    name=name, driver=driver, mountpoint=volume.mountpoint, size=-1
                )
            )
        return result

    def _row(
        self, record: VolumeRecord, users: tuple[str, ...], seen: PluginVolume | None
    ) -> volumes_pb2.NodeVolume:
        here = record.driver == LOCAL_DRIVER
        path = str(local_driver.data_path(record, self._store.folder(record.name))) if here else ""
        return volumes_pb2.NodeVolume(
            name=record.name,
            driver=record.driver,
            mountpoint=path or (seen.mountpoint if seen else ""),
            size=self._sizes.get(record.name, -1) if here else -1,
            limit=local_driver.limit_of(record) if here else 0,
            labels=record.labels,
            options=record.options,
            created_at=record.created_at,
            anonymous=bool(record.owner),
            users=users,
            managed=True,
            notice="" if record.maps_ids else _UNMAPPED,
        )

    async def _count(self) -> None:
        """Measure the volumes; a slow measurement is replaced by the last result."""
        if self._counting is None:
            records = [known.record for known in self._store.known()]
            self._counting = self._thread.submit(self._usage, records)
        counting = asyncio.wrap_future(self._counting)
        done, _ = await asyncio.wait({counting}, timeout=PATIENCE)
        if done:
            self._sizes = counting.result()
            self._counting = None

    def _usage(self, records: list[VolumeRecord]) -> dict[str, int]:
        return {
            record.name: local_driver.usage(record, self._store.folder(record.name))
            for record in records
            if record.driver == LOCAL_DRIVER
        }


async def _volumes(plugin: VolumePlugin) -> list[PluginVolume] | str:
    """A plugin's volumes, or why they cannot be listed."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await plugin.list()
    except TimeoutError:
        return f"no answer within {PATIENCE:g} s"
    except VolumeError as error:
        return str(error)


VOLUME_REQUESTS = ("list_volumes", "create_volume", "remove_volume")
"""The requests that `VolumeRequests.serve` takes."""


class VolumeRequests:
    """Serves a manager's requests about volumes."""

    def __init__(self, store: VolumeStore, listing: VolumeListing) -> None:
        self._store = store
        self._listing = listing

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Serve a request (a handler of `tunnels.Tunnels`)."""
        try:
            match order.WhichOneof("order"):
                case "list_volumes":
                    return dispatch_pb2.TunnelResult(volumes=await self._listing.collect())
                case "create_volume":
                    await self._store.create(from_proto(order.create_volume))
                case "remove_volume":
                    removal = order.remove_volume
                    await self._store.remove(from_proto(removal.volume), force=removal.force)
        except VolumeError as error:
            return dispatch_pb2.TunnelResult(error=str(error))
        return dispatch_pb2.TunnelResult()
