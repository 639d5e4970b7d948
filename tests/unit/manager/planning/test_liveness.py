"""Nodes that fall silent and come back."""

from __future__ import annotations

import pytest
from builders import NOW, World, node, service

from orchestrator.manager.planning.assignments import assigned_tasks
from orchestrator.manager.planning.liveness import expire, node_up
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster
from orchestrator.model.states import TaskState

CLUSTER = Cluster(id="c", node_timeout=5.0)
DOWN, READY, UNKNOWN = NodeState.DOWN, NodeState.READY, NodeState.UNKNOWN


@pytest.mark.parametrize(
    ("state", "heard", "message", "requeue"),
    [
        pytest.param(READY, NOW - 4.0, None, NOW + 1.0, id="heard of"),
        pytest.param(READY, NOW - 5.0, "no heartbeat for 5.0 s", None, id="silent"),
        pytest.param(UNKNOWN, NOW - 6.5, "no heartbeat for 6.5 s", None, id="never seen up"),
        pytest.param(DOWN, NOW - 60.0, None, None, id="down already"),
    ],
)
def test_silence(
    state: NodeState, heard: float, message: str | None, requeue: float | None
) -> None:
    view = ClusterView.of([CLUSTER, node("a", state=state)])
    plan = expire(view, {"a": heard}, term_started=NOW - 100, now=NOW)
    assert plan.requeue_at == requeue
    changed = [change.after for change in plan.changes]
    if message is None:
        assert changed == []
    else:
        [after] = changed
        assert isinstance(after, Node)
        assert (after.state, after.message, after.state_since) == (DOWN, message, NOW)


def test_a_new_leader_gives_twice_the_time() -> None:
    view = ClusterView.of([CLUSTER, node("a")])
    early = expire(view, {}, term_started=NOW, now=NOW + 9.9)
    assert early.changes == ()
    assert early.requeue_at == NOW + 10.0
    late = expire(view, {"a": None}, term_started=NOW, now=NOW + 10.0)
    assert [change.after.message for change in late.changes] == ["no heartbeat for 10.0 s"]


def test_a_node_that_has_just_joined_gets_its_time_too() -> None:
    view = ClusterView.of([CLUSTER, node("a", state=UNKNOWN, created_at=NOW)])
    plan = expire(view, {}, term_started=NOW - 100, now=NOW + 1)
    assert plan.changes == ()
    assert plan.requeue_at == NOW + 10.0


def test_hello_makes_a_node_ready() -> None:
    silent = node("a", state=DOWN, message="no heartbeat for 5.0 s", state_since=1.0)
    described = NodeDescription(hostname="alpha")
    up = node_up(silent, described, NOW)
    assert (up.state, up.message, up.state_since) == (READY, "", NOW)
    assert up.description is described
    assert node_up(up, described, NOW + 60) is up, "a repeated hello is no news"
    renamed = node_up(up, NodeDescription(hostname="beta"), NOW + 60)
    assert (renamed.description.hostname, renamed.state_since) == ("beta", NOW)


def test_a_node_that_comes_back_is_told_to_run_none_of_what_was_given_up() -> None:
    world = World(CLUSTER, node("a"), node("b"), service(replicas=2))
    world.obey()
    assert list(assigned_tasks(world.view, "a")) == [world.task(1).id]
    down = expire(world.view, {"b": world.now + 6}, term_started=NOW, now=world.now + 10)
    world.write(*down.changes)
    world.settle()
    assert world.slots_on() == {"b": [1, 2]}
    back = world.view.nodes["a"]
    world.put(node_up(back, back.description, world.now))
    world.settle()
    assert assigned_tasks(world.view, "a") == {}
    assert world.slots_on() == {"b": [1, 2]}


def test_assignments_hold_what_must_stop_and_what_has_ended_but_not_what_was_given_up() -> None:
    world = World(node("a"), service(replicas=3))
    world.obey()
    ended = world.task(2)
    world.report(ended, TaskState.FAILED)
    stopping = world.task(3)
    world.put(service(replicas=1))
    world.settle()
    orders = assigned_tasks(world.view, "a")
    assert list(orders) == sorted(orders)
    live = {id: task for id, task in orders.items() if id != ended.id}
    assert {task.slot: task.desired_state for task in live.values()} == {
        1: TaskState.RUNNING,
        3: TaskState.REMOVE,
    }
    assert stopping.id in orders
