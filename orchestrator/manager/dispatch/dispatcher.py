# SPDX-License-Identifier: Apache-2.0
"""The manager's side of all agent sessions.

A session begins with the node's full set of assignments and continues with chained diffs
(`node_session`). Heartbeats stay in memory. Statuses go through the report buffer and are
acknowledged when they are committed.

Any manager serves sessions, whether it leads or not; `session_records` tells the others which it
has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import grpc

from orchestrator.daemon.background import background
from orchestrator.identity.tls import peer_address, peer_identity
from orchestrator.manager.cluster.version_skew import refusal_of_session
from orchestrator.manager.dispatch import rebalancing
from orchestrator.manager.dispatch.endpoint_delivery import DRAIN_TIMEOUT, EndpointFeed
from orchestrator.manager.dispatch.network_assignments import NetworkAssignments
from orchestrator.manager.dispatch.node_session import NodeSession
from orchestrator.manager.dispatch.secret_delivery import SecretDelivery
from orchestrator.manager.dispatch.session_records import SessionRecords
from orchestrator.manager.dispatch.tunnels import Tunnels
from orchestrator.manager.errors import unavailable
from orchestrator.manager.leader.agent_reports import Hello, NetworkPlugins, ReportBuffer
from orchestrator.manager.planning.plan import Change, earliest
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache, Feed, fold
from orchestrator.manager.store.kv import StoreError
from orchestrator.model.administration.access import Revocation
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.convert import from_proto
from orchestrator.model.documents import Document
from orchestrator.model.nodes import Node, NodeState, SessionRecord
from orchestrator.model.objects import Cluster, Image, Object
from orchestrator.model.services import Service
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2, dispatch_pb2_grpc
from orchestrator.tracing.spans import OFF, Tracer

log = logging.getLogger(__name__)

HEARTBEAT_PERIOD = 1.0
"""Seconds between two heartbeats of an agent; the default `node_timeout` is five of them."""

BROADCAST_INTERVAL = 0.002
"""Seconds per session between two broadcasts of endpoints and peers. A broadcast costs as much as
there are sessions, so in a large cluster each carries more changes."""

WAKE_BATCH, ADMISSION_BATCH = 25, 4
"""Sessions that are woken, and that get their full sets, before the event loop serves other
work."""

LARGEST_ORPHAN = 1 << 18
"""Bytes of an orphan's task that a node reports; a larger one is not stored."""

SESSION_TIMEOUT = 5.0
"""Seconds that a message waits for the session of a ready node."""


_CUT_OFF = "this manager cannot reach etcd"


class _SessionClosed(Exception):
    """The session is closed; the reason is its text."""


def serve(dispatcher: Dispatcher, server: grpc.aio.Server) -> None:
    """Register the dispatcher's gRPC service. Replies may already be encoded."""
    handlers = {
        "Session": grpc.stream_stream_rpc_method_handler(
            dispatcher.Session,
            request_deserializer=dispatch_pb2.AgentMessage.FromString,
            response_serializer=_encoded,
        ),
        "Tunnel": grpc.stream_stream_rpc_method_handler(
            dispatcher.Tunnel,
            request_deserializer=dispatch_pb2.Frame.FromString,
            response_serializer=dispatch_pb2.Frame.SerializeToString,
        ),
    }
    name = dispatch_pb2.DESCRIPTOR.services_by_name["Dispatch"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


def _encoded(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())


def concerned(view: ClusterView, changes: Iterable[Change]) -> set[str] | None:
    """Ids of the nodes whose assignments the changes affect, endpoints and peers aside; None:
    all."""
    nodes: set[str] = set()
    for change in changes:
        match change.subject:
            case Task():
                for task in (change.before, change.after):
                    if isinstance(task, Task) and task.node_id:
                        nodes.add(task.node_id)
            case Node() as node:
                nodes.add(node.id)
            case Orphan() as orphan:
                nodes.add(orphan.node_id)
            case Service() as service:
                if _disconnects(change.before) != _disconnects(change.after):
                    nodes |= {task.node_id for task in view.tasks_of_service(service.id).values()}
            case Document() | Cluster() | Revocation():
                return None
            case _:
                pass
    return nodes


def _disconnects(service: Object | None) -> object:
    return service.spec.on_disconnect if isinstance(service, Service) else None


class Dispatcher(dispatch_pb2_grpc.DispatchServicer):  # type: ignore[misc]
    """Serves agents."""

    def __init__(
        self,
        cache: Cache,
        report_buffer: ReportBuffer,
        tunnels: Tunnels,
        payloads: SecretDelivery,
        records: SessionRecords,
        managers: Callable[[], list[str]],
        new_id: Callable[[], str],
        rng: Random,
        tracer: Tracer = OFF,
    ) -> None:
        self._cache = cache
        self._report_buffer = report_buffer
        self._tunnels = tunnels
        self._payloads = payloads
        self._records = records
        records.on_moved = self._moved
        records.on_lease_lost = self._cut_off
        records.on_unwritten = self._unwritten
        records.on_written = self._recorded
        self._managers = managers
        self._new_id = new_id
        self._random = rng
        self._tracer = tracer
        self._sessions: dict[str, NodeSession] = {}
        self._refused: set[str] = set()
        """Nodes whose agent has a version that this manager does not work with."""
        self._ended_for: set[str] = set()
        """Serial numbers of the certificates for which `end_outdated` has ended a session."""
        self._arrival = asyncio.Event()
        """Set when the next session begins."""
        self._networks = NetworkAssignments()
        self._admission = asyncio.Semaphore(ADMISSION_BATCH)
        self._endpoints = self._new_feed()

    def _new_feed(self) -> EndpointFeed:
        return EndpointFeed(
            self._cache.view,
            time.monotonic,
            DRAIN_TIMEOUT,
            self._cache.revision,
            self._records.manager_id,
            self._records.publish_progress,
        )

    def _announce_arrival(self) -> None:
        self._arrival.set()
        self._arrival = asyncio.Event()

    def _moved(self, node_id: str, session_id: str) -> None:
        """A newer session of the node began at another manager."""
        self._report_buffer.drop(node_id)
        session = self._sessions.get(node_id)
        if session is not None and session.id == session_id:
            session.end("a newer session of this node began at another manager")

    def _cut_off(self) -> None:
        """This manager cannot reach etcd: leave its sessions to managers that can."""
        if self._has_others():
            self._end_all(_CUT_OFF)

    def _unwritten(self, node_id: str, session_id: str) -> None:
        """The record of a session cannot be written: leave it to another manager."""
        session = self._sessions.get(node_id)
        if session is not None and session.id == session_id and self._has_others():
            session.end(_CUT_OFF)

    def _has_others(self) -> bool:
        """Whether the cluster has other managers."""
        managers = self._cache.view.managers.values()
        return sum(not manager.joining for manager in managers) > 1

    def _recorded(self, node_id: str, session_id: str) -> None:
        """The record of a session has been written: it may get its assignments."""
        session = self._sessions.get(node_id)
        if session is not None and session.id == session_id:
            session.wake.set()

    def _end_all(self, reason: str) -> None:
        for session in self._sessions.values():
            session.end(reason)

    @property
    def sessions(self) -> int:
        """Number of agents in session."""
        return len(self._sessions)

    @property
    def waiting(self) -> int:
        """Number of messages to agents that are not sent yet."""
        return sum(session.waiting for session in self._sessions.values())

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow the cache while the body runs, and wake sessions at changes. All sessions close
        with it."""
        async with self._cache.subscribe() as feed:
            self._endpoints = self._new_feed()
            try:
                async with background(self._follow(feed)), background(self._rebalance()):
                    yield
            finally:
                self._end_all("this manager is stopping")

    async def _follow(self, feed: Feed) -> None:
        endpoints, loop = self._endpoints, asyncio.get_running_loop()
        waiting: dict[str, Change] = {}
        """Changes that the endpoint table has not processed."""
        told = (endpoints.revision, self._networks.revision)
        due = loop.time()
        while True:
            changes: list[Change] = []
            moment = earliest(endpoints.deadline, due if waiting else None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(moment):
                    changes = await feed.next()
            view = self._cache.view
            self._records.changed(changes)
            if any(isinstance(change.after, SessionRecord) for change in changes):
                self._announce_arrival()
            self._order_image_removals(changes)
            self._close_sessions(changes)
            nodes = concerned(view, changes)
            await self._wake(self._sessions if nodes is None else nodes)
            fold(waiting, changes)
            late = endpoints.deadline is not None and endpoints.deadline <= loop.time()
            if loop.time() < due and not late:
                continue
            if endpoints.update(view, waiting.values(), self._cache.revision):
                self._release()
            waiting = {}
            # Sessions bring the endpoint table up to date, too.
            self._networks.follow(self._cache.view)
            if told != (told := (endpoints.revision, self._networks.revision)):
                await self._wake(self._sessions)
                due = loop.time() + BROADCAST_INTERVAL * len(self._sessions)

    async def _wake(self, nodes: Iterable[str]) -> None:
        """Wake sessions, a few at a time, so that other work is served in between."""
        for number, node_id in enumerate(list(nodes), 1):
            if (session := self._sessions.get(node_id)) is not None:
                session.wake.set()
            if number % WAKE_BATCH == 0:
                await asyncio.sleep(0)

    def _release(self) -> None:
        """Wake the sessions whose stop orders waited until other nodes followed the endpoints."""
        for session in self._sessions.values():
            if session.withholds_stops:
                session.wake.set()

    def _order_image_removals(self, changes: list[Change]) -> None:
        for change in changes:
            for node_id in change.after.pending_removal if isinstance(change.after, Image) else ():
                if node_id in self._sessions:
                    self._sessions[node_id].order_image_removal()

    def _close_sessions(self, changes: list[Change]) -> None:
        """Close the sessions of nodes that are down or removed. A node that was only silent
        reconnects."""
        for change in changes:
            node = change.after
            if isinstance(node, Node) and node.state is NodeState.DOWN:
                self.end(node.id, "the node was silent for too long")
            elif isinstance(change.before, Node) and node is None:
                self.end(change.before.id, "this node was removed from the cluster")

    async def _rebalance(self) -> None:
        """Hand sessions over to managers that have fewer, until cancelled. Sessions with streams
        stay: these would break."""
        rebalancer = rebalancing.Rebalancer(self._records.manager_id)
        while True:
            await asyncio.sleep(rebalancing.INTERVAL * self._random.uniform(0.5, 1.5))
            wanted = rebalancer.handover(self._cache.view, time.monotonic())
            if wanted is None:
                continue
            free = [id for id in self._sessions if self.is_local(id) and not self._tunnels.of(id)]
            for node_id in self._random.sample(free, min(wanted.count, len(free))):
                self._sessions[node_id].redirect(wanted.address)

    async def locate(self, node_id: str, tried: Container[str] = ()) -> SessionRecord | None:
        """The record of the node's session with another manager, unless it (by id) was tried; None
        if this one has the session, or none. If a ready node has no session, because its agent or a
        manager has just started, wait for one."""

        def found() -> SessionRecord | None:
            record = self._records.elsewhere(node_id)
            return record if record is not None and record.session_id not in tried else None

        if self._ready(node_id):
            with suppress(TimeoutError):
                async with asyncio.timeout(SESSION_TIMEOUT):
                    while not (self.is_local(node_id) or found()):
                        await self._arrival.wait()
        return None if self.is_local(node_id) else found()

    async def deliver(self, node_id: str, message: Any) -> None:
        """Send a `ManagerMessage` to a node in session with this manager. Raises RequestError
        without a session."""
        session = self._sessions.get(node_id)
        if session is None or session.redirected:
            node = self._cache.view.nodes.get(node_id)
            name = node.description.hostname if node else node_id
            raise unavailable(f"node {name} is not connected; see 'orc node ls'")
        session.push(message)

    async def session_of(self, node_id: str) -> None:
        """Wait until the node has a session with a manager."""
        while not self.connected(node_id):
            await self._arrival.wait()

    def connected(self, node_id: str) -> bool:
        """Whether the node has a session with a manager."""
        return node_id in self._sessions or self._records.elsewhere(node_id) is not None

    def is_local(self, node_id: str) -> bool:
        """Whether the node has a session with this manager, and was not redirected to another one:
        it would lose what it is sent after that."""
        session = self._sessions.get(node_id)
        return session is not None and not session.redirected

    def reachable_nodes(self, nodes: Iterable[str]) -> list[str]:
        """The nodes that have a session with a manager; if none has, those that are ready, since
        they are about to have one."""
        known = list(nodes)
        return [id for id in known if self.connected(id)] or [id for id in known if self._ready(id)]

    def _ready(self, node_id: str) -> bool:
        node = self._cache.view.nodes.get(node_id)
        return node is not None and node.state is NodeState.READY

    def end(self, node_id: str, reason: str) -> None:
        """Close the node's session, if it has one."""
        if (session := self._sessions.get(node_id)) is not None:
            session.end(reason)

    def end_outdated(self, signer: str, renewed: Mapping[str, str]) -> None:
        """Have nodes open their sessions anew, with certificates of the CA with this key id.
        `renewed` maps the serial numbers of such certificates to node ids.

        One session for each certificate: a node that returns without it never received it, and
        needs the session to renew again.
        """
        for serial in renewed.keys() - self._ended_for:
            session = self._sessions.get(renewed[serial])
            if session is not None and session.certificate_ca != signer:
                session.end("the node has a certificate of the new CA")
                self._ended_for.add(serial)
        self._ended_for &= renewed.keys()

    async def Session(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        identity = peer_identity(context)
        assert identity is not None  # guaranteed by the role guard
        node_id = identity.id
        if node_id not in self._cache.view.nodes:
            # Not the status of a revoked certificate, at which the node would stop its tasks:
            # removed nodes are refused before they get here.
            log.warning("session of an unknown node refused", extra={"node": node_id})
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the cluster has no node {node_id}: it was restored from an older backup? Run "
                "'orc cluster leave' and 'orc cluster join' on this host; its containers run on",
            )
        if not self._records.has_lease and self._has_others():
            await context.abort(grpc.StatusCode.UNAVAILABLE, _CUT_OFF)
        # Connecting is a sign of life, though it may take a while until the node's turn.
        if node_id not in self._refused:
            self._report_buffer.hear(node_id)
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("kind") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a session begins with a hello")
            return
        description = from_proto(first.hello.description)
        if reason := refusal_of_session(description.hostname[:64], description.version):
            # Its attempts are no sign of life: its tasks are to run elsewhere.
            self._refused.add(node_id)
            log.warning("session refused", extra={"node": node_id, "reason": reason})
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        self._refused.discard(node_id)
        session = NodeSession(
            node_id, self._networks, self._tracer, description.features, self._new_id()
        )
        if (older := self._sessions.get(node_id)) is not None:
            older.end("a newer session of this node began")
        self._sessions[node_id] = session
        session.certificate_ca = identity.certificate.ca if identity.certificate else ""
        self._records.begin(node_id, session.id, session.certificate_ca)
        self._announce_arrival()
        hello = Hello(description, first.hello.boot_id, peer_address(context))
        self._report_buffer.hello(node_id, hello)
        cluster = self._cache.view.cluster
        session.push(
            dispatch_pb2.ManagerMessage(
                welcome=dispatch_pb2.Welcome(
                    heartbeat_period=HEARTBEAT_PERIOD,
                    managers=self._managers(),
                    incarnation=cluster.incarnation if cluster else "",
                )
            )
        )
        log.info("session began", extra={"node": node_id, "peer": context.peer()})
        reason = "the agent closed it"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(session, requests))
                group.create_task(self._speak(session, context))
        except* _SessionClosed as ended:
            reason = str(ended.exceptions[0])
        finally:
            self._records.end(node_id, session.id)
            if self._sessions.get(node_id) is session:
                del self._sessions[node_id]
            log.info("session ended", extra={"node": node_id, "reason": reason})

    async def _listen(self, session: NodeSession, requests: AsyncIterator[Any]) -> None:
        node_id = session.node_id
        async for message in requests:
            self._report_buffer.hear(node_id)
            match message.WhichOneof("kind"):
                case "heartbeat":
                    session.heartbeat()
                case "endpoints_applied":
                    revision = message.endpoints_applied.revision
                    if self._endpoints.acknowledge(node_id, revision):
                        self._release()
                case "statuses":
                    self._take_statuses(session, message.statuses)
                case "images":
                    images = tuple(from_proto(image) for image in message.images.images)
                    self._report_buffer.inventory(node_id, images)
                case "volume_drivers":
                    self._report_buffer.volume_drivers(node_id, dict(message.volume_drivers.scopes))
                case "path_mtu":
                    self._report_buffer.path_mtu(node_id, message.path_mtu)
                case "trouble":
                    self._report_buffer.trouble(node_id, message.trouble)
                case "tunnel_keys":
                    keys = tuple(from_proto(key) for key in message.tunnel_keys.keys)
                    self._report_buffer.tunnel_keys(node_id, keys)
                case "network_plugins":
                    found = message.network_plugins
                    plugins = NetworkPlugins(
                        tuple(found.cni), dict(found.drivers), tuple(found.ipam)
                    )
                    self._report_buffer.network_plugins(node_id, plugins)
                case "orphans":
                    orphans = [
                        from_proto(task)
                        for task in message.orphans.orphans
                        if task.ByteSize() <= LARGEST_ORPHAN
                    ]
                    self._report_buffer.orphans(node_id, tuple(orphans))
        raise _SessionClosed("the agent closed it")

    def _take_statuses(self, session: NodeSession, report: Any) -> None:
        statuses = {id: from_proto(status) for id, status in report.statuses.items()}
        sequence = report.sequence

        def acknowledge() -> None:
            session.push(dispatch_pb2.ManagerMessage(ack=dispatch_pb2.StatusAck(sequence=sequence)))

        self._report_buffer.statuses(session.node_id, statuses, acknowledge)

    async def _speak(self, session: NodeSession, context: Any) -> None:
        # The welcome goes out at once: an agent that waits too long reconnects.
        await self._await_record(session, context)
        # Full sets are large. When all nodes connect at once, they take turns, and the manager's
        # other work goes on in between.
        async with self._admission:
            messages = session.messages(self._cache.view, self._endpoints)
            await asyncio.sleep(0)
        while not session.ended:
            for message in messages:
                if message.HasField("payload"):
                    await self._fill(message.payload)
                shared = message.HasField("endpoints")
                await context.write(self._endpoints.encoded(message) if shared else message)
            await session.wake.wait()
            session.wake.clear()
            messages = session.messages(self._cache.view, self._endpoints)
        raise _SessionClosed(session.ended)

    async def _await_record(self, session: NodeSession, context: Any) -> None:
        """Send what is queued, and wait until the cache has all up to the record of the session.

        This manager may be cut off from the store, and its view older than what the agent was sent
        by another one: a task that is not in it yet would be stopped. All that was sent before is
        older than the record."""
        while True:
            for message in session.queued():
                await context.write(message)
            if session.ended:
                raise _SessionClosed(session.ended)
            if revision := self._records.written(session.node_id, session.id):
                await self._cache.wait_for(revision)
                return
            await session.wake.wait()
            session.wake.clear()

    async def _fill(self, payload: Any) -> None:
        try:
            await self._payloads.fill(payload)
        except StoreError as error:
            raise _SessionClosed(f"etcd is unavailable: {error}") from error

    async def Tunnel(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        identity = peer_identity(context)
        assert identity is not None  # guaranteed by the role guard
        metadata = dict(context.invocation_metadata() or ())
        tunnel = self._tunnels.find(str(metadata.get("orc-tunnel", "")), identity.id)
        if tunnel is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no call waits for this tunnel any more")
            return
        await tunnel.carry(request_iterator, context)
