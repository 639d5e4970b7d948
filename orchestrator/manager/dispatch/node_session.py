# SPDX-License-Identifier: Apache-2.0
"""One agent's session: what its node was sent, and what is yet to be sent.

What a node acts on of a task is its `_TaskAssignment`; a task is sent again when that changes. What
was sent is compared with the desired state, so a missed wake-up costs only time.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from orchestrator.identity.certificates import own_key_id
from orchestrator.manager.dispatch.endpoint_delivery import EndpointFeed, without_stop_order
from orchestrator.manager.dispatch.network_assignments import NetworkAssignments, SentNetworks
from orchestrator.manager.dispatch.secret_delivery import files_of, keys_of, payloads_of
from orchestrator.manager.object_lookup import images_of
from orchestrator.manager.planning.scheduling.volume_placement import name_on, named_volumes
from orchestrator.manager.planning.task_filling import filled_in
from orchestrator.manager.planning.view import ClusterView, is_assigned
from orchestrator.manager.telemetry.task_traces import trace_context_of
from orchestrator.model.administration.access import Revocation
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.compatibility.agent_features import NETWORK_CHANGES
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.placement import DisconnectAction
from orchestrator.model.specs import NetworkAttachment
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2
from orchestrator.tracing.spans import OFF, Tracer
from orchestrator.web.scrape import digest

MOST_SOURCES = 16
"""Image sources that an assignment lists at most."""


class _TaskAssignment(NamedTuple):
    """The part of a task that its node acts on: a change of it is sent to the node."""

    desired_state: TaskState
    run: int
    """The desired run."""
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


REMINDER_INTERVAL = 10
"""Heartbeats between two orders to remove the same images, while the node still reports them."""


class NodeSession:
    """One agent's session. Its cost is proportional to what has changed: views share unchanged
    objects, so the node's tasks are compared by identity, and messages are built only for new
    ones."""

    def __init__(
        self,
        node_id: str,
        networks: NetworkAssignments,
        tracer: Tracer = OFF,
        features: Collection[str] = (),
        id: str = "",
    ) -> None:
        """`features` are the agent's, see `NodeDescription`."""
        self.node_id = node_id
        self.id = id
        self._networks = networks
        self._tracer = tracer
        self._takes_changes = NETWORK_CHANGES in features
        self.ended = ""
        self.redirected = False
        """Whether the node was told to continue with another manager."""
        self._messages: deque[Any] = deque()
        self._sent: dict[str, _TaskAssignment] = {}
        self._sent_networks: list[Any] | None = None
        """The complete list, for an agent that takes no deltas."""
        self._delta_networks = SentNetworks()
        """For an agent that takes deltas."""
        self._sent_payloads: frozenset[str] = frozenset()
        """Keys of the data that the node has, for the tasks that it was sent."""
        self._sequence = 0
        self._looked_at = ClusterView()
        self._withheld: set[str] = set()
        """Ids of the tasks whose stop order is withheld until other nodes have withdrawn their
        endpoints."""
        self._endpoints = 0
        """The revision of the endpoint table that it was sent."""
        self._scrape_token = ""
        """The scrape token whose digest it was sent."""
        self._container_access: tuple[str, ...] | None = None
        """The access for containers that it was sent; None before."""
        self._orphan_removal: Any | None = None
        """As sent to the node; None before."""
        self._orphans: tuple[Node | None, Mapping[str, Orphan]] = (None, {})
        """What it was computed from."""
        self.certificate_ca = ""
        """Key id of the CA that issued the certificate with which the session was opened."""
        self._trust = ""
        self._sent_revocations: Mapping[str, Revocation] = {}
        """As sent to the node."""
        self._revocations_sent = False
        """Whether any were sent in this session."""
        self._condemning = True
        """Whether images may have been removed that the node has and was not told to remove."""
        self._lingering = False
        """Whether the node was told to remove images that it still reports."""
        self._heartbeats = 0
        self.wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Number of messages that are not sent yet."""
        return len(self._messages)

    @property
    def withholds_stops(self) -> bool:
        """Whether any stop order is withheld until other nodes follow the endpoint table."""
        return bool(self._withheld)

    def push(self, message: Any) -> None:
        """Queue a `ManagerMessage` that is not an assignment."""
        self._messages.append(message)
        self.wake.set()

    def redirect(self, address: str) -> None:
        """Have the node continue with the manager at `address`."""
        self.redirected = True
        redirect = dispatch_pb2.Redirect(leader=address)
        self.push(dispatch_pb2.ManagerMessage(redirect=redirect))

    def order_image_removal(self) -> None:
        """Have the node remove images that were removed from the cluster."""
        self._condemning = True
        self.wake.set()

    def heartbeat(self) -> None:
        """Process a heartbeat. A node keeps images that a container uses, so at every
        `REMINDER_INTERVAL`th heartbeat the order to remove them is repeated."""
        self._heartbeats += 1
        if self._lingering and self._heartbeats % REMINDER_INTERVAL == 0:
            self.order_image_removal()

    def end(self, reason: str) -> None:
        """Close the session."""
        self.ended = self.ended or reason
        self.wake.set()

    def queued(self) -> list[Any]:
        """The queued messages, which depend on nothing else."""
        out = list(self._messages)
        self._messages.clear()
        return out

    def messages(self, view: ClusterView, endpoints: EndpointFeed) -> list[Any]:
        """Everything to send now: queued messages, then changes of endpoints, then of
        assignments."""
        out = self.queued()
        changes, self._endpoints = endpoints.since(self._endpoints)
        out += changes
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
        trust = view.cluster.trusted_cas if view.cluster else ""
        if trust != self._trust:
            self._trust = trust
            cas = dispatch_pb2.Trust(ca_certificates=trust, signer=own_key_id(trust))
            out.append(dispatch_pb2.ManagerMessage(trust=cas))
        out += self._orphan_removals(view)
        if (revoked := self._revocation_changes(view)) is not None:
            out.append(dispatch_pb2.ManagerMessage(revocations=revoked))
        if self._condemning:
            self._condemning = False
            images = _images_to_remove(view, self.node_id)
            self._lingering = bool(images)
            if images:
                order = dispatch_pb2.RemoveImages(images=images)
                out.append(dispatch_pb2.ManagerMessage(remove_images=order))
        if view is not self._looked_at or self._withheld:
            assignments = self._difference(view, endpoints)
            if assignments is not None:
                out += self._new_payloads(view)
                out.append(dispatch_pb2.ManagerMessage(assignments=assignments))
            self._looked_at = view
        return out

    def _orphan_removals(self, view: ClusterView) -> list[Any]:
        """Which orphans the node is to remove, if that has changed."""
        node, (known, orphans) = view.nodes.get(self.node_id), self._orphans
        if node is None or (node is known and view.orphans is orphans):
            return []
        self._orphans = node, view.orphans
        removal = dispatch_pb2.OrphanRemoval(
            times=node.orphan_removals,
            tasks=sorted(
                each.id
                for each in view.orphans.values()
                if each.removing and each.node_id == node.id
            ),
        )
        if removal == self._orphan_removal:
            return []
        self._orphan_removal = removal
        return [dispatch_pb2.ManagerMessage(orphan_removal=removal)]

    def _revocation_changes(self, view: ClusterView) -> Any | None:
        """The revoked certificates that are new; None without any."""
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
        """Ids of the tasks whose assignment may have changed since the last call."""
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
        return changed | self._withheld

    def _difference(self, view: ClusterView, endpoints: EndpointFeed) -> Any | None:
        added: list[Task] = []
        removed: list[str] = []
        for id in sorted(self._dirty(view)):
            self._withheld.discard(id)
            task = view.tasks.get(id)
            if task is None or not is_assigned(task, self.node_id):
                if self._sent.pop(id, None) is not None:
                    removed.append(id)
                continue
            if endpoints.holds(task):
                self._withheld.add(id)
                task = without_stop_order(task)
            order = _task_assignment(view, task)
            if self._sent.get(id) != order:
                self._sent[id] = order
                added.append(task)
        full = self._sequence == 0
        networks, changes, gone = self._network_changes(view, full)
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
                    task=to_proto(filled_in(view, task)),
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

    def _network_changes(
        self, view: ClusterView, full: bool
    ) -> tuple[list[Any], list[Any], list[str]]:
        """For an agent that takes no deltas: the complete list if it has changed. Otherwise the
        changes, and the ids of networks that the node no longer has."""
        if self._takes_changes:
            changes, gone = self._networks.changes(view, self.node_id, self._delta_networks)
            return [], changes, gone
        networks = self._networks.of(view, self.node_id)
        changed = networks != self._sent_networks
        self._sent_networks = networks
        return networks if changed or full else [], [], []

    def _new_payloads(self, view: ClusterView) -> list[Any]:
        """The data that the node needs and was not sent, without content."""
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


def _stop_after(view: ClusterView, task: Task) -> float:
    """Seconds without a manager after which the node stops the task; 0: never."""
    service = view.services.get(task.service_id)
    if service is None or service.spec.on_disconnect.action is not DisconnectAction.STOP:
        return 0.0
    return service.spec.on_disconnect.after


def _images_to_remove(view: ClusterView, node_id: str) -> list[str]:
    return sorted(image.id for image in view.images.values() if node_id in image.pending_removal)


def _sources(view: ClusterView, task: Task) -> list[str]:
    """HOST:PORT of nodes that have the task's image; of many nodes some, varying by task."""
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
