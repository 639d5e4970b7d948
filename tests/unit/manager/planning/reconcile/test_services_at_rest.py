# SPDX-License-Identifier: Apache-2.0
"""Services at rest are not reconciled while their tasks only advance."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World, node, service, task, task_spec

from orchestrator.manager.planning.pipeline import dirty_of, plan
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.at_rest import only_advances
from orchestrator.model.nodes import Availability
from orchestrator.model.specs import ServiceMode, UpdateOrder
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, TaskStatus

WEB = service("web", replicas=2)


def started() -> World:
    world = World(node("a"), node("b"), WEB)
    world.settle()
    return world


def test_start_of_a_service_makes_it_dirty_no_more() -> None:
    world = started()
    assert world.at_rest == {WEB.id}
    assert not world.dirty.services
    for item in world.tasks():
        world.report(item, TaskState.RUNNING)
    assert not world.dirty.services
    assert world.dirty.advanced
    assert world.plan() == []


def test_end_of_a_task_makes_its_service_dirty() -> None:
    world = started()
    first = world.tasks()[0]
    world.report(first, TaskState.FAILED)
    assert world.dirty.services == {WEB.id}


@pytest.mark.parametrize("job", [ServiceMode.GLOBAL, ServiceMode.REPLICATED_JOB])
def test_jobs_and_global_services_are_reconciled_with_each_change(job: ServiceMode) -> None:
    world = World(node("a"), replace(WEB, spec=replace(WEB.spec, mode=job)))
    world.settle()
    assert not world.at_rest


def test_a_service_with_outdated_tasks_is_not_at_rest() -> None:
    world = started()
    world.obey()
    newer = replace(WEB.spec, task=task_spec(image="web:2"))
    world.put(replace(world.view.services[WEB.id], spec=newer, spec_version=2))
    world.plan()
    assert not world.at_rest
    world.obey()
    live = [each for each in world.tasks() if each.status.works]
    assert [each.spec.container.image for each in live] == ["web:2", "web:2"]
    assert world.at_rest == {WEB.id}


def test_a_service_whose_tasks_leave_their_node_one_by_one_is_not_at_rest() -> None:
    first = replace(WEB.spec.update, order=UpdateOrder.START_FIRST)
    web = replace(WEB, spec=replace(WEB.spec, update=first))
    world = World(node("a"), node("b"), web)
    world.obey()
    assert world.at_rest == {WEB.id}
    world.put(replace(world.view.nodes["a"], availability=Availability.DRAIN))
    world.plan()
    assert not world.at_rest
    world.obey()
    assert {each.node_id for each in world.tasks() if each.status.works} == {"b"}
    assert world.at_rest == {WEB.id}


def test_a_node_makes_only_services_with_tasks_on_it_dirty_and_those_not_at_rest() -> None:
    other = service("other", constraints=("node.id==b",))
    world = World(node("a"), replace(WEB, spec=replace(WEB.spec, constraints=("node.id==a",))))
    world.put(node("b"))
    world.put(other)
    world.obey()
    assert world.at_rest == {WEB.id, other.id}
    world.put(replace(world.view.nodes["b"], labels={"disk": "ssd"}))
    made = plan(world.view, world.dirty, world.now, world.new_id, at_rest=world.at_rest)
    assert made.reconciled == {other.id: True}
    made = plan(world.view, world.dirty, world.now, world.new_id)
    assert made.reconciled.keys() == {WEB.id, other.id}


PENDING = task("t", TaskState.PENDING, of=WEB)
RUNNING = task("t", TaskState.RUNNING, of=WEB, node_id="a")


@pytest.mark.parametrize(
    ("change", "advances"),
    [
        (Change(None, PENDING), True),
        (Change(PENDING, replace(RUNNING, status=TaskStatus(TaskState.ASSIGNED))), True),
        (Change(RUNNING, replace(RUNNING, running_since=3.0, revision=4)), True),
        (
            Change(
                RUNNING, replace(RUNNING, status=TaskStatus(TaskState.RUNNING, health=Health(2)))
            ),
            True,
        ),
        (Change(RUNNING, replace(RUNNING, desired_state=TaskState.SHUTDOWN)), False),
        (Change(RUNNING, replace(RUNNING, move_to="b")), False),
        (Change(RUNNING, replace(RUNNING, spec=task_spec(image="web:2"))), False),
        (Change(RUNNING, replace(RUNNING, status=TaskStatus(TaskState.COMPLETE))), False),
        (Change(RUNNING, None), False),
    ],
)
def test_what_advances_a_task(change: Change, advances: bool) -> None:
    assert only_advances(change) is advances
    assert bool(dirty_of([change], {WEB.id}).services) is not advances
    assert dirty_of([change]).services == {WEB.id}
