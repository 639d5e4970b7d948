# SPDX-License-Identifier: Apache-2.0
"""gRPC channels to the members of one etcd cluster: endpoint selection, and the meaning of
failures.

One channel per endpoint rather than one channel with gRPC's balancing: a member that is frozen or
partitioned keeps its TCP connection for a while, and only the caller, whose deadline passed, knows
that it should try another. So all calls use one endpoint, and a failure moves all of them to the
next.

Whether a failed write may be repeated depends on where it failed. Before it was sent (no
connection, refused before being proposed): yes. After that the outcome is unknown.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import grpc

from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.kv import (
    Compacted,
    LeaseLost,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TooLarge,
)

log = logging.getLogger(__name__)

S = TypeVar("S")
R = TypeVar("R")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.4

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # With data in flight, the kernel drops a connection whose peer acknowledges nothing for the
    # keepalive timeout (TCP_USER_TIMEOUT); an etcd with default settings would punish pings more
    # often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # Newer versions of gRPC have a timeout of pings beside it, of a minute.
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 200),
    # Endpoints fail one by one, and an HTTP proxy in the host's environment does not apply.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

# etcd refused these before it proposed anything to the cluster.
_NOT_PROPOSED = (
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "etcdserver: not capable",
)


@dataclass(frozen=True, slots=True)
class Peer(Generic[S]):
    """One endpoint: its URL, its channel, and the stubs made on that channel."""

    url: str
    channel: grpc.aio.Channel
    stubs: S


class EtcdChannels(Generic[S]):
    """All endpoints of a cluster, one of them current."""

    def __init__(
        self,
        endpoints: Sequence[str],
        tls: EtcdTls | None,
        timeout: float,
        make_stubs: Callable[[grpc.aio.Channel], S],
    ) -> None:
        """`timeout` in seconds applies to one attempt at one endpoint. Raises StoreError for a
        malformed endpoint, one that does not fit `tls`, or an unreadable file of `tls`."""
        if not endpoints:
            raise StoreError("no etcd endpoint given (check --etcd-endpoints)")
        self.timeout = timeout
        self._tls = tls
        self._make_stubs = make_stubs
        self._targets = tuple((url, _target(url, tls)) for url in endpoints)
        self._credentials = None if tls is None else _credentials(tls)
        self._peers: tuple[Peer[S], ...] = ()
        self._current = 0

    async def __aenter__(self) -> EtcdChannels[S]:
        peers = []
        for url, target in self._targets:
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(target, self._credentials, options=_OPTIONS)
            peers.append(Peer(url, channel, self._make_stubs(channel)))
        self._peers = tuple(peers)
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in self._peers:
            await peer.channel.close(None)

    @property
    def current(self) -> Peer[S]:
        """The current endpoint."""
        return self._peers[self._current]

    def leave(self, peer: Peer[S]) -> None:
        """`peer` failed: move to the next endpoint, unless another caller has moved already."""
        if self.current is peer:
            self._current = (self._current + 1) % len(self._peers)

    async def call(self, attempt: Callable[[S], Awaitable[R]], *, repeatable: bool) -> R:
        """The answer of the first endpoint that gives one.

        Every endpoint is tried at least once, and immediate failures (a restarting member) are
        retried until `timeout` has passed. What is not `repeatable` is repeated only if it
        certainly did not happen. Raises StoreUnavailable, or the StoreError that etcd's answer
        means.
        """
        give_up = time.monotonic() + self.timeout
        causes: dict[str, str] = {}
        pause = FIRST_PAUSE
        tries = 0
        while True:
            peer = self.current
            try:
                await self._connected(peer)
                async with _cancellable():
                    return await attempt(peer.stubs)
            except TimeoutError:
                causes[peer.url] = f"no connection within {self.timeout:g} s"
            except grpc.aio.AioRpcError as error:
                if (refusal := refusal_of(error)) is not None:
                    raise refusal from error
                causes[peer.url] = self.explain(error)
                if not (repeatable or _not_sent(error)):
                    self.leave(peer)
                    raise StoreUnavailable(
                        f"etcd at {peer.url} was lost in the middle of a write, which may or may "
                        f"not have happened: {causes[peer.url]}"
                    ) from error
            self.leave(peer)
            tries += 1
            if tries % len(self._peers):
                continue
            if time.monotonic() + pause >= give_up:
                raise StoreUnavailable(_silence([url for url, _ in self._targets], causes))
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _connected(self, peer: Peer[S]) -> None:
        """Wait until the channel is connected or has failed to; TimeoutError after `timeout`. Only
        this distinguishes a write that was never sent from one without an answer."""
        settled = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        state = peer.channel.get_state(try_to_connect=True)
        if state in settled:
            return
        async with asyncio.timeout(self.timeout):
            while state not in settled:
                await peer.channel.wait_for_state_change(state)
                state = peer.channel.get_state(try_to_connect=True)

    def explain(self, error: grpc.aio.AioRpcError) -> str:
        """The cause in a user's words, and what to check."""
        details = error.details() or ""
        lower = details.lower()
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no answer within {self.timeout:g} s"
        if "certificate_verify_failed" in lower:
            ca = self._tls.ca if self._tls else "?"
            return f"its certificate is not signed by the CA in {ca} (check the etcd CA file)"
        # In TLS 1.3 the client finishes first; the server's refusal arrives with its first data.
        if "unwrap failed" in lower or "_alert_" in lower:
            cert = self._tls.cert if self._tls else "?"
            return f"it refuses the certificate in {cert} (check the etcd client certificate)"
        if "is not in peer certificate" in lower:
            return "its certificate is for another name (check --etcd-endpoints)"
        if "connection refused" in lower:
            return "connection refused (is it running? check --etcd-endpoints)"
        if "dns resolution failed" in lower:
            return "its name cannot be resolved (check --etcd-endpoints)"
        return details or error.code().name.lower()


def blocking_channels(endpoints: Sequence[str], tls: EtcdTls | None) -> list[grpc.Channel]:
    """A channel to each endpoint with blocking calls, for use outside the event loop. Raises
    StoreError as `EtcdChannels` does."""
    targets = [_target(url, tls) for url in endpoints]
    if tls is None:
        return [grpc.insecure_channel(target, options=_OPTIONS) for target in targets]
    credentials = _credentials(tls)
    return [grpc.secure_channel(target, credentials, options=_OPTIONS) for target in targets]


@asynccontextmanager
async def _cancellable() -> AsyncIterator[None]:
    """Let a cancellation in the body win over gRPC's own.

    grpc.aio takes a cancellation for its own, and where the call has just ended (an answer or an
    error that was not looked at yet, on a slow host), nothing reports it any more: a term that was
    over would go on.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


def _target(url: str, tls: EtcdTls | None) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port or 2379
    except ValueError:
        port = 0
    bare = parts.path in ("", "/") and not parts.query
    if parts.scheme not in ("http", "https") or not (parts.hostname and port and bare):
        raise StoreError(
            f"etcd endpoint {url!r} is not a URL such as https://10.0.0.1:2379 "
            "(check --etcd-endpoints)"
        )
    if parts.scheme == "https" and tls is None:
        raise StoreError(f"etcd endpoint {url} needs a CA file, a certificate and a key")
    if parts.scheme == "http" and tls is not None:
        raise StoreError(f"etcd endpoint {url} is not https, but etcd certificates are given")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}"


def _credentials(tls: EtcdTls) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(
            root_certificates=tls.ca.read_bytes(),
            private_key=tls.key.read_bytes(),
            certificate_chain=tls.cert.read_bytes(),
        )
    except OSError as error:
        raise StoreError(
            f"cannot read the etcd certificate file {error.filename}: {error.strerror}"
        ) from error


def _not_sent(error: grpc.aio.AioRpcError) -> bool:
    details = error.details() or ""
    return details.startswith("failed to connect") or details.startswith(_NOT_PROPOSED)


def refusal_of(error: grpc.aio.AioRpcError | grpc.Call) -> StoreError | None:
    """The error that an answer of a healthy etcd means; None if the error is about reaching it."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseLost("the lease has expired or was revoked")
    if code is grpc.StatusCode.OUT_OF_RANGE and "has been compacted" in details:
        return Compacted("that revision is no longer in etcd's history")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "space exceeded" in details:
        return StoreFull(
            "etcd's database is full, so nothing can be written; see 'orc manager store status' "
            "(external etcd: compact and defragment it, then disarm its NOSPACE alarm)"
        )
    if "not supported for learner" in details:
        return None  # it serves once it is promoted
    if "too many operations" in details:
        return TooLarge(f"{details}: start etcd with a larger --max-txn-ops")
    if "request is too large" in details or "larger than max" in details:
        return TooLarge(f"{details}: start etcd with a larger --max-request-bytes")
    if code in (
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
    ):
        return StoreError(f"etcd refuses: {details}")
    return None


def _silence(urls: Sequence[str], causes: dict[str, str]) -> str:
    if any("no leader" in cause for cause in causes.values()):
        return (
            f"etcd at {', '.join(urls)} has no leader, which needs a majority of its members: "
            "start the managers that are down ('orc manager ls'); if they are lost for good, see "
            "'orc cluster recover'"
        )
    if len(set(causes.values())) == 1:
        return f"etcd at {', '.join(urls)} does not answer: {next(iter(causes.values()))}"
    return "no etcd answers: " + "; ".join(f"{url}: {cause}" for url, cause in causes.items())
