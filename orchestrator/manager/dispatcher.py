"""The leader's end of every agent's session.

A session begins with the node's whole set of assignments and goes on with diffs that chain; what
was sent is compared with the cache, so a missed wake-up costs nothing. Heartbeats stay in memory.
Statuses go through the inbox and are acknowledged when they are in the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc

from orchestrator.identity.tls import peer_identity
from orchestrator.manager.endpoints import LEAVE_LIMIT, EndpointFeed, held_back
from orchestrator.manager.inbox import Inbox, NetworkPlugins
from orchestrator.manager.lookup import images_of
from orchestrator.manager.networkorders import NetworkOrders
from orchestrator.manager.payloads import Payloads, files_of, keys_of, payloads_of
from orchestrator.manager.planning.assignments import assigned_tasks
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.planning.volumes import name_on, named_volumes
from orchestrator.manager.refusal import unavailable
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.kv import StoreError
from orchestrator.manager.tunnels import Tunnels
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.generic import with_generic
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Image
from orchestrator.model.placement import DisconnectAction
from orchestrator.model.specs import NetworkAttachment
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.templates import filled
from orchestrator.pb import dispatch_pb2, dispatch_pb2_grpc
from orchestrator.web.scrape import digest

log = logging.getLogger(__name__)

HEARTBEAT_PERIOD = 1.0
"""Seconds between two heartbeats of an agent; `node_timeout` is five of them by default."""


class _Ended(Exception):
    """The session is over; the reason is its text."""


_Order = tuple[
    TaskState, int, int, str, float, tuple[NetworkAttachment, ...], tuple[str, ...], float
]


def _order(view: ClusterView, task: Task) -> _Order:
    """What of a task its node acts on: when this changes, it is sent again."""
    return (
        task.desired_state,
        task.run,
        task.status.run if task.status.state >= TaskState.ASSIGNED else 0,
        task.stop_signal,
        task.stop_grace,
        task.spec.networks,
        keys_of(view, task),
        _stop_after(view, task),
    )


class NodeSession:
    """One agent's session: what it was sent, and what it is yet to be told."""

    def __init__(self, node_id: str, networks: NetworkOrders) -> None:
        self.node_id = node_id
        self._networks = networks
        self.ended = ""
        self._messages: deque[Any] = deque()
        self._sent: dict[str, _Order] = {}
        self._sent_networks: list[Any] | None = None
        self._sent_payloads: frozenset[str] = frozenset()
        """Keys of the data that the node has: of the tasks that it was sent."""
        self._sequence = 0
        self._looked_at: ClusterView | None = None
        self._endpoints = 0
        """The revision of the endpoint table that it was sent."""
        self._holding = False
        """An order is yet to be told: its task must first leave names and balance everywhere."""
        self._scrape_token = ""
        """The token whose digest it was told."""
        self._condemning = True
        """Images may have been removed that the node has, and was not told of."""
        self.wake = asyncio.Event()

    def push(self, message: Any) -> None:
        """Queue a `ManagerMessage` that is not an assignment."""
        self._messages.append(message)
        self.wake.set()

    def condemn(self) -> None:
        """Tell the node of images that it is to remove."""
        self._condemning = True

    def end(self, reason: str) -> None:
        """Make the session end."""
        self.ended = self.ended or reason
        self.wake.set()

    def messages(self, view: ClusterView, endpoints: EndpointFeed) -> list[Any]:
        """Everything to send now: queued messages, then what changed in the endpoints, then in
        the assignments."""
        out = list(self._messages)
        self._messages.clear()
        news, self._endpoints = endpoints.since(self._endpoints)
        out += news
        token = view.cluster.scrape_token if view.cluster else ""
        if token != self._scrape_token:
            self._scrape_token = token
            access = dispatch_pb2.ScrapeAccess(token_digest=digest(token))
            out.append(dispatch_pb2.ManagerMessage(scrape=access))
        if self._condemning:
            self._condemning = False
            if images := _condemned(view, self.node_id):
                order = dispatch_pb2.RemoveImages(images=images)
                out.append(dispatch_pb2.ManagerMessage(remove_images=order))
        if view is not self._looked_at or self._holding:
            assignments = self._difference(view, endpoints)
            if assignments is not None:
                out += self._new_payloads(view)
                out.append(dispatch_pb2.ManagerMessage(assignments=assignments))
            self._looked_at = view
        return out

    def _difference(self, view: ClusterView, endpoints: EndpointFeed) -> Any | None:
        full = self._sequence == 0
        wanted = assigned_tasks(view, self.node_id)
        held = [task for task in wanted.values() if endpoints.holds(task)]
        wanted |= {task.id: held_back(task) for task in held}
        self._holding = bool(held)
        orders = {task.id: _order(view, task) for task in wanted.values()}
        added = [task for id, task in wanted.items() if self._sent.get(id) != orders[id]]
        removed = sorted(self._sent.keys() - wanted.keys())
        networks = self._networks.of(view, self.node_id)
        networks_changed = networks != self._sent_networks
        if not (full or added or removed or networks_changed):
            return None
        for task in added:
            self._sent[task.id] = orders[task.id]
        for task_id in removed:
            del self._sent[task_id]
        self._sent_networks = networks
        self._sequence += 1
        return dispatch_pb2.Assignments(
            full=full,
            applies_to=self._sequence - 1,
            results_in=self._sequence,
            tasks=[
                dispatch_pb2.AssignedTask(
                    task=to_proto(_filled_in(view, task)),
                    image_sources=_sources(view, task),
                    volumes=_volumes(view, task),
                    files=files_of(view, task),
                    stop_after=_stop_after(view, task),
                )
                for task in added
            ],
            removed_tasks=removed,
            networks=networks if networks_changed or full else [],
        )

    def _new_payloads(self, view: ClusterView) -> list[Any]:
        """The data that the node needs and has not been sent, yet to be filled in."""
        wanted = {
            payload.key: payload
            for task in view.tasks_of_node(self.node_id).values()
            if task.id in self._sent
            for payload in payloads_of(view, task)
        }
        new = [wanted[key] for key in sorted(wanted.keys() - self._sent_payloads)]
        self._sent_payloads = frozenset(wanted)
        return [dispatch_pb2.ManagerMessage(payload=payload) for payload in new]


def _filled_in(view: ClusterView, task: Task) -> Task:
    """The task as its node is to make it: what its spec says of task and node has its values."""
    service, node = view.services.get(task.service_id), view.nodes.get(task.node_id)
    container = task.spec.container
    if service is not None and node is not None:
        container = filled(container, task, service, node)
    container = with_generic(container, task.generic_resources)
    if container is task.spec.container:
        return task
    return replace(task, spec=replace(task.spec, container=container))


def _stop_after(view: ClusterView, task: Task) -> float:
    """Seconds without a manager after which the node stops the task; 0: never."""
    service = view.services.get(task.service_id)
    if service is None or service.spec.on_disconnect.action is not DisconnectAction.STOP:
        return 0.0
    return service.spec.on_disconnect.after


def _condemned(view: ClusterView, node_id: str) -> list[str]:
    return sorted(image.id for image in view.images.values() if node_id in image.condemned)


def _sources(view: ClusterView, task: Task) -> list[str]:
    images = images_of(view, task.image_digest) if task.image_digest else []
    found = []
    for node_id in sorted({node for image in images for node in image.nodes}):
        node = view.nodes.get(node_id)
        if node and node_id != task.node_id and node.state is NodeState.READY:
            found.append(f"{node.description.address}:{node.description.blob_port}")
    return found


def _volumes(view: ClusterView, task: Task) -> list[Any]:
    node = view.nodes.get(task.node_id)
    names = {name_on(mount, node) for mount in named_volumes(task)} if node else set()
    return [to_proto(view.volumes[name]) for name in sorted(names) if name in view.volumes]


class Dispatcher(dispatch_pb2_grpc.DispatchServicer):  # type: ignore[misc]
    """Serves agents. Sessions are taken only while `leading`; else the agent is sent on."""

    def __init__(
        self,
        cache: Cache,
        inbox: Inbox,
        tunnels: Tunnels,
        payloads: Payloads,
        leader_address: Callable[[], str],
        managers: Callable[[], list[str]],
    ) -> None:
        self._cache = cache
        self._inbox = inbox
        self._tunnels = tunnels
        self._payloads = payloads
        self._leader_address = leader_address
        self._managers = managers
        self._sessions: dict[str, NodeSession] = {}
        self._networks = NetworkOrders()
        self._endpoints: EndpointFeed | None = None
        """Only while this manager leads."""

    @property
    def leading(self) -> bool:
        """Whether sessions are taken."""
        return self._endpoints is not None

    @property
    def sessions(self) -> int:
        """How many agents are in session."""
        return len(self._sessions)

    async def run(self) -> None:
        """Lead: take sessions, and wake them at each change. Ends them all when cancelled."""
        try:
            async with self._cache.subscribe() as feed:
                endpoints = EndpointFeed(
                    self._cache.view, asyncio.get_running_loop().time, LEAVE_LIMIT
                )
                self._endpoints = endpoints
                while True:
                    changes: list[Change] = []
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(endpoints.deadline):
                            changes = await feed.next()
                    endpoints.update(self._cache.view, changes)
                    self._condemn(changes)
                    self._part(changes)
                    self._wake_sessions()
        finally:
            self._endpoints = None
            for session in self._sessions.values():
                session.end("this manager leads no longer")

    def _condemn(self, changes: list[Change]) -> None:
        for change in changes:
            for node_id in change.after.condemned if isinstance(change.after, Image) else ():
                if node_id in self._sessions:
                    self._sessions[node_id].condemn()

    def _part(self, changes: list[Change]) -> None:
        """End the sessions of nodes that are down. One that was merely silent says hello again."""
        for change in changes:
            node = change.after
            if isinstance(node, Node) and node.state is NodeState.DOWN:
                self.end(node.id, "the node was silent for too long")

    def _wake_sessions(self) -> None:
        for session in self._sessions.values():
            session.wake.set()

    def push(self, node_id: str, message: Any) -> None:
        """Send a `ManagerMessage` to a node. Raises Refusal when it has no session."""
        session = self._sessions.get(node_id)
        if session is None:
            node = self._cache.view.nodes.get(node_id)
            name = node.description.hostname if node else node_id
            raise unavailable(f"node {name} is not connected; see 'orc node ls'")
        session.push(message)

    def connected(self, node_id: str) -> bool:
        """Whether the node has a session here."""
        return node_id in self._sessions

    def end(self, node_id: str, reason: str) -> None:
        """End the node's session, if it has one."""
        if (session := self._sessions.get(node_id)) is not None:
            session.end(reason)

    async def Session(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        identity = peer_identity(context)
        assert identity is not None  # the role guard saw to it
        if not self.leading:
            leader = self._leader_address()
            await context.write(
                dispatch_pb2.ManagerMessage(redirect=dispatch_pb2.Redirect(leader=leader))
            )
            return
        node_id = identity.id
        if node_id not in self._cache.view.nodes:
            log.warning("session of a removed node refused", extra={"node": node_id})
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "this node was removed from the cluster; remove its data folder and join anew",
            )
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("kind") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a session begins with a hello")
            return
        session = NodeSession(node_id, self._networks)
        if (older := self._sessions.get(node_id)) is not None:
            older.end("a newer session of this node began")
        self._sessions[node_id] = session
        self._inbox.hello(node_id, from_proto(first.hello.description), first.hello.boot_id)
        session.push(
            dispatch_pb2.ManagerMessage(
                welcome=dispatch_pb2.Welcome(
                    heartbeat_period=HEARTBEAT_PERIOD, managers=self._managers()
                )
            )
        )
        log.info("session began", extra={"node": node_id, "peer": context.peer()})
        reason = "the agent closed it"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(session, requests))
                group.create_task(self._speak(session, context))
        except* _Ended as ended:
            reason = str(ended.exceptions[0])
        finally:
            if self._sessions.get(node_id) is session:
                del self._sessions[node_id]
            log.info("session ended", extra={"node": node_id, "reason": reason})

    async def _listen(self, session: NodeSession, requests: AsyncIterator[Any]) -> None:
        node_id = session.node_id
        async for message in requests:
            match message.WhichOneof("kind"):
                case "endpoints_applied":
                    self._inbox.hear(node_id)
                    revision = message.endpoints_applied.revision
                    if self._endpoints and self._endpoints.acknowledge(node_id, revision):
                        self._wake_sessions()
                case "heartbeat":
                    self._inbox.hear(node_id)
                case "statuses":
                    self._take_statuses(session, message.statuses)
                case "images":
                    images = tuple(from_proto(image) for image in message.images.images)
                    self._inbox.inventory(node_id, images)
                case "volume_drivers":
                    self._inbox.volume_drivers(node_id, dict(message.volume_drivers.scopes))
                case "path_mtu":
                    self._inbox.path_mtu(node_id, message.path_mtu)
                case "trouble":
                    self._inbox.trouble(node_id, message.trouble)
                case "tunnel_keys":
                    keys = tuple(from_proto(key) for key in message.tunnel_keys.keys)
                    self._inbox.tunnel_keys(node_id, keys)
                case "network_plugins":
                    found = message.network_plugins
                    plugins = NetworkPlugins(
                        tuple(found.cni), dict(found.drivers), tuple(found.ipam)
                    )
                    self._inbox.network_plugins(node_id, plugins)
        raise _Ended("the agent closed it")

    def _take_statuses(self, session: NodeSession, report: Any) -> None:
        statuses = {id: from_proto(status) for id, status in report.statuses.items()}
        sequence = report.sequence

        def acknowledge() -> None:
            session.push(dispatch_pb2.ManagerMessage(ack=dispatch_pb2.StatusAck(sequence=sequence)))

        self._inbox.statuses(session.node_id, statuses, acknowledge)

    async def _speak(self, session: NodeSession, context: Any) -> None:
        while not session.ended and self._endpoints is not None:
            session.wake.clear()
            for message in session.messages(self._cache.view, self._endpoints):
                if message.HasField("payload"):
                    await self._fill(message.payload)
                await context.write(message)
            await session.wake.wait()
        raise _Ended(session.ended)

    async def _fill(self, payload: Any) -> None:
        try:
            await self._payloads.fill(payload)
        except StoreError as error:
            raise _Ended(f"the store is away: {error}") from error

    async def Tunnel(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        identity = peer_identity(context)
        assert identity is not None  # the role guard saw to it
        metadata = dict(context.invocation_metadata() or ())
        tunnel = self._tunnels.find(str(metadata.get("orc-tunnel", "")), identity.id)
        if tunnel is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "nobody waits for this tunnel any more")
            return
        await tunnel.carry(request_iterator, context)
