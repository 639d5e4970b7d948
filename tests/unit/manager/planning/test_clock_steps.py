# SPDX-License-Identifier: Apache-2.0
"""Stored delays when the wall clock is stepped."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import NOW, node, service, task

from orchestrator.manager.planning.clock_steps import (
    delays_from_the_future,
    objects_with_delays,
    shifted,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Object
from orchestrator.model.scheduling.autoscaling import AutoscaleStatus
from orchestrator.model.services import JobRun, JobState, JobStatus, Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

DAY = 86400.0


def waiting(not_before: float, at: float = NOW) -> Task:
    item = task("t", TaskState.PENDING)
    return replace(item, not_before=not_before, status=replace(item.status, at=at))


WINDOW = replace(service(), autoscale=AutoscaleStatus(fewer_since=NOW - 9, fewer=2))


@pytest.mark.parametrize(
    ("item", "moves"),
    [
        pytest.param(waiting(NOW + 5), True, id="a restart delay"),
        pytest.param(waiting(NOW - 5), False, id="one that is over"),
        pytest.param(node("a", state=NodeState.DOWN, state_since=NOW - 3), True, id="a lost node"),
        pytest.param(node("a", downs=(NOW - 60, NOW - 9)), True, id="one that comes and goes"),
        pytest.param(node("a"), False, id="a node that is up"),
        pytest.param(service(), False, id="a service"),
        pytest.param(WINDOW, True, id="a service whose autoscaler waits"),
    ],
)
def test_delays_move_with_the_clock(item: Object, moves: bool) -> None:
    assert bool(list(objects_with_delays(ClusterView.of([item]), NOW))) == moves


def test_all_of_a_delay_moves() -> None:
    item = shifted(waiting(NOW + 5), -DAY)
    assert isinstance(item, Task)
    assert (item.not_before, item.status.at) == (NOW + 5 - DAY, NOW - DAY)
    down = shifted(node("a", state=NodeState.DOWN, state_since=NOW - 3, downs=(NOW - 3,)), DAY)
    assert isinstance(down, Node)
    assert (down.state_since, down.downs) == (NOW - 3 + DAY, (NOW - 3 + DAY,))
    job = replace(
        service(), job=JobStatus(runs=(JobRun(number=1, state=JobState.RUNNING, since=NOW),))
    )
    window = shifted(WINDOW, DAY)
    assert isinstance(window, Service)
    assert (window.autoscale.fewer_since, window.autoscale.more_since) == (NOW - 9 + DAY, 0)
    assert shifted(job, DAY).job.runs[0].since == NOW + DAY  # type: ignore[attr-defined]


def test_a_delay_that_began_in_the_future_begins_now() -> None:
    late = waiting(NOW + DAY + 5, at=NOW + DAY)
    [change] = delays_from_the_future(ClusterView.of([late]), NOW)
    assert isinstance(change.after, Task)
    assert (change.after.not_before, change.after.status.at) == (NOW + 5, NOW)
    usual = waiting(NOW + 5.2, at=NOW + 0.2)
    assert list(delays_from_the_future(ClusterView.of([usual]), NOW)) == []
