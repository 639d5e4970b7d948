"""One agent's session: what its node was sent, and what it is yet to be told.

What a node acts on of a task is its `_Order`; a task whose order changed is sent again. What was
sent is compared with what is wanted, so a wake-up that was missed costs nothing but time.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from orchestrator.manager.dispatch.endpoint_delivery import EndpointFeed, held_back
from orchestrator.manager.dispatch.network_assignments import NetworkAssignments, SentNetworks
from orchestrator.manager.dispatch.secret_delivery import files_of, keys_of, payloads_of
from orchestrator.manager.object_lookup import images_of
from orchestrator.manager.planning.assignments import is_assigned
from orchestrator.manager.planning.scheduling.volume_placement import name_on, named_volumes
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.telemetry.task_traces import trace_context_of
from orchestrator.model.access import Revocation
from orchestrator.model.agent_features import NETWORK_CHANGES
from orchestrator.model.convert import to_proto
from orchestrator.model.formats.generic_resources import with_generic
from orchestrator.model.formats.task_templates import filled
from orchestrator.model.nodes import NodeState
from orchestrator.model.placement import DisconnectAction
from orchestrator.model.specs import NetworkAttachment
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2
from orchestrator.tracing.spans import OFF, Tracer
from orchestrator.web.scrape import digest

MOST_SOURCES = 16
"""The most image sources that an assignment lists."""


class _TaskAssignment(NamedTuple):
    """What of a task its node acts on: when this changes, it is sent again."""

    desired_state: TaskState
    run: int
    """The run that is wanted."""
    placed_run: int
    """The run that was placed on the node; 0: none yet."""
    stop_signal: str
    stop_grace: float
    networks: tuple[NetworkAttachment, ...]
    payloads: tuple[str, ...]
    """Keys of the data of its secrets and configs."""
    stop_after: float


def _task_assignment(view: ClusterView, task: Task) -> _TaskAssignment:
    return _TaskAssignment(
        desired_state=task.desired_state,
        run=task.run,
        placed_run=task.status.run if task.status.state >= TaskState.ASSIGNED else 0,
        stop_signal=task.stop_signal,
        stop_grace=task.stop_grace,
        networks=task.spec.networks,
        payloads=keys_of(view, task),
        stop_after=_stop_after(view, task),
    )


REMIND_AFTER = 10
"""Heartbeats between two orders to remove the same images, while the node still reports them."""


class NodeSession:
    """One agent's session: what it was sent, and what it is yet to be told.

    Looking costs what has changed: a view shares with the one before it whatever is as it was, so
    the node's tasks are compared by identity, and an order is made only of those that are new.
    """

    def __init__(
        self,
        node_id: str,
        networks: NetworkAssignments,
        tracer: Tracer = OFF,
        features: Collection[str] = (),
    ) -> None:
        """`features` are the agent's, see `NodeDescription`."""
        self.node_id = node_id
        self._networks = networks
        self._tracer = tracer
        self._takes_changes = NETWORK_CHANGES in features
        self.ended = ""
        self._messages: deque[Any] = deque()
        self._sent: dict[str, _TaskAssignment] = {}
        self._sent_networks: list[Any] | None = None
        """The complete list, of an agent that takes no changes of it."""
        self._told_networks = SentNetworks()
        """Of one that does."""
        self._sent_payloads: frozenset[str] = frozenset()
        """Keys of the data that the node has: of the tasks that it was sent."""
        self._sequence = 0
        self._looked_at = ClusterView()
        self._held: set[str] = set()
        """Ids of the tasks of which an order is yet to be told: each must first leave names and
        balance everywhere."""
        self._endpoints = 0
        """The revision of the endpoint table that it was sent."""
        self._scrape_token = ""
        """The token whose digest it was told."""
        self._container_access: tuple[str, ...] | None = None
        """What it was told to be open to containers; None before it was told."""
        self._sent_revocations: Mapping[str, Revocation] = {}
        """As the node was told of them."""
        self._revocations_sent = False
        """Whether it was told of any in this session."""
        self._condemning = True
        """Images may have been removed that the node has, and was not told of."""
        self._lingering = False
        """The node was told of such images, and has not reported that they are gone."""
        self._heartbeats = 0
        self.wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Words that are yet to be sent."""
        return len(self._messages)

    @property
    def holding(self) -> bool:
        """Whether an order waits for other nodes to follow the endpoint table."""
        return bool(self._held)

    def push(self, message: Any) -> None:
        """Queue a `ManagerMessage` that is not an assignment."""
        self._messages.append(message)
        self.wake.set()

    def condemn(self) -> None:
        """Tell the node of images that it is to remove."""
        self._condemning = True
        self.wake.set()

    def heartbeat(self) -> None:
        """The node sent one. It keeps images that a container uses, so every `REMIND_AFTER`th it is
        told again of those that it has still: the container may be gone."""
        self._heartbeats += 1
        if self._lingering and self._heartbeats % REMIND_AFTER == 0:
            self.condemn()

    def end(self, reason: str) -> None:
        """Make the session end."""
        self.ended = self.ended or reason
        self.wake.set()

    def queued(self) -> list[Any]:
        """The queued messages, which wait for nothing else."""
        out = list(self._messages)
        self._messages.clear()
        return out

    def messages(self, view: ClusterView, endpoints: EndpointFeed) -> list[Any]:
        """Everything to send now: queued messages, then what changed in the endpoints, then in
        the assignments."""
        out = self.queued()
        news, self._endpoints = endpoints.since(self._endpoints)
        out += news
        token = view.cluster.scrape_token if view.cluster else ""
        if token != self._scrape_token:
            self._scrape_token = token
            access = dispatch_pb2.ScrapeAccess(token_digest=digest(token))
            out.append(dispatch_pb2.ManagerMessage(scrape=access))
        open_ = view.cluster.container_access if view.cluster else ()
        if open_ != self._container_access:
            self._container_access = open_
            told = dispatch_pb2.ContainerAccess(open=open_)
            out.append(dispatch_pb2.ManagerMessage(container_access=told))
        if (revoked := self._revocation_changes(view)) is not None:
            out.append(dispatch_pb2.ManagerMessage(revocations=revoked))
        if self._condemning:
            self._condemning = False
            images = _condemned(view, self.node_id)
            self._lingering = bool(images)
            if images:
                order = dispatch_pb2.RemoveImages(images=images)
                out.append(dispatch_pb2.ManagerMessage(remove_images=order))
        if view is not self._looked_at or self._held:
            assignments = self._difference(view, endpoints)
            if assignments is not None:
                out += self._new_payloads(view)
                out.append(dispatch_pb2.ManagerMessage(assignments=assignments))
            self._looked_at = view
        return out

    def _revocation_changes(self, view: ClusterView) -> Any | None:
        """What is new of the revoked certificates; None for nothing."""
        known, now = self._sent_revocations, view.revocations
        if known is now:
            return None
        added = [each for id, each in sorted(now.items()) if known.get(id) is not each]
        removed = sorted(known.keys() - now.keys())
        full = not self._revocations_sent
        self._sent_revocations = now
        if not (added or removed):
            return None
        self._revocations_sent = True
        return dispatch_pb2.RevocationList(
            full=full, added=[to_proto(each) for each in added], removed=removed
        )

    def _dirty(self, view: ClusterView) -> Iterable[str]:
        """Ids of the tasks whose order may be another than when this was asked before."""
        seen = self._looked_at
        now, before = view.tasks_of_node(self.node_id), seen.tasks_of_node(self.node_id)
        if view.documents is not seen.documents:
            return now.keys() | before.keys()
        if now is before:
            changed: set[str] = set()
        else:
            changed = {id for id, task in now.items() if before.get(id) is not task}
            changed |= before.keys() - now.keys()
        if view.services is not seen.services:
            changed |= {
                id
                for id, task in now.items()
                if (order := self._sent.get(id)) and order.stop_after != _stop_after(view, task)
            }
        return changed | self._held

    def _difference(self, view: ClusterView, endpoints: EndpointFeed) -> Any | None:
        added: list[Task] = []
        removed: list[str] = []
        for id in sorted(self._dirty(view)):
            self._held.discard(id)
            task = view.tasks.get(id)
            if task is None or not is_assigned(task, self.node_id):
                if self._sent.pop(id, None) is not None:
                    removed.append(id)
                continue
            if endpoints.holds(task):
                self._held.add(id)
                task = held_back(task)
            order = _task_assignment(view, task)
            if self._sent.get(id) != order:
                self._sent[id] = order
                added.append(task)
        full = self._sequence == 0
        networks, changes, gone = self._network_news(view, full)
        if not (full or added or removed or networks or changes or gone):
            return None
        self._sequence += 1
        now = time.time() if self._tracer.on else 0.0
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
                    trace=trace_context_of(self._tracer, task),
                    sent_at=now,
                )
                for task in added
            ],
            removed_tasks=removed,
            networks=networks,
            network_changes=changes,
            removed_networks=gone,
        )

    def _network_news(
        self, view: ClusterView, full: bool
    ) -> tuple[list[Any], list[Any], list[str]]:
        """The complete list if it is another, for an agent that takes no changes; else what has
        changed, and the ids of networks that the node has no more."""
        if self._takes_changes:
            changes, gone = self._networks.changes(view, self.node_id, self._told_networks)
            return [], changes, gone
        networks = self._networks.of(view, self.node_id)
        changed = networks != self._sent_networks
        self._sent_networks = networks
        return networks if changed or full else [], [], []

    def _new_payloads(self, view: ClusterView) -> list[Any]:
        """The data that the node needs and has not been sent, yet to be filled in."""
        named = [id for id, order in self._sent.items() if order.payloads]
        if not named and not self._sent_payloads:
            return []
        wanted = {
            payload.key: payload
            for id in named
            if (task := view.tasks.get(id))
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
    """HOST:PORT of nodes that have the task's image: all, or of many some, others for each task."""
    images = images_of(view, task.image_digest) if task.image_digest else []
    nodes = [node for image in images for node in image.nodes]
    first = zlib.crc32(task.id.encode()) % len(nodes) if len(nodes) > MOST_SOURCES else 0
    found: set[str] = set()
    for node_id in nodes[first:] + nodes[:first]:
        node = view.nodes.get(node_id)
        if node and node_id != task.node_id and node.state is NodeState.READY:
            found.add(f"{node.description.address}:{node.description.blob_port}")
            if len(found) == MOST_SOURCES:
                break
    return sorted(found)


def _volumes(view: ClusterView, task: Task) -> list[Any]:
    node = view.nodes.get(task.node_id)
    names = {name_on(mount, node) for mount in named_volumes(task)} if node else set()
    return [to_proto(view.volumes[name]) for name in sorted(names) if name in view.volumes]
