# SPDX-License-Identifier: Apache-2.0
"""Upkeep of one etcd member's database: compaction, defragmentation, alarms.

*Compaction* drops history: old versions of keys, and deleted keys. Their pages become free, and the
database reuses them, but its file stays as large as it was. *Defragmentation* rewrites the file
without free pages; the member answers no request meanwhile. When the file has reached the quota, a
member raises the *alarm* NOSPACE, and all members refuse writes until it is disarmed. A deletion
frees pages only once the history that has the deleted value is compacted.

For the etcd that managers run themselves. An external etcd's upkeep is its operator's concern.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from orchestrator.manager.store.etcd_channels import EtcdChannels
from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.kv import Compacted

NOSPACE = "NOSPACE"
"""The alarm of a full database; CORRUPT is that of one that differs from the other members'."""

DEFRAGMENTATION_TIMEOUT = 600.0
"""Seconds that a defragmentation may take; a GiB takes some ten seconds on a slow disk."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that a member has raised. All members know it."""

    member_id: str
    """Of the member that raised it, in hexadecimal digits."""
    kind: str
    """NOSPACE or CORRUPT."""


@dataclass(frozen=True, slots=True)
class Defragmented:
    """A defragmentation that was done."""

    before: int
    """Bytes of the database's file."""
    after: int
    seconds: float


class _Stubs:
    """aetcd's stubs on one channel. They are untyped, hence `Any`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.kv: Any = rpc_pb2_grpc.KVStub(channel)
        self.maintenance: Any = rpc_pb2_grpc.MaintenanceStub(channel)


class EtcdMaintenance:
    """Calls about the database of one member. Enter it with `async with`."""

    def __init__(self, endpoints: Sequence[str], tls: EtcdTls, *, timeout: float = 5.0) -> None:
        """`endpoints` are of one member. `timeout` in seconds applies to each call but
        `defragment`."""
        self._timeout = timeout
        self._channels = EtcdChannels(endpoints, tls, timeout, _Stubs)

    async def __aenter__(self) -> EtcdMaintenance:
        await self._channels.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channels.__aexit__()

    async def compact(self) -> int:
        """Drop all history of the cluster's keys; the revision that is left. Watches that are
        behind it begin anew. Raises StoreError."""
        status = await self._ask("maintenance", "Status", rpc_pb2.StatusRequest(), self._timeout)
        revision = int(status.header.revision)
        # Physical: the pages are free when it answers.
        request = rpc_pb2.CompactionRequest(revision=revision, physical=True)
        with suppress(Compacted):  # by another manager, or nothing was written since
            await self._ask("kv", "Compact", request, DEFRAGMENTATION_TIMEOUT)
        return revision

    async def defragment(self) -> Defragmented:
        """Rewrite the member's database file without free pages. Raises StoreError."""
        before, began = await self._size(), time.monotonic()
        request = rpc_pb2.DefragmentRequest()
        await self._ask("maintenance", "Defragment", request, DEFRAGMENTATION_TIMEOUT)
        return Defragmented(before, await self._size(), time.monotonic() - began)

    async def disarm(self, alarms: Sequence[Alarm]) -> None:
        """Disarm alarms of any members; no-op for one that is not raised. Raises StoreError."""
        for alarm in alarms:
            request = rpc_pb2.AlarmRequest(
                action=rpc_pb2.AlarmRequest.DEACTIVATE,
                memberID=int(alarm.member_id, 16),
                alarm=rpc_pb2.AlarmType.Value(alarm.kind),
            )
            await self._ask("maintenance", "Alarm", request, self._timeout)

    async def _size(self) -> int:
        status = await self._ask("maintenance", "Status", rpc_pb2.StatusRequest(), self._timeout)
        return int(status.dbSize)

    async def _ask(self, service: str, method: str, request: Any, timeout: float) -> Any:
        async def attempt(stubs: _Stubs) -> Any:
            return await getattr(getattr(stubs, service), method)(request, timeout=timeout)

        return await self._channels.call(attempt, repeatable=method in ("Status", "Alarm"))
