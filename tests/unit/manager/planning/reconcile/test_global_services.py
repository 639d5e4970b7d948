# SPDX-License-Identifier: Apache-2.0
"""Global services: one task on each node that may have it."""

from __future__ import annotations

from dataclasses import replace

from builders import World, node, service, task_spec

from orchestrator.manager.planning.reconcile.convergence import Progress, progress
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.specs import ServiceMode
from orchestrator.model.states import TaskState

PENDING, RUNNING, FAILED = TaskState.PENDING, TaskState.RUNNING, TaskState.FAILED


def everywhere(**fields: object) -> World:
    return World(node("a"), node("b"), service(mode=ServiceMode.GLOBAL, **fields))


def test_one_task_on_each_node_and_on_those_that_join() -> None:
    world = everywhere()
    world.obey()
    assert world.slots_on() == {"a": [1], "b": [2]}
    assert progress(world.view, "web-id") == Progress(2, 2, True)
    world.put(node("c"))
    world.obey()
    assert world.slots_on() == {"a": [1], "b": [2], "c": [3]}


def test_constraint_limits_the_nodes() -> None:
    world = everywhere(constraints=["node.id!=a"])
    world.obey()
    assert world.slots_on() == {"b": [1]}


def test_a_drained_node_loses_its_task_and_a_paused_one_keeps_it() -> None:
    world = everywhere()
    world.obey()
    world.put(node("a", availability=Availability.DRAIN))
    world.put(node("b", availability=Availability.PAUSE))
    world.obey()
    assert world.slots_on() == {"b": [2]}
    assert progress(world.view, "web-id") == Progress(1, 1, True)


def test_a_global_task_is_not_rescheduled_and_returns_with_its_node() -> None:
    world = everywhere()
    world.obey()
    world.put(node("a", state=NodeState.DOWN))
    world.obey()
    assert world.slots_on() == {"b": [2]}
    assert world.tasks(PENDING) == [], "nothing waits for a node that may never return"
    world.put(node("a"))
    world.obey()
    assert world.slots_on() == {"a": [1], "b": [2]}


def test_a_removed_node_is_forgotten() -> None:
    world = everywhere()
    world.obey()
    world.drop(world.view.nodes["a"])
    world.obey()
    assert [item.node_id for item in world.tasks()] == ["b"]


def test_a_restart_waits_on_its_own_node() -> None:
    world = everywhere()
    world.obey()
    world.report(world.task(1), FAILED)
    world.settle()
    waiting = world.task(1)
    assert (waiting.status.state, waiting.node_id) == (PENDING, "a")
    assert waiting.status.message == "restarting in 5 s (attempt 2)"
    world.pass_time(5.0)
    world.obey()
    assert world.slots_on() == {"a": [1], "b": [2]}


def test_full_node_blocks_its_own_task_only() -> None:
    world = everywhere(spec=task_spec(shares=4096))
    world.put(node("a", shares=1024))
    world.obey()
    assert world.task(1).status.message == (
        "unschedulable: its node has too little capacity (1 node: insufficient shares)"
    )


def test_an_update_goes_from_node_to_node() -> None:
    world = everywhere()
    world.obey()
    web = world.view.services["web-id"]
    world.put(replace(web, spec=replace(web.spec, task=task_spec(image="web:2")), spec_version=2))
    world.settle()
    assert [item.desired_state for item in world.tasks()] == [TaskState.SHUTDOWN, RUNNING]
    world.obey()
    assert {item.spec.container.image for item in world.tasks(RUNNING)} == {"web:2"}
    assert world.slots_on() == {"a": [1], "b": [2]}
