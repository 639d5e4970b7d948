# SPDX-License-Identifier: Apache-2.0
"""What clients of several managers need of every call, as one gRPC interceptor.

Metadata of a request:

| key | meaning |
| --- | --- |
| `orc-version` | the client's version; beyond the supported skew, the call is refused |
| `orc-revision` | the newest store revision that the client has seen; the call waits until this manager's cache has it, so that a client reads what it wrote through another manager |
| `orc-request-id` | id of the request, the same in each attempt |
| `orc-attempt` | number of the attempt, from 1 |

Metadata of a reply (with the headers of a streamed one, else with the trailers):

| key | meaning |
| --- | --- |
| `orc-revision` | store revision of the newest change in this manager's cache |
| `orc-managers` | `HOST:PORT` of all managers that serve, separated by commas |
| `orc-renew` | present while the CA is rotated and the client's certificate is of the former one: it is to be renewed |
| `orc-retry` | with UNAVAILABLE: the same manager can probably serve the call in a moment |

A write of `RECORDED` is applied once, however often the request arrives: its record is written in
the same transaction (`store.request_records`), and a further attempt is answered from the record.
Other calls may be repeated, or the client does not repeat them; see `cli.rpc.retries`.
"""  # noqa: E501

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from orchestrator.daemon.grpc_calls import complete
from orchestrator.identity.certificates import own_key_id
from orchestrator.identity.roles import ALLOWED, within
from orchestrator.identity.tls import peer_identity
from orchestrator.manager.api.grpc_status import ATTEMPT, REQUEST_ID, RETRY, metadata_of
from orchestrator.manager.cluster.version_skew import refusal_of_call
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.ca_rotation import has_renewed
from orchestrator.manager.store.cache import Cache, find_object
from orchestrator.manager.store.keys import object_type
from orchestrator.manager.store.kv import Kv, StoreError, StoreFull
from orchestrator.manager.store.request_records import (
    REQUESTS,
    AlreadyApplied,
    PendingRecord,
    RequestRecord,
    RequestRecords,
    recording,
)
from orchestrator.model.convert import to_proto
from orchestrator.pb import control_pb2, documents_pb2, networks_pb2, types_pb2, volumes_pb2

VERSION = "orc-version"
REVISION = "orc-revision"
MANAGERS = "orc-managers"
RENEW = "orc-renew"

SKEWED = frozenset(
    {
        "Control.GetCluster",
        "Control.ListNodes",
        "Control.ListServices",
        "Managers.GetSchema",
        "Managers.ListManagers",
    }
)
"""Calls that a client of any version may make: those of `orc cluster upgrade --check`."""

CATCH_UP_WITHIN = 2.0
"""Seconds that a call waits for the cache to reach the client's revision."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _object(view: ClusterView, record: RequestRecord) -> Any:
    """The object as it is now; None if it is gone."""
    known = object_type(record.subject)
    found = find_object(view, *known) if known is not None else None
    return to_proto(found) if found is not None else None


def _removed_container(view: ClusterView, record: RequestRecord) -> Any:
    """The container while it is being removed, and what is known of it afterwards."""
    gone = types_pb2.Task(
        id=record.id, container_name=record.name, desired_state=types_pb2.TASK_REMOVE
    )
    return _object(view, record) or gone


@dataclass(frozen=True, slots=True)
class _Recorded:
    """How a write is recorded, and its reply derived from the record."""

    reply: Callable[[ClusterView, RequestRecord], Any] = _object
    deletions: bool = False
    """It is recorded with the deletion of its object: what it does before may be repeated."""


_CHANGE = _Recorded()

RECORDED: dict[str, _Recorded] = {
    "Containers.AdoptOrphan": _CHANGE,
    "Containers.CreateContainer": _CHANGE,
    "Containers.RenameContainer": _CHANGE,
    "Containers.RestartContainer": _CHANGE,
    "Containers.RemoveContainer": _Recorded(_removed_container),
    "Control.CreateService": _CHANGE,
    "Control.PromoteService": _CHANGE,
    "Control.RemoveNode": _Recorded(lambda _, record: control_pb2.RemoveNodeReply()),
    "Control.RemoveService": _Recorded(
        lambda _, record: control_pb2.RemoveServiceReply(id=record.id)
    ),
    "Control.RollbackService": _CHANGE,
    "Control.UpdateNode": _CHANGE,
    "Control.UpdateService": _CHANGE,
    "Documents.CreateDocument": _CHANGE,
    "Documents.RemoveDocument": _Recorded(
        lambda _, record: documents_pb2.RemoveDocumentReply(id=record.id), deletions=True
    ),
    "Jobs.StartJob": _CHANGE,
    "Jobs.StopJob": _CHANGE,
    "Networks.CreateNetwork": _CHANGE,
    "Networks.RemoveNetwork": _Recorded(
        lambda _, record: networks_pb2.RemoveNetworkReply(id=record.id, name=record.name),
        deletions=True,
    ),
    "Volumes.RemoveVolume": _Recorded(
        lambda _, record: volumes_pb2.RemoveVolumeReply(name=record.id), deletions=True
    ),
}
"""`Service.Method` → how it is recorded."""


class ClientCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Serves the metadata above. The innermost interceptor."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        managers: Callable[[], Sequence[str]],
        clock: Callable[[], float],
    ) -> None:
        """`managers` returns `HOST:PORT` of all that serve; `clock` is monotonic."""
        self._kv = kv
        self._cache = cache
        self._managers = managers
        self._records = RequestRecords(kv, clock)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(details)
        path = str(details.method).strip("/")
        if handler is None or "admin" not in ALLOWED.get(path.partition("/")[0], ()):
            return handler
        if handler.response_streaming:
            return within(handler, self._streamed)
        method = path.removeprefix("orchestrator.v1.").replace("/", ".")
        inner, rule = handler.unary_unary, RECORDED.get(method)
        if inner is None:
            return handler

        async def unary(request: Any, context: Any) -> Any:
            if method not in SKEWED:
                await _check_version(context)
            await self._catch_up(context)
            if rule is None:
                reply = await inner(request, context)
            else:
                reply = await self._once(rule, inner, request, context)
            _add_trailers(context, self._position(context))
            return reply

        return grpc.unary_unary_rpc_method_handler(
            unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _position(self, context: Any) -> tuple[tuple[str, str], ...]:
        revision = str(self._cache.newest_change)
        found = ((REVISION, revision), (MANAGERS, ",".join(self._managers())))
        view, caller = self._cache.view, peer_identity(context)
        cluster = view.cluster
        if cluster is None or not (rotation := cluster.ca_rotation).successor:
            return found
        issued = caller.certificate if caller else None
        waiting = rotation.link and not rotation.signing_since
        if issued is None or waiting or issued.ca == own_key_id(rotation.successor):
            return found
        known = view.certificates.get(issued.serial)
        if known is not None and has_renewed(rotation, known):
            return found
        return (*found, (RENEW, "1"))

    @asynccontextmanager
    async def _streamed(self, context: Any) -> AsyncIterator[None]:
        await _check_version(context)
        await self._catch_up(context)
        await complete(context.send_initial_metadata(self._position(context)))
        yield

    async def _catch_up(self, context: Any) -> None:
        """Wait until the cache has what the client has seen, or abort the call."""
        asked = metadata_of(context, REVISION)
        if not asked.isdecimal() or int(asked) <= self._cache.revision:
            return
        try:
            async with asyncio.timeout(CATCH_UP_WITHIN):
                await self._cache.wait_for(int(asked))
                return
        except TimeoutError:
            pass
        try:
            async with asyncio.timeout(CATCH_UP_WITHIN):
                newest = await self._kv.txn([], [])
        except (StoreError, TimeoutError) as error:
            reason = str(error) or "no answer"
            await _not_ready(context, f"etcd is unavailable: {reason}")
        if newest >= int(asked):
            await _not_ready(
                context,
                "this manager has not yet received changes that you have seen; try another one",
            )
        # The store was restored from a backup, so its revisions are lower than those seen before.

    async def _once(self, rule: _Recorded, inner: Any, request: Any, context: Any) -> Any:
        """Apply a request unless that has been done, and answer it."""
        name, identity = metadata_of(context, REQUEST_ID), peer_identity(context)
        if identity is None or not _ID.fullmatch(name):
            return await inner(request, context)
        key = f"{REQUESTS}{identity.id}/{name}"
        again = metadata_of(context, ATTEMPT) not in ("", "1")
        try:
            if again and (done := await self._records.find(key)) is not None:
                return await self._answer(rule, done, context)
            pending = await self._records.prepare(key, deletions=rule.deletions)
        except StoreFull as full:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(full))
        except StoreError as error:
            await _not_ready(context, f"etcd is unavailable: {error}")
        watched = _Context(context, self._records, pending)
        try:
            with recording(pending):
                return await inner(request, watched)
        except _Applied as applied:
            return await self._answer(rule, applied.record, context)
        except AlreadyApplied:
            record = await self._records.find(key)
            assert record is not None, "records outlast requests"
            return await self._answer(rule, record, context)

    async def _answer(self, rule: _Recorded, record: RequestRecord, context: Any) -> Any:
        await self._cache.wait_for(record.revision)
        reply = rule.reply(self._cache.view, record)
        if reply is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"the request was applied, and '{record.name or record.id}' has been removed since",
            )
        return reply


class _Applied(Exception):
    """A refusal that is due to another attempt, which was applied."""

    def __init__(self, record: RequestRecord) -> None:
        super().__init__(record.id)
        self.record = record


class _Context:
    """A call's context. An attempt is not refused on account of what another one did, which may
    have been committed since the record was looked for."""

    def __init__(self, context: Any, records: RequestRecords, pending: PendingRecord) -> None:
        self._context = context
        self._records = records
        self._pending = pending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def abort(self, code: Any, details: str = "", trailing: Any = ()) -> None:
        if code is not grpc.StatusCode.UNAVAILABLE:
            record = await self._records.find(self._pending.key)
            if record is not None:
                raise _Applied(record)
        await self._context.abort(code, details, trailing)


async def _check_version(context: Any) -> None:
    """Abort the call of a client whose release does not work with this manager's."""
    if reason := refusal_of_call(metadata_of(context, VERSION)):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)


async def _not_ready(context: Any, reason: str) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, reason, ((RETRY, "1"),))


def _add_trailers(context: Any, pairs: Sequence[tuple[str, str]]) -> None:
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *pairs))
