# SPDX-License-Identifier: Apache-2.0
"""Nodes that fall silent and come back."""

from __future__ import annotations

import pytest
from builders import NOW, World, node, service

from orchestrator.manager.planning.reports.liveness import Hearing, Silence, expire, node_up
from orchestrator.manager.planning.view import ClusterView, assigned_tasks
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster
from orchestrator.model.states import TaskState

CLUSTER = Cluster(id="c", node_timeout=5.0)
DOWN, READY, UNKNOWN = NodeState.DOWN, NodeState.READY, NodeState.UNKNOWN
WALL = 1e9
"""A time of the wall clock; all others are of the monotonic one."""


def messages(silence: Silence) -> list[str]:
    """What is said of the nodes that go down."""
    found = []
    for plan in silence.plans:
        for change in plan.changes:
            assert isinstance(change.after, Node)
            found.append(change.after.message)
    return found


@pytest.mark.parametrize(
    ("state", "heard", "message", "requeue"),
    [
        pytest.param(READY, NOW - 4.0, None, NOW + 1.0, id="heard of"),
        pytest.param(READY, NOW - 5.0, "no heartbeat for 5.0 s", None, id="silent"),
        pytest.param(UNKNOWN, NOW - 6.5, "no heartbeat for 6.5 s", None, id="never seen up"),
        pytest.param(DOWN, NOW - 60.0, None, None, id="down already"),
    ],
)
def test_silent_nodes_are_down_after_the_timeout(
    state: NodeState, heard: float, message: str | None, requeue: float | None
) -> None:
    view = ClusterView.of([CLUSTER, node("a", state=state)])
    silence = expire(view, Hearing(NOW - 100, NOW, {"a": heard}), WALL)
    assert silence.look_again_at == requeue
    changed = [change.after for plan in silence.plans for change in plan.changes]
    if message is None:
        assert changed == []
    else:
        [after] = changed
        assert isinstance(after, Node)
        assert (after.state, after.message, after.state_since) == (DOWN, message, WALL)


def test_a_new_leader_gives_twice_the_time() -> None:
    view = ClusterView.of([CLUSTER, node("a")])
    early = expire(view, Hearing(NOW, NOW + 9.9), WALL)
    assert early.plans == ()
    assert early.look_again_at == NOW + 10.0
    late = expire(view, Hearing(NOW, NOW + 10.0), WALL)
    assert messages(late) == ["no heartbeat for 10.0 s"]


def test_heartbeats_of_an_earlier_term_are_ignored() -> None:
    view = ClusterView.of([CLUSTER, node("a")])
    hearing = Hearing(NOW, NOW + 9.9, {"a": NOW - 60})
    assert expire(view, hearing, WALL).plans == ()


def test_a_node_that_has_just_joined_gets_its_time_too() -> None:
    view = ClusterView.of([CLUSTER, node("a", state=UNKNOWN)])
    silence = expire(view, Hearing(NOW - 100, NOW + 1, {}, {"a": NOW}), WALL)
    assert silence.plans == ()
    assert silence.look_again_at == NOW + 10.0


@pytest.mark.parametrize(
    ("nodes", "silent", "doubts"),
    [
        pytest.param(2, 2, False, id="both of two"),
        pytest.param(3, 2, False, id="two of three"),
        pytest.param(3, 3, True, id="three of three"),
        pytest.param(6, 3, False, id="half of six"),
        pytest.param(7, 4, True, id="four of seven"),
    ],
)
def test_leader_with_few_heartbeats_suspects_itself(nodes: int, silent: int, doubts: bool) -> None:
    ids = [f"n{number}" for number in range(nodes)]
    view = ClusterView.of([CLUSTER, *(node(id) for id in ids)])
    heard = {id: NOW - 6 if number < silent else NOW for number, id in enumerate(ids)}
    first = expire(view, Hearing(NOW - 100, NOW, heard), WALL)
    if not doubts:
        assert len(first.plans) == silent
        return
    assert (first.plans, first.doubt_since, first.silent) == ((), NOW, silent)
    grace = 2 * CLUSTER.node_timeout
    others = {id: NOW + grace for id in ids[silent:]}
    doubt = first.doubt_since, first.fewest
    early = Hearing(NOW - 100, NOW + grace - 0.1, heard | others, {}, *doubt)
    assert expire(view, early, WALL).plans == ()
    late = Hearing(NOW - 100, NOW + grace, heard | others, {}, *doubt)
    assert len(expire(view, late, WALL).plans) == silent


def test_the_last_nodes_to_come_back_are_waited_for() -> None:
    """All of them lose their sessions at once, dial anew, and are admitted one after the other."""
    ids = [f"n{number}" for number in range(10)]
    view = ClusterView.of([CLUSTER, *(node(id) for id in ids)])
    heard = dict.fromkeys(ids, NOW)
    silence, now = Silence((), None), NOW
    for id in ids[:-1]:
        now += 1.9 * CLUSTER.node_timeout
        heard |= {each: now - 1 for each in ids[: ids.index(id)]} | {id: now}
        hearing = Hearing(NOW - 100, now, heard, {}, silence.doubt_since, silence.fewest)
        silence = expire(view, hearing, WALL)
        assert silence.plans == ()
    assert silence.silent == 1
    now += 2 * CLUSTER.node_timeout
    heard |= dict.fromkeys(ids[:-1], now)
    hearing = Hearing(NOW - 100, now, heard, {}, silence.doubt_since, silence.fewest)
    (down,) = expire(view, hearing, WALL).plans
    assert down.changes[0].subject.id == "n9"


def test_late_nodes_among_many_that_reconnect_are_waited_for() -> None:
    """Most are back before any of them has been silent for too long."""
    ids = [f"n{number}" for number in range(10)]
    view = ClusterView.of([CLUSTER, *(node(id) for id in ids)])
    heard = dict.fromkeys(ids, NOW)
    silence = expire(view, Hearing(NOW - 100, NOW + 3, heard), WALL)
    heard |= dict.fromkeys(ids[:-1], NOW + 6)
    hearing = Hearing(NOW - 100, NOW + 6, heard, {}, silence.doubt_since, silence.fewest)
    silence = expire(view, hearing, WALL)
    assert (silence.plans, silence.silent) == ((), 1)


def test_leader_with_heartbeats_again_stops_suspecting_itself() -> None:
    view = ClusterView.of([CLUSTER, *(node(f"n{number}") for number in range(4))])
    heard = {f"n{number}": NOW for number in range(4)}
    silence = expire(view, Hearing(NOW - 100, NOW, heard, {}, NOW - 2, 3), WALL)
    assert (silence.plans, silence.doubt_since, silence.fewest) == ((), None, 0)


def test_hello_makes_a_node_ready() -> None:
    silent = node("a", state=DOWN, message="no heartbeat for 5.0 s", state_since=1.0)
    described = NodeDescription(hostname="alpha")
    up = node_up(silent, described, NOW)
    assert (up.state, up.message, up.state_since) == (READY, "", NOW)
    assert up.description is described
    assert node_up(up, described, NOW + 60) is up, "a repeated hello changes nothing"
    renamed = node_up(up, NodeDescription(hostname="beta"), NOW + 60)
    assert (renamed.description.hostname, renamed.state_since) == ("beta", NOW)


def test_orphaned_tasks_are_not_assigned_to_a_node_that_comes_back() -> None:
    world = World(CLUSTER, node("a"), node("b"), service(replicas=2))
    world.obey()
    assert list(assigned_tasks(world.view, "a")) == [world.task(1).id]
    down = expire(world.view, Hearing(NOW, NOW + 10, {"b": NOW + 6}), world.now + 10)
    world.write(*(change for plan in down.plans for change in plan.changes))
    world.settle()
    assert world.slots_on() == {"b": [1, 2]}
    back = world.view.nodes["a"]
    world.put(node_up(back, back.description, world.now))
    world.settle()
    assert assigned_tasks(world.view, "a") == {}
    assert world.slots_on() == {"b": [1, 2]}


def test_assignments_hold_stopping_and_ended_tasks_but_no_orphans() -> None:
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
