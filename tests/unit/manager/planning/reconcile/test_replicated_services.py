# SPDX-License-Identifier: Apache-2.0
"""Replicated services: create, scale, drained and lost nodes, removal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import NONE, NOW, World, node, service, task, task_spec

from orchestrator.manager.planning.reconcile.services import scale_down_order
from orchestrator.manager.planning.slots import Slot
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.objects import Image
from orchestrator.model.services import Service
from orchestrator.model.specs import RestartPolicy
from orchestrator.model.states import TaskState

PENDING, ASSIGNED, RUNNING = TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING
SHUTDOWN, REMOVE, ORPHANED = TaskState.SHUTDOWN, TaskState.REMOVE, TaskState.ORPHANED


def scaled(web: Service, replicas: int) -> Service:
    return replace(web, spec=replace(web.spec, replicas=replicas))


def test_new_tasks_are_written_once_and_assigned() -> None:
    web = service(replicas=3)
    world = World(node("a"), node("b"), web)
    [plan] = world.plan()
    assert [change.before for change in plan.changes] == [None] * 3
    assert plan.requires == (web,)
    nodes = world.view.nodes
    read = {world.view.tasks[id].slot: objects for id, objects in plan.reads.items()}
    assert read == {1: (nodes["a"],), 2: (nodes["b"],), 3: (nodes["a"],)}
    assert plan.reason == "web: 3 new"
    tasks = world.tasks()
    assert [item.name for item in tasks] == ["web.1", "web.2", "web.3"]
    assert [item.status.state for item in tasks] == [ASSIGNED] * 3
    assert world.slots_on() == {"a": [1, 3], "b": [2]}
    assert world.plan() == []


def test_one_pass_makes_and_places_all_of_a_large_service() -> None:
    world = World(node("a", shares=1 << 20, memory=1 << 50), service(replicas=5000))
    world.plan()
    assert len(world.tasks(ASSIGNED)) == 5000


def test_a_limited_pass_leaves_the_rest_to_the_next_ones() -> None:
    world = World(node("a", shares=1 << 20), service("a", replicas=25), service("b", replicas=3))
    world.limit = 10
    for placed in (10, 20, 28):
        world.plan()
        assert len(world.tasks(ASSIGNED)) == placed
    assert world.plan() == []


def test_a_limited_pass_does_small_services_first() -> None:
    """Whatever their ids: small ones do not wait until a large one is done."""
    large, small = service("a", replicas=25), service("b", replicas=3)
    world = World(node("n", shares=1 << 20), large)
    world.limit = 10
    world.plan()
    world.put(small)
    world.plan()
    assert len(world.view.tasks_of_service(small.id)) == 3
    assert len(world.view.tasks_of_service(large.id)) == 17
    world.put(replace(small, removed=True))
    world.plan()
    left = world.view.tasks_of_service(small.id).values()
    assert {each.desired_state for each in left} <= {REMOVE}
    assert len(world.view.tasks_of_service(large.id)) == 24


def test_a_limited_pass_leaves_no_task_without_a_reason() -> None:
    new = service("new", replicas=1)
    world = World(service("old", replicas=20), new)
    world.plan()
    world.put(node("a", shares=1 << 20))
    world.put(replace(scaled(new, 5), updated_at=NOW))
    world.limit = 10
    world.plan()
    assert len(world.tasks(ASSIGNED)) == 10
    assert all(item.status.message for item in world.tasks(PENDING))
    world.settle()
    assert len(world.tasks(ASSIGNED)) == 25


def test_unschedulable_task_waits_with_its_reason_and_is_placed_once_it_fits() -> None:
    web = service(replicas=2, spec=task_spec(shares=4096))
    world = World(node("a"), web)
    world.obey()
    assert world.task(2).status.state is PENDING
    assert world.task(2).status.message == "no suitable node (1 node: insufficient shares)"
    world.put(replace(web, updated_at=NOW))
    assert world.plan() == [], "a reason that has not changed is not written again"
    world.put(node("b"))
    world.settle()
    assert world.slots_on() == {"a": [1], "b": [2]}


def test_room_that_is_freed_is_used_by_other_services() -> None:
    big = service("big", spec=task_spec(shares=4096))
    web = service("web", spec=task_spec(shares=4096))
    world = World(node("a"), big)
    world.obey()
    world.put(web)
    world.settle()
    assert world.tasks(PENDING)
    world.put(scaled(big, 0))
    world.obey()
    assert [item.name for item in world.tasks()] == ["web.1"]
    assert world.tasks(RUNNING)


def test_an_image_that_arrives_lets_tasks_start() -> None:
    web = service(image_digest="sha256:1")
    away = Image(id="sha256:1", names=("web:1",), nodes=("b",))
    world = World(node("a"), node("b", state=NodeState.DOWN), web, away)
    world.settle()
    assert world.task().status.message == "no node that is up has image web:1"
    world.put(replace(away, nodes=("a", "b")))
    world.settle()
    assert world.task().status.state is ASSIGNED


def test_scale_up_reuses_the_lowest_free_slots() -> None:
    web = service(replicas=3)
    world = World(node("a"), web, *(task(f"t{n}", node_id="a", slot=n, of=web) for n in (1, 4)))
    world.settle()
    assert world.slots_on() == {"a": [1, 2, 4]}


def test_scale_down_stops_and_forgets() -> None:
    web = service(replicas=3)
    world = World(node("a"), web)
    world.obey()
    world.put(scaled(web, 1))
    world.settle()
    assert [item.desired_state for item in world.tasks()] == [RUNNING, REMOVE, REMOVE]
    world.obey()
    assert [item.slot for item in world.tasks()] == [1]


def test_scale_down_takes_a_waiting_task_first_and_at_once() -> None:
    web = service(replicas=2, spec=task_spec(shares=4096))
    world = World(node("a"), web)
    world.obey()
    world.put(scaled(web, 1))
    world.settle()
    assert [(item.slot, item.status.state) for item in world.tasks()] == [(1, RUNNING)]


def test_scaling_up_again_does_not_wait_for_slots_that_are_still_stopping() -> None:
    web = service(replicas=2)
    world = World(node("a"), web)
    world.obey()
    world.put(scaled(web, 1))
    world.settle()
    world.put(web)
    world.settle()
    assert [item.slot for item in world.tasks() if item.desired_state is RUNNING] == [1, 3]


@pytest.mark.parametrize(
    ("tasks", "count", "expected"),
    [
        pytest.param([("a", RUNNING, 1), ("a", RUNNING, 2), ("b", RUNNING, 3)], 1, [2], id="full"),
        pytest.param([("a", RUNNING, 2), ("b", RUNNING, 1)], 1, [1], id="newest"),
        pytest.param([("a", RUNNING, 1), ("b", ASSIGNED, 0)], 1, [2], id="not running first"),
        pytest.param(
            [("a", RUNNING, 1), ("a", RUNNING, 2), ("a", RUNNING, 3), ("b", RUNNING, 4)],
            3,
            [3, 2, 4],
            id="fullness counts what has left",
        ),
    ],
)
def test_scale_down_order_of_replicas(
    tasks: list[tuple[str, TaskState, float]], count: int, expected: list[int]
) -> None:
    slots = [
        Slot(number, (task(f"t{number}", state, node_id=home, slot=number, created_at=age),))
        for number, (home, state, age) in enumerate(tasks, start=1)
    ]
    assert [slot.number for slot in scale_down_order(slots, count)] == expected


def test_slots_of_a_failed_node_are_rescheduled_at_once() -> None:
    web = service(replicas=2)
    world = World(node("a"), node("b"), web)
    world.obey()
    lost = world.task(1)
    world.put(replace(world.view.nodes["a"], state=NodeState.DOWN))
    world.plan()
    given_up = world.view.tasks[lost.id]
    assert (given_up.status.state, given_up.desired_state) == (ORPHANED, SHUTDOWN)
    assert given_up.status.message == "node host-a is down"
    assert world.slots_on() == {"b": [1, 2]}
    assert world.task(1).attempt == 0


def test_writes_that_free_capacity_precede_writes_that_use_it() -> None:
    web = service(replicas=3)
    world = World(node("a"), node("b"), web)
    world.obey()
    world.put(replace(world.view.nodes["a"], state=NodeState.DOWN))
    [plan] = world.plan()
    assert [(change.subject.slot, change.before is None) for change in plan.changes] == [
        (1, False),
        (3, False),
        (1, True),
        (3, True),
    ]


def test_a_node_that_was_removed_gives_its_slots_to_others() -> None:
    web = service()
    world = World(node("a"), web)
    world.obey()
    world.drop(world.view.nodes["a"])
    world.put(node("b"))
    world.settle()
    assert world.slots_on() == {"b": [1]}
    assert "removed from the cluster" in world.tasks(ORPHANED)[0].status.message


def test_condition_none_is_not_rescheduled_from_a_failed_node() -> None:
    web = service(spec=task_spec(restart=RestartPolicy(NONE)))
    world = World(node("a"), node("b"), web)
    world.obey()
    world.put(replace(world.view.nodes["a"], state=NodeState.DOWN))
    world.settle()
    assert [item.status.state for item in world.tasks()] == [ORPHANED]


def test_drain_moves_tasks_and_waits_for_their_end() -> None:
    web = service(replicas=2, spec=task_spec(restart=RestartPolicy(NONE)))
    world = World(node("a"), node("b"), web)
    world.obey()
    world.put(replace(world.view.nodes["a"], availability=Availability.DRAIN))
    world.settle()
    assert world.task(1).desired_state is SHUTDOWN
    assert world.slots_on() == {"a": [1], "b": [2]}
    world.obey()
    assert world.slots_on() == {"b": [1, 2]}
    world.put(node("a"))
    world.settle()
    assert world.slots_on() == {"b": [1, 2]}, "an undone drain moves nothing back"


def test_paused_node_keeps_running_tasks_and_takes_none() -> None:
    web = service(replicas=1)
    world = World(node("a"), web)
    world.obey()
    world.put(node("a", availability=Availability.PAUSE))
    world.put(scaled(web, 2))
    world.settle()
    assert world.task(1).status.state is RUNNING
    assert world.task(2).status.message == "no suitable node (1 node: paused)"


def test_a_constraint_no_longer_met_moves_the_task() -> None:
    web = service(constraints=["node.labels.zone==a"])
    world = World(node("a", labels={"zone": "a"}), node("b"), web)
    world.obey()
    assert world.slots_on() == {"a": [1]}
    world.put(node("b", labels={"zone": "a"}))
    world.put(node("a"))
    world.obey()
    assert world.slots_on() == {"b": [1]}


def test_a_node_not_heard_of_since_the_leader_changed_keeps_its_tasks() -> None:
    web = service(replicas=1)
    world = World(node("a"), node("b"), web)
    world.obey()
    world.put(node("a", state=NodeState.UNKNOWN))
    assert world.plan() == []


def test_removal_stops_everything_and_then_forgets_it() -> None:
    web = service(replicas=3, spec=task_spec(shares=2048))
    world = World(node("a"), web)
    world.obey()
    assert world.tasks(PENDING)
    world.put(replace(web, removed=True))
    world.settle()
    assert [item.desired_state for item in world.tasks()] == [REMOVE] * 2
    assert world.view.services, "it is listed until its last task has ended"
    world.obey()
    assert world.tasks() == []
    assert world.view.services == {}


def test_removal_does_not_wait_for_a_failed_node() -> None:
    web = service()
    world = World(node("a"), web)
    world.obey()
    world.put(node("a", state=NodeState.DOWN))
    world.put(replace(web, removed=True))
    world.settle()
    assert world.tasks() == []
    assert world.view.services == {}


def test_tasks_of_a_service_that_is_gone_are_removed() -> None:
    world = World(node("a"), task("t", node_id="a"))
    world.put(service())
    world.drop(service())
    world.obey()
    assert world.tasks() == []
