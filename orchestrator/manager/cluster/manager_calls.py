# SPDX-License-Identifier: Apache-2.0
"""Calls from manager to manager: mutual TLS, both with the role `manager`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

import grpc

from orchestrator.daemon.grpc_calls import ChannelClosed, answer
from orchestrator.identity.certificates import TlsFiles
from orchestrator.identity.sealing import CannotOpen
from orchestrator.identity.tls import channel_credentials, channel_options
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.managers import Manager
from orchestrator.pb import managers_pb2, managers_pb2_grpc

KEYS_PURPOSE = "orc data keys for manager "
"""Followed by its id: what data keys are sealed for."""

STATUS_TIMEOUT = 1.5
"""Seconds that another manager has for its status."""

_RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 200),
)
"""gRPC's own backoff grows to two minutes, in which every call to a manager that is back would fail
at once. The second is the time for an attempt."""


class ManagerChannels:
    """One channel to each other manager, opened at its first use. Use it in one event loop."""

    def __init__(self, files: TlsFiles, view: Callable[[], ClusterView]) -> None:
        self._files = files
        self._view = view
        self._channels: dict[str, tuple[str, tuple[int, int], grpc.aio.Channel]] = {}
        """Manager id → its endpoint, our certificate's stamp, the channel."""

    async def __aenter__(self) -> ManagerChannels:
        return self

    async def __aexit__(self, *_: object) -> None:
        for known in self._channels.values():
            await known[2].close(None)
        self._channels.clear()

    async def channel(self, id: str) -> grpc.aio.Channel | None:
        """A channel to the manager with this id; None if there is no such manager. Replaced when
        its address or our own certificate changes."""
        manager = self._view().managers.get(id)
        known = self._channels.get(id)
        wanted = (manager.endpoint, self._files.pair.stamp()) if manager else None
        if known is not None and known[:2] != wanted:
            del self._channels[id]
            await known[2].close(None)
            known = None
        if wanted is None:
            return None
        if known is None:
            channel = grpc.aio.secure_channel(
                wanted[0],
                channel_credentials(self._files),
                options=[*channel_options(), *_RECONNECT],
            )
            known = self._channels[id] = (wanted[0], wanted[1], channel)
        return known[2]

    async def data_keys(
        self, ids: Collection[str], own: str, unseal_keys: Callable[[bytes], list[bytes]]
    ) -> list[bytes]:
        """Data keys by id, from the first other manager that has some of them; `own` is this
        manager's id, and `unseal_keys` opens the reply. Empty if none answers."""
        view = self._view()
        known = [each for each in view.managers.values() if each.id != own and not each.joining]
        for manager in sorted(known, key=lambda each: not set(ids) & set(each.data_keys)):
            channel = await self.channel(manager.id)
            if channel is None:
                continue
            with suppress(grpc.aio.AioRpcError, ChannelClosed, CannotOpen):
                reply = await answer(
                    managers_pb2_grpc.MembershipStub(channel).GetDataKeys(
                        managers_pb2.GetDataKeysRequest(ids=ids), timeout=STATUS_TIMEOUT
                    )
                )
                if keys := unseal_keys(reply.sealed_keys):
                    return keys
        return []

    async def statuses(self, managers: Iterable[Manager], *, wait: bool = False) -> dict[str, Any]:
        """Manager id → its status, of those that answer in time; asked at once. `wait`: also for
        one to which there is no connection yet, as when it has just returned; one that does not
        answer is asked again over a new connection, so all takes up to 2 * `STATUS_TIMEOUT`."""
        found: dict[str, Any] = {}

        async def ask(manager: Manager) -> None:
            channel = await self.channel(manager.id)
            if channel is None:
                return
            try:
                found[manager.id] = await answer(
                    managers_pb2_grpc.MembershipStub(channel).GetStatus(
                        managers_pb2.GetStatusRequest(), timeout=STATUS_TIMEOUT, wait_for_ready=wait
                    )
                )
            except ChannelClosed:
                pass
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    # Its host may have lost power, and be back: this connection would not notice.
                    await self._drop(manager.id, channel)

        asked = list(managers)
        for _ in range(2 if wait else 1):
            async with asyncio.TaskGroup() as group:
                for each in asked:
                    if each.id not in found:
                        group.create_task(ask(each))
        return found

    async def _drop(self, id: str, channel: grpc.aio.Channel) -> None:
        known = self._channels.get(id)
        if known is not None and known[2] is channel:
            del self._channels[id]
            await channel.close(None)
