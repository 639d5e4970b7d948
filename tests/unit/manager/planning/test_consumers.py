# SPDX-License-Identifier: Apache-2.0
"""Consumers that keep a network from being removed."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.manager.planning.consumers import network_consumers
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.objects import Network
from orchestrator.model.services import Service
from orchestrator.model.specs import NetworkAttachment, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

BACK = Network(id="n1", name="back")
SPEC = TaskSpec(networks=(NetworkAttachment("back"),))
WEB = Service(id="s1", spec=ServiceSpec(name="web", task=SPEC))


def task(state: TaskState) -> Task:
    return Task(
        id="t1", service_id="s1", service_name="web", slot=1, spec=SPEC, status=TaskStatus(state)
    )


def test_a_task_that_still_runs_keeps_the_network_of_its_removed_service() -> None:
    removed = replace(WEB, removed=True)
    running = task(TaskState.RUNNING)
    assert network_consumers(ClusterView.of([BACK, removed, running]), BACK) == [
        "task web.1, which is stopping"
    ]
    assert network_consumers(ClusterView.of([BACK, running]), BACK) == [
        "task web.1, which is stopping"
    ]


def test_a_task_that_will_never_be_placed_does_not() -> None:
    removed = replace(WEB, removed=True)
    pending = task(TaskState.PENDING)
    assert network_consumers(ClusterView.of([BACK, WEB, pending]), BACK) == ["service web"]
    assert network_consumers(ClusterView.of([BACK, removed, pending]), BACK) == []
    assert network_consumers(ClusterView.of([BACK, pending]), BACK) == []
