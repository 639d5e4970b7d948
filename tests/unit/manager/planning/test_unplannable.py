# SPDX-License-Identifier: Apache-2.0
"""Services that are not planned because of objects that cannot be decoded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.manager.planning.pipeline import EVERYTHING, plan
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.unplannable import incomplete_services, quarantined_services
from orchestrator.manager.planning.view import ClusterView, Quarantined
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.services import JobRun, JobState, JobStatus, Service
from orchestrator.model.specs import NetworkAttachment, ServiceMode, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

REPLICATED = Service(id="r", spec=ServiceSpec(name="r", replicas=2))
GLOBAL = Service(id="g", spec=ServiceSpec(name="g", mode=ServiceMode.GLOBAL))
JOB = Service(
    id="j",
    spec=ServiceSpec(name="j", mode=ServiceMode.REPLICATED_JOB),
    job=JobStatus(runs=(JobRun(number=1),)),
)
DONE = replace(JOB, job=JobStatus(runs=(JobRun(number=1, state=JobState.COMPLETE),)))
NODES = [Node(id=id, state=NodeState.READY) for id in ("a", "b")]


def ids() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"new{next(numbers)}"


def task(service: str, number: int, state: TaskState = TaskState.RUNNING) -> Task:
    return Task(
        id=f"{service}{number}",
        service_id=service,
        slot=number,
        node_id="ab"[number - 1],
        status=TaskStatus(state),
    )


@pytest.mark.parametrize("service", [REPLICATED, GLOBAL], ids=lambda service: service.id)
def test_a_service_misses_a_task_if_a_slot_has_none_at_all(service: Service) -> None:
    view = ClusterView.of([service, *NODES, task(service.id, 1)])
    assert list(incomplete_services(view)) == [service]
    failed = view.evolve([Change(None, task(service.id, 2, TaskState.FAILED))])
    assert list(incomplete_services(failed)) == []


def test_a_job_misses_a_task_only_while_a_run_is_under_way() -> None:
    assert list(incomplete_services(ClusterView.of([JOB]))) == [JOB]
    assert list(incomplete_services(ClusterView.of([JOB, task("j", 1)]))) == []
    assert list(incomplete_services(ClusterView.of([DONE]))) == []


def test_a_service_that_is_held_is_not_planned_and_others_are() -> None:
    other = replace(REPLICATED, id="o", spec=replace(REPLICATED.spec, name="o"))
    record = Quarantined("/orc/tasks/x", "task", "x", "garbage", frozenset({"r"}))
    view = ClusterView.of([REPLICATED, other, Task(id="r1", service_id="r", slot=1)])
    view = replace(view, quarantined={record.key: record})
    plans = plan(view, EVERYTHING, 1.0, ids()).plans
    changes = [change for each in plans for change in each.changes]
    assert {c.after.service_id for c in changes if isinstance(c.after, Task)} == {"o"}


def test_a_network_that_cannot_be_decoded_holds_the_services_that_miss_one() -> None:
    on = replace(
        REPLICATED, spec=replace(REPLICATED.spec, task=TaskSpec(networks=(NetworkAttachment("x"),)))
    )
    record = Quarantined("/orc/networks/x", "network", "x", "garbage")
    view = replace(ClusterView.of([on, GLOBAL]), quarantined={record.key: record})
    assert quarantined_services(view) == {"r": record}
