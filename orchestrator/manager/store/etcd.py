# SPDX-License-Identifier: Apache-2.0
"""`Kv` over etcd v3: aetcd's generated stubs on channels of our own.

Of aetcd only the protobuf messages and gRPC stubs generated from etcd's protos are used, because
its client connects to one host without TLS and its watches end with the connection. The stubs come
with a maintained package instead of a copy of etcd's protos in this repository. Only this module,
`etcd_membership` and `etcd_maintenance` import aetcd.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import grpc
from aetcd.rpc import kv_pb2, rpc_pb2, rpc_pb2_grpc

from orchestrator.manager.store.etcd_channels import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    EtcdChannels,
    Peer,
    blocking_channels,
    refusal_of,
)
from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.kv import (
    Batch,
    Compacted,
    Conflict,
    Delete,
    Entry,
    Event,
    Guard,
    LeaseLost,
    Op,
    Put,
    Snapshot,
    StoreError,
    StoreUnavailable,
    TooLarge,
)
from orchestrator.manager.store.lease_renewal import Renewed

log = logging.getLogger(__name__)

PAGE = 2_000
"""Keys per request of a list."""

PROGRESS_INTERVAL = 1.0
"""Seconds between a watch's progress requests."""

RENEWAL_TIMEOUT = 1.0
"""Seconds that each of several endpoints has at least to renew a lease."""

WATCH_SILENCE = 2.5
"""Seconds without any answer after which a watch considers its endpoint dead."""

# A member without quorum refuses at once instead of blocking the caller.
_METADATA = (("hasleader", "true"),)


class _Stubs:
    """aetcd's stubs on one channel. They are untyped, hence `Any`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.kv: Any = rpc_pb2_grpc.KVStub(channel)
        self.watch: Any = rpc_pb2_grpc.WatchStub(channel)
        self.lease: Any = rpc_pb2_grpc.LeaseStub(channel)


class EtcdKv:
    """The store that a manager uses. Enter it with `async with`, in the loop that uses it.

    Entering does not connect. All methods behave as `Kv` says; each uses the current endpoint and
    moves to the next when there is no answer within `timeout` seconds.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        tls: EtcdTls | None,
        *,
        timeout: float = 2.0,
        max_txn_ops: int = 128,
    ) -> None:
        """`endpoints` are URLs such as `https://10.0.0.1:2379`; `http` only without `tls`.

        `max_txn_ops` is what the members were started with (etcd's default is 128). Raises
        StoreError for a malformed endpoint or an unreadable certificate file.
        """
        self._timeout = timeout
        self._max_txn_ops = max_txn_ops
        self._channels = EtcdChannels(endpoints, tls, timeout, _Stubs)

    async def __aenter__(self) -> EtcdKv:
        await self._channels.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channels.__aexit__()

    @property
    def max_txn_ops(self) -> int:
        return self._max_txn_ops

    async def get(self, key: str) -> Entry | None:
        answer = await self._range(rpc_pb2.RangeRequest(key=key.encode()))
        return _entry(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Snapshot:
        while True:
            try:
                return await self._list(prefix)
            except Compacted:
                # Compaction overtook the pages between the first and the last: start again.
                log.info("list of %s was overtaken by compaction; retrying", prefix)

    async def _list(self, prefix: str) -> Snapshot:
        start, end = _prefix_range(prefix)
        entries: list[Entry] = []
        revision = 0
        while True:
            page = await self._range(
                rpc_pb2.RangeRequest(key=start, range_end=end, limit=PAGE, revision=revision)
            )
            revision = revision or page.header.revision
            entries.extend(map(_entry, page.kvs))
            if not page.more:
                return Snapshot(tuple(entries), revision)
            start = page.kvs[-1].key + b"\0"

    async def _range(self, request: Any) -> Any:
        return await self._ask(lambda stubs: stubs.kv.Range, request, repeatable=True)

    async def _ask(self, method: Callable[[_Stubs], Any], request: Any, *, repeatable: bool) -> Any:
        return await self._channels.call(
            lambda stubs: method(stubs)(request, timeout=self._timeout, metadata=_METADATA),
            repeatable=repeatable,
        )

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        most = max(len(guards), len(ops))
        if most > self._max_txn_ops:
            raise TooLarge(
                f"a transaction of {most} operations is larger than etcd takes "
                f"({self._max_txn_ops}): split it, or raise --max-txn-ops"
            )
        request = rpc_pb2.TxnRequest(
            compare=[_compare(guard) for guard in guards],
            success=[_operation(op) for op in ops],
            # On failure, read the guarded keys, to name the guards that failed.
            failure=[_read_revisions(guard) for guard in guards],
        )
        answer = await self._ask(lambda stubs: stubs.kv.Txn, request, repeatable=False)
        if not answer.succeeded:
            raise Conflict(
                [
                    guard.key
                    for guard, read in zip(guards, answer.responses, strict=True)
                    if not _holds(guard, read.response_range.kvs)
                ]
            )
        return int(answer.header.revision)

    def watch(
        self, prefix: str, start_revision: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        return _Watch(self._channels, prefix, start_revision)

    async def grant(self, ttl: float) -> int:
        # Repeatable: the lease of an unanswered attempt expires unused.
        request = rpc_pb2.LeaseGrantRequest(TTL=math.ceil(ttl))
        answer = await self._channels.call(
            lambda stubs: stubs.lease.LeaseGrant(
                request, timeout=self._timeout, metadata=_METADATA
            ),
            repeatable=True,
        )
        return int(answer.ID)

    async def keepalive(self, lease: int) -> float:
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease)

        async def once(stubs: _Stubs) -> Any:
            call = stubs.lease.LeaseKeepAlive(
                iter((request,)), timeout=self._timeout, metadata=_METADATA
            )
            try:
                return await call.read()
            finally:
                call.cancel()

        answer = await self._channels.call(once, repeatable=True)
        if answer.TTL <= 0:  # how etcd reports that there is no such lease
            raise LeaseLost("the lease has expired or was revoked")
        return float(answer.TTL)

    async def revoke(self, lease: int) -> None:
        request = rpc_pb2.LeaseRevokeRequest(ID=lease)
        try:
            await self._ask(lambda stubs: stubs.lease.LeaseRevoke, request, repeatable=True)
        except LeaseLost:
            return

    async def compact(self, revision: int) -> None:
        """Compact the history before `revision`. Members do so by themselves; for tests."""
        request = rpc_pb2.CompactionRequest(revision=revision, physical=True)
        await self._ask(lambda stubs: stubs.kv.Compact, request, repeatable=False)


class EtcdRenewal:
    """Renews leases by blocking calls over connections of its own; a context manager.

    Used by any number of threads, beside an `EtcdKv` that the event loop uses.
    """

    def __init__(self, endpoints: Sequence[str], tls: EtcdTls | None) -> None:
        """See `EtcdKv`."""
        self._channels = blocking_channels(endpoints, tls)
        self._current = 0

    def __enter__(self) -> EtcdRenewal:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()

    def renew(self, lease: int, key: str, timeout: float, announce: int = 0) -> Renewed:
        """Renew the lease, then look at the key, or write it again, unchanged, if `announce` is
        its create revision. Raises LeaseLost, and StoreError when no endpoint answers within
        `timeout` seconds."""
        give_up = time.monotonic() + timeout
        first, count = self._current, len(self._channels)
        cause = "no etcd endpoint answered in time"
        for number in (each % count for each in range(first, first + count)):
            left = give_up - time.monotonic()
            if left <= 0:
                break
            self._current = number
            share = max(left / count, min(left, RENEWAL_TIMEOUT))
            try:
                return _renewed(self._channels[number], lease, key, share, announce)
            except grpc.RpcError as error:
                failure = cast(grpc.Call, error)
                self._current = (number + 1) % count
                if (refusal := refusal_of(failure)) is not None:
                    raise refusal from error
                cause = failure.details() or failure.code().name
        raise StoreUnavailable(cause)


def _renewed(channel: grpc.Channel, lease: int, key: str, timeout: float, announce: int) -> Renewed:
    request = rpc_pb2.LeaseKeepAliveRequest(ID=lease)
    call = rpc_pb2_grpc.LeaseStub(channel).LeaseKeepAlive(
        iter((request,)), timeout=timeout, metadata=_METADATA
    )
    try:
        answer = next(call, None)
    finally:
        call.cancel()
    if answer is None or answer.TTL <= 0:  # how etcd reports that there is no such lease
        raise LeaseLost("the lease has expired or was revoked")
    store = rpc_pb2_grpc.KVStub(channel)
    if announce:
        request = _announcement(key, announce)
        written = store.Txn(request, timeout=timeout, metadata=_METADATA)
        return Renewed(float(answer.TTL), announce if written.succeeded else 0)
    found = store.Range(
        rpc_pb2.RangeRequest(key=key.encode(), keys_only=True), timeout=timeout, metadata=_METADATA
    )
    created = found.kvs[0].create_revision if found.kvs else 0
    return Renewed(float(answer.TTL), int(created))


def _announcement(key: str, created: int) -> Any:
    """Writes the key without a change of its value or its lease, which may be exchanged meanwhile.
    May be repeated."""
    put = rpc_pb2.PutRequest(key=key.encode(), ignore_value=True, ignore_lease=True)
    return rpc_pb2.TxnRequest(
        compare=[_compare(Guard(key, create_revision=created))],
        success=[rpc_pb2.RequestOp(request_put=put)],
    )


class _Watch:
    """A watch that survives the streams it runs over.

    `_next` is the first revision that was not received in full; every new stream starts there. Once
    a second it requests progress. The answer proves that the member is alive and has a leader, and
    advances `_next`, so that the start of an idle watch is never compacted.
    """

    def __init__(self, channels: EtcdChannels[_Stubs], prefix: str, start_revision: int) -> None:
        if start_revision < 1:
            raise ValueError(f"start_revision of a watch is at least 1, not {start_revision}")
        self._channels = channels
        self._prefix = prefix
        self._next = start_revision
        self._ready: deque[Batch] = deque()
        self._fragments: list[Any] = []
        self._call: Any = None
        self._closed = asyncio.Event()
        self._peer: Peer[_Stubs] | None = None
        self._failures = 0

    async def __aenter__(self) -> _Watch:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._drop()

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> Batch:
        while not self._ready:
            await self._receive()
        return self._ready.popleft()

    async def _receive(self) -> None:
        """Handle one response, or one failure."""
        if self._call is None:
            if self._failures:
                await asyncio.sleep(min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE))
            self._open()
        try:
            async with asyncio.timeout(WATCH_SILENCE):
                response = await self._call.read()
        except TimeoutError:
            self._fail(f"silent for {WATCH_SILENCE:g} s")
            return
        except grpc.aio.AioRpcError as error:
            if error.code() in (
                grpc.StatusCode.UNAUTHENTICATED,
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.UNIMPLEMENTED,
            ):
                raise StoreError(f"etcd refuses the watch: {error.details()}") from error
            self._fail(self._channels.explain(error))
            return
        except asyncio.CancelledError:
            # grpc cancels the call together with the read; the next read starts where this one was.
            self._drop()
            raise
        if not isinstance(response, rpc_pb2.WatchResponse):
            self._fail("closed the stream")
            return
        self._accept(response)

    def _accept(self, response: Any) -> None:
        if response.compact_revision:
            raise Compacted(
                f"revision {self._next} is no longer in etcd's history "
                f"(compacted at {response.compact_revision})"
            )
        if response.canceled:
            self._fail(response.cancel_reason or "ended the watch")
            return
        if self._failures:
            log.info("watch of %s resumes at revision %d", self._prefix, self._next)
            self._failures = 0
        self._fragments.extend(response.events)
        if response.fragment or response.created:
            return
        self._ready.extend(_batches(self._fragments, self._next))
        self._fragments.clear()
        # Also without events: all up to the header's revision has been sent (etcd >= 3.5.8
        # answers a progress request only then).
        if self._ready:
            self._next = self._ready[-1].revision + 1
        elif not response.events:
            self._next = max(self._next, response.header.revision + 1)

    def _open(self) -> None:
        self._peer = self._channels.current
        self._closed = asyncio.Event()
        self._fragments.clear()
        self._call = self._peer.stubs.watch.Watch(self._requests(self._closed), metadata=_METADATA)

    async def _requests(self, closed: asyncio.Event) -> AsyncIterator[Any]:
        """What grpc sends: the watch, then progress requests until the stream is dropped."""
        start, end = _prefix_range(self._prefix)
        yield rpc_pb2.WatchRequest(
            create_request=rpc_pb2.WatchCreateRequest(
                key=start, range_end=end, start_revision=self._next, fragment=True
            )
        )
        question = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
        while not closed.is_set():
            try:
                async with asyncio.timeout(PROGRESS_INTERVAL):
                    await closed.wait()
            except TimeoutError:
                yield question

    def _drop(self) -> None:
        self._closed.set()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _fail(self, cause: str) -> None:
        self._drop()
        assert self._peer is not None
        self._channels.leave(self._peer)
        if not self._failures:
            log.warning("watch of %s lost etcd at %s: %s", self._prefix, self._peer.url, cause)
        self._failures = min(self._failures + 1, 8)


def _batches(events: Sequence[Any], first: int) -> list[Batch]:
    """Events (in order) grouped by revision, without those before `first`."""
    groups: dict[int, list[Event]] = {}
    for event in events:
        revision = event.kv.mod_revision
        if revision < first:
            continue
        gone = event.type == kv_pb2.Event.DELETE
        groups.setdefault(revision, []).append(
            Event(event.kv.key.decode(), revision, None if gone else _entry(event.kv))
        )
    return [Batch(revision, tuple(group)) for revision, group in groups.items()]


def _entry(kv: Any) -> Entry:
    return Entry(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision)


def _prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """etcd's [start, end) of all keys under a prefix."""
    start = prefix.encode()
    if not start:
        return b"\0", b"\0"
    # UTF-8 has no byte 0xff, so the last one can always be incremented.
    return start, start[:-1] + bytes([start[-1] + 1])


def _compare(guard: Guard) -> Any:
    if guard.unchanged_since is not None:
        return rpc_pb2.Compare(
            result=rpc_pb2.Compare.LESS,
            target=rpc_pb2.Compare.MOD,
            key=guard.key.encode(),
            mod_revision=guard.unchanged_since + 1,
        )
    created = guard.create_revision is not None
    return rpc_pb2.Compare(
        result=rpc_pb2.Compare.EQUAL,
        target=rpc_pb2.Compare.CREATE if created else rpc_pb2.Compare.MOD,
        key=guard.key.encode(),
        # None leaves a field of the target's union unset.
        create_revision=guard.create_revision,
        mod_revision=guard.mod_revision,
    )


def _read_revisions(guard: Guard) -> Any:
    return rpc_pb2.RequestOp(
        request_range=rpc_pb2.RangeRequest(key=guard.key.encode(), keys_only=True)
    )


def _holds(guard: Guard, found: Sequence[Any]) -> bool:
    if guard.create_revision is not None:
        return guard.create_revision == (found[0].create_revision if found else 0)
    if guard.unchanged_since is not None:
        return (found[0].mod_revision if found else 0) <= guard.unchanged_since
    return guard.mod_revision == (found[0].mod_revision if found else 0)


def _operation(op: Op) -> Any:
    match op:
        case Put(key, value, lease):
            return rpc_pb2.RequestOp(
                request_put=rpc_pb2.PutRequest(key=key.encode(), value=value, lease=lease)
            )
        case Delete(key):
            return rpc_pb2.RequestOp(
                request_delete_range=rpc_pb2.DeleteRangeRequest(key=key.encode())
            )
