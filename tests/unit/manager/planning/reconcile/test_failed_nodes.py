# SPDX-License-Identifier: Apache-2.0
"""Rescheduling tasks from nodes that fail, come back, or flap."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import ANY, NONE, World, node, service, task_spec

from orchestrator.manager.planning.reconcile.convergence import running_tasks
from orchestrator.manager.planning.reports.liveness import STEADY, node_down, node_up, unsteady
from orchestrator.manager.planning.view import assigned_tasks
from orchestrator.model.compatibility.agent_features import STOP_AFTER
from orchestrator.model.nodes import NodeState
from orchestrator.model.placement import (
    Disconnect,
    DisconnectAction,
    disconnect_text,
    parse_disconnect,
)
from orchestrator.model.services import Service
from orchestrator.model.specs import RestartPolicy, ServiceMode
from orchestrator.model.states import TaskState

RUNNING, SHUTDOWN = TaskState.RUNNING, TaskState.SHUTDOWN


def service_with(rule: str, replicas: int = 2, **fields: object) -> Service:
    of = service(replicas=replicas, **fields)  # type: ignore[arg-type]
    return replace(of, spec=replace(of.spec, on_disconnect=parse_disconnect(rule)))


def cluster(of: Service, *names: str) -> World:
    hosts = [node(name) for name in names or ("a", "b")]
    able = [
        replace(host, description=replace(host.description, features=(STOP_AFTER,)))
        for host in hosts
    ]
    world = World(*able, of)
    world.obey()
    return world


def down(world: World, id: str) -> None:
    world.put(node_down(world.view.nodes[id], "no heartbeat", world.now))
    world.settle()


def up(world: World, id: str) -> None:
    host = world.view.nodes[id]
    world.put(node_up(host, host.description, world.now))
    world.settle()


def on(world: World, id: str) -> list[str]:
    """The tasks assigned to the node."""
    wanted = assigned_tasks(world.view, id).values()
    return [
        item.name
        for item in wanted
        if item.desired_state <= RUNNING and item.status.state <= RUNNING
    ]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("replace", Disconnect()),
        ("replace-after=30s", Disconnect(DisconnectAction.REPLACE, 30.0)),
        ("keep", Disconnect(DisconnectAction.KEEP)),
        ("stop-after=1m", Disconnect(DisconnectAction.STOP, 60.0)),
    ],
)
def test_how_it_is_written(text: str, rule: Disconnect) -> None:
    assert parse_disconnect(text) == rule
    assert disconnect_text(rule) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stop", "not one of replace, replace-after=30s, keep, stop-after=30s"),
        ("keep=5s", "not one of replace"),
        ("stop-after=", "''"),
        ("stop-after=0.5s", "stop-after must be at least 1s"),
        ("replace-after=1000h", "is not from 0s to 30 days"),
    ],
)
def test_malformed_disconnect_policies_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_disconnect(text)


def test_replaced_at_once_and_stopped_when_the_node_is_back() -> None:
    world = cluster(service_with("replace"))
    down(world, "a")
    world.obey()
    assert on(world, "b") == ["web.1", "web.2"] or on(world, "b") == ["web.2", "web.1"]
    up(world, "a")
    world.obey()
    assert on(world, "a") == []
    assert len(world.tasks(RUNNING)) == 2


def test_replaced_after_a_while_unless_the_node_is_back() -> None:
    world = cluster(service_with("replace-after=30s"))
    before = {item.id for item in world.tasks()}
    down(world, "a")
    world.pass_time(29.0)
    assert {item.id for item in world.tasks()} == before
    up(world, "a")
    world.pass_time(60.0)
    assert {item.id for item in world.tasks()} == before, "nothing was moved"
    down(world, "a")
    world.pass_time(30.0)
    world.obey()
    assert on(world, "a") == []
    assert len(on(world, "b")) == 2


def test_kept_tasks_have_a_message() -> None:
    world = cluster(service_with("keep"))
    before = {item.id for item in world.tasks()}
    down(world, "a")
    world.pass_time(10_000.0)
    assert {item.id for item in world.tasks()} == before
    [kept] = [item for item in world.tasks() if item.node_id == "a"]
    assert kept.status.message == "kept on host-a, which is down"
    assert running_tasks(world.view, "web-id") == 1
    up(world, "a")
    assert on(world, "a") == [kept.name]


def test_kept_task_is_released_once_it_is_to_stop() -> None:
    world = cluster(service_with("keep"))
    down(world, "a")
    web = world.view.services["web-id"]
    world.put(replace(web, spec=replace(web.spec, task=task_spec(image="web:2")), spec_version=2))
    world.obey()
    assert [item.node_id for item in world.tasks(RUNNING)] == ["b", "b"]


def test_stopped_by_its_node_and_replaced_when_it_must_have_ended() -> None:
    world = cluster(service_with("stop-after=20s"))
    down(world, "a")
    world.pass_time(29.0)
    assert len([item for item in world.tasks() if item.status.state is RUNNING]) == 2
    world.pass_time(1.0)
    world.obey()
    assert len(on(world, "b")) == 2, "20 s, and ten of grace"


@pytest.mark.parametrize(("condition", "again"), [(ANY, True), (NONE, False)])
def test_task_stopped_by_its_node_is_restarted_when_the_node_returns(
    condition: int, again: bool
) -> None:
    policy = RestartPolicy(condition)  # type: ignore[arg-type]
    world = cluster(service_with("stop-after=20s", 1, spec=task_spec(restart=policy)))
    world.report(world.task(), SHUTDOWN, message="stopped: no manager reachable for 20s")
    world.settle()
    world.obey()
    assert (world.task().status.state is RUNNING) is again


def test_only_a_node_that_knows_how_is_trusted_to_stop() -> None:
    world = World(node("a"), service_with("stop-after=20s", 1))
    world.settle()
    assert world.task().status.message == (
        "no suitable node (1 node: its agent is too old for stop-after)"
    )


def test_a_node_that_comes_and_goes_makes_nothing_move_more_than_twice() -> None:
    world = cluster(service_with("replace", 6), "a", "b", "c")
    made = len(world.tasks())
    for _ in range(8):
        down(world, "a")
        world.obey()
        world.pass_time(3.0)
        up(world, "a")
        world.obey()
        world.pass_time(3.0)
        # An update that comes meanwhile places anew, but not there.
        web = world.view.services["web-id"]
        task = replace(web.spec.task, force=web.spec.task.force + 1)
        spec = replace(web.spec, task=task)
        world.put(replace(web, spec=spec, spec_version=web.spec_version + 1))
        world.obey()
        if len(world.view.nodes["a"].downs) > 1:
            assert on(world, "a") == []
    lost = [item for item in world.tasks() if item.status.state is TaskState.ORPHANED]
    assert len(lost) <= 4
    assert made == 6
    assert len(world.tasks(RUNNING)) == 6


def test_a_node_is_trusted_again_when_it_has_stayed_up() -> None:
    host = node("a")
    for at in (1000.0, 1010.0):
        host = node_down(host, "gone", at)
    assert unsteady(host, 1011.0)
    assert not unsteady(host, 1000.0 + STEADY)
    assert not unsteady(node_down(node("b"), "gone", 1000.0), 1000.0)
    assert host.state is NodeState.DOWN


def test_an_unsteady_node_is_better_than_none() -> None:
    host = node("a")
    for at in (990.0, 995.0):
        host = node_up(node_down(host, "gone", at), host.description, at + 1)
    world = World(host, service(replicas=1), service("each", mode=ServiceMode.GLOBAL))
    world.obey()
    assert len(world.tasks(RUNNING)) == 2
