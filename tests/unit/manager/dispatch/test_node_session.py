# SPDX-License-Identifier: Apache-2.0
"""Sessions that look only at what has changed are told all that they must be."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.manager.dispatch.dispatcher import concerned
from orchestrator.manager.dispatch.endpoint_delivery import EndpointFeed
from orchestrator.manager.dispatch.network_assignments import NetworkAssignments
from orchestrator.manager.dispatch.node_session import REMINDER_INTERVAL, NodeSession
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.documents import Document, FileReference
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Cluster, Image, Object
from orchestrator.model.placement import Disconnect, DisconnectAction
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

NODES = tuple(Node(id=f"n{number}", state=NodeState.READY) for number in range(4))
DB = Document(id="d1", name="db", version=1, kept=(1,))
STATES = (TaskState.PENDING, TaskState.ASSIGNED, TaskState.STARTING, TaskState.RUNNING)
ENDS = (TaskState.SHUTDOWN, TaskState.ORPHANED)


class Told:
    """A node's tasks by what its session was told."""

    def __init__(self, node_id: str) -> None:
        self.session = NodeSession(node_id, NetworkAssignments())
        self.tasks: dict[str, Any] = {}

    def look(self, view: ClusterView, feed: EndpointFeed) -> bool:
        """Whether it is sent anything."""
        sent = False
        for message in self.session.messages(view, feed):
            if message.HasField("assignments"):
                sent = True
                for each in message.assignments.tasks:
                    self.tasks[each.task.id] = each
                for task_id in message.assignments.removed_tasks:
                    del self.tasks[task_id]
        return sent

    def orders(self) -> dict[str, tuple[Any, ...]]:
        return {
            id: (
                each.task.desired_state,
                each.stop_after,
                [file.payload for file in each.files],
            )
            for id, each in self.tasks.items()
        }


def something(rng: random.Random, view: ClusterView, step: int) -> Change:
    match rng.randrange(8):
        case 0:
            before = view.services.get("web")
            action = rng.choice((DisconnectAction.STOP, DisconnectAction.REPLACE))
            spec = ServiceSpec(
                name="web", replicas=step, on_disconnect=Disconnect(action, float(rng.randrange(3)))
            )
            gone = before is not None and rng.random() < 0.2
            return Change(before, None if gone else Service(id="web", spec=spec))
        case 1:
            known = view.documents.get("d1")
            return Change(known, replace(DB, version=step + 1, kept=(1, step + 1)))
        case 2 if view.tasks:
            task = rng.choice(sorted(view.tasks.values(), key=lambda each: each.id))
            return Change(task, None)
        case 3 if view.tasks:
            task = rng.choice(sorted(view.tasks.values(), key=lambda each: each.id))
            return Change(task, replace(task, desired_state=TaskState.SHUTDOWN))
        case 4 if view.tasks:
            task = rng.choice(sorted(view.tasks.values(), key=lambda each: each.id))
            state = rng.choice(ENDS if rng.random() < 0.3 else STATES)
            return Change(task, replace(task, status=TaskStatus(state, at=float(step))))
        case _:
            secrets = (FileReference(source="db"),) if rng.random() < 0.5 else ()
            made = Task(
                id=f"t{step}",
                service_id="web" if rng.random() < 0.8 else "",
                node_id=rng.choice(NODES).id,
                spec=TaskSpec(container=ContainerSpec(image="web:1", secrets=secrets)),
                status=TaskStatus(TaskState.ASSIGNED),
            )
            return Change(None, made)


@pytest.mark.parametrize("seed", range(6))
def test_only_affected_sessions_send_changes(seed: int) -> None:
    rng = random.Random(seed)
    objects: list[Object] = [DB, *NODES]
    view = ClusterView.of(objects)
    feed = EndpointFeed(view, lambda: 0.0, 2.0)
    sessions = {node.id: Told(node.id) for node in NODES}
    for told in sessions.values():
        told.look(view, feed)
    for step in range(80):
        change = something(rng, view, step)
        view = view.evolve([change])
        feed.update(view, [change])
        nodes = concerned(view, [change])
        for node_id, told in sessions.items():
            woken = nodes is None or node_id in nodes or told.session.withholds_stops
            sent = told.look(view, feed)
            assert woken or not sent
            fresh = Told(node_id)
            fresh.look(view, feed)
            assert told.orders() == fresh.orders()


def test_container_access_is_sent_first_and_when_it_changes() -> None:
    first = ClusterView.of([*NODES, Cluster(id="c")])
    session = NodeSession("n0", NetworkAssignments())
    feed = EndpointFeed(first, lambda: 0.0, 1.0)

    def told(view: ClusterView) -> list[list[str]]:
        messages = session.messages(view, feed)
        return [list(m.container_access.open) for m in messages if m.HasField("container_access")]

    assert told(first) == [[]]
    assert told(first) == []
    opened = ClusterView.of([*NODES, Cluster(id="c", container_access=("metrics",))])
    assert told(opened) == [["metrics"]]
    assert told(first) == [[]]


def test_a_node_that_keeps_a_removed_image_is_reminded() -> None:
    """A container used it when it was told first, and has gone since."""
    kept = Image(id="sha256:1", nodes=("n0",), pending_removal=("n0",))
    view = ClusterView.of([*NODES, kept])
    feed = EndpointFeed(view, lambda: 0.0, 1.0)
    session = NodeSession("n0", NetworkAssignments())

    def told(view: ClusterView) -> list[str]:
        messages = session.messages(view, feed)
        return [image for each in messages for image in each.remove_images.images]

    def a_while() -> None:
        for _ in range(REMINDER_INTERVAL):
            session.heartbeat()

    assert told(view) == ["sha256:1"]
    assert told(view) == []
    a_while()
    assert told(view) == ["sha256:1"]
    # It reports that the image is gone, or a user wants it again.
    a_while()
    assert told(ClusterView.of(NODES)) == []
    a_while()
    assert told(ClusterView.of(NODES)) == []


def test_a_node_gets_the_orphans_that_a_user_has_removed() -> None:
    session = NodeSession("n1", NetworkAssignments())
    view = ClusterView.of(NODES)
    feed = EndpointFeed(view, lambda: 0.0, 1.0)

    def removals(after: ClusterView) -> list[tuple[int, list[str]]]:
        sent = session.messages(after, feed)
        orders = [each.orphan_removal for each in sent if each.HasField("orphan_removal")]
        return [(each.times, list(each.tasks)) for each in orders]

    assert removals(view) == [(0, [])]
    mine, others = Orphan(id="t1", node_id="n1"), Orphan(id="t2", node_id="n2", removing=True)
    found = view.evolve([Change(None, mine), Change(None, others)])
    assert removals(found) == []
    change = Change(mine, replace(mine, removing=True))
    assert concerned(found, [change]) == {"n1"}
    removed = found.evolve([change])
    assert removals(removed) == [(0, ["t1"])]
    assert removals(removed) == []
    node = removed.nodes["n1"]
    assert removals(removed.evolve([Change(node, replace(node, orphan_removals=1))])) == [
        (1, ["t1"])
    ]
