# SPDX-License-Identifier: Apache-2.0
"""Calls of the API, each recorded with its outcome."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc

from orchestrator.cli.app.contexts import load_context
from orchestrator.cli.rpc.client import MANAGER_NAME
from orchestrator.pb import (
    containers_pb2_grpc,
    control_pb2_grpc,
    documents_pb2_grpc,
    managers_pb2_grpc,
    networks_pb2_grpc,
    volumes_pb2_grpc,
)
from tests.chaos.history import Call, Outcome
from tests.chaos.recorder import Recorder

TIMEOUT = 8.0
"""Seconds for one call."""

REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Statuses with which a manager says that nothing was changed. After others, it may have been."""

_OPTIONS = (
    ("grpc.ssl_target_name_override", MANAGER_NAME),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 200),
)


class Failed(Exception):
    """A call that did not succeed; `outcome` says whether it may have had an effect."""

    def __init__(self, outcome: Outcome, status: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.status = status


@dataclass(frozen=True, slots=True)
class Manager:
    """One manager's services."""

    endpoint: str
    control: Any
    documents: Any
    managers: Any
    networks: Any
    volumes: Any
    containers: Any


class Api:
    """All managers, over one connection to each. Enter it with `async with`."""

    def __init__(self, name: str, recorder: Recorder) -> None:
        self._context = load_context(name)
        self._recorder = recorder
        self._stack = AsyncExitStack()
        self.managers: list[Manager] = []

    async def __aenter__(self) -> Api:
        context = self._context
        credentials = grpc.ssl_channel_credentials(
            context.ca.encode(), context.key.encode(), context.certificate.encode()
        )
        for endpoint in context.endpoints:
            channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
            await self._stack.enter_async_context(channel)
            self.managers.append(
                Manager(
                    endpoint,
                    control_pb2_grpc.ControlStub(channel),
                    documents_pb2_grpc.DocumentsStub(channel),
                    managers_pb2_grpc.ManagersStub(channel),
                    networks_pb2_grpc.NetworksStub(channel),
                    volumes_pb2_grpc.VolumesStub(channel),
                    containers_pb2_grpc.ContainersStub(channel),
                )
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class Client:
    """A user's calls. Each goes to a manager that the user's own randomness chooses."""

    def __init__(self, name: str, api: Api, recorder: Recorder, chance: random.Random) -> None:
        self.name = name
        self._api = api
        self._recorder = recorder
        self._chance = chance

    async def call(
        self,
        method: Callable[[Manager], Any],
        request: Any,
        *,
        target: str,
        tag: str = "",
        base: int = 0,
        seen: Callable[[Any], tuple[str, int, str]] = lambda reply: ("", 0, ""),
    ) -> Any:
        """Call one manager once, and record it. `seen` says which object, version and tag a reply
        holds. Raises Failed."""
        manager = self._chance.choice(self._api.managers)
        bound = method(manager)
        name = bound._method.decode().rpartition("/")[2]
        began = self._recorder.now()
        outcome: Outcome = "unknown"
        found, text = ("", 0, ""), "cancelled"
        try:
            reply = await bound(request, timeout=TIMEOUT)
            found, text, outcome = seen(reply), "", "ok"
            return reply
        except grpc.aio.AioRpcError as error:
            text = f"{error.code().name}: {error.details()}"
            outcome = "refused" if error.code() in REFUSALS else "unknown"
            raise Failed(outcome, error.code(), text) from None
        finally:
            self._recorder.add(
                Call(
                    client=self.name,
                    manager=manager.endpoint,
                    method=name,
                    target=target,
                    began=began,
                    ended=self._recorder.now(),
                    outcome=outcome,
                    tag=tag,
                    base=base,
                    object=found[0],
                    version=found[1],
                    value=found[2],
                    error=text,
                )
            )
