# SPDX-License-Identifier: Apache-2.0
"""Clock steps: stored delays are shifted when the leader's wall clock is stepped, so that they last
as long as intended.

A point in time that stands for a delay is shifted by as much as the clock. A job's schedule is not:
it names times of the day, and follows the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.evictions import has_drain_deadline
from orchestrator.manager.planning.reports.liveness import STEADY
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Object
from orchestrator.model.services import JobState, Service
from orchestrator.model.tasks import Task

LONGEST_WAIT_BACK = 1.0
"""Seconds by which a stored time may lie in the future merely because the clocks of two managers
differ."""


def objects_with_delays(view: ClusterView, now: float) -> Iterator[Object]:
    """The objects with a delay that is not over; `now` is the time before the step."""
    for task in view.pending.values():
        if task.not_before > now:
            yield task
    for node in view.nodes.values():
        recent = any(at > now - STEADY for at in node.downs)
        if node.state is NodeState.DOWN or recent or has_drain_deadline(node):
            yield node
    for service in view.services.values():
        limited = service.spec.job.deadline and any(
            run.state is JobState.RUNNING for run in service.job.runs
        )
        if limited or service.autoscale.more_since or service.autoscale.fewer_since:
            yield service


def shifted(item: Object, seconds: float) -> Object:
    """The object with its delays moved by that number of seconds."""
    match item:
        case Task():
            status = replace(item.status, at=item.status.at + seconds)
            return replace(item, not_before=item.not_before + seconds, status=status)
        case Node():
            return replace(
                item,
                state_since=item.state_since + seconds,
                downs=tuple(at + seconds for at in item.downs),
                drain_deadline=item.drain_deadline + seconds if item.drain_deadline else 0.0,
            )
        case Service():
            runs = tuple(
                replace(run, since=run.since + seconds) if run.state is JobState.RUNNING else run
                for run in item.job.runs
            )
            scale = item.autoscale
            scale = replace(
                scale,
                more_since=scale.more_since + seconds if scale.more_since else 0.0,
                fewer_since=scale.fewer_since + seconds if scale.fewer_since else 0.0,
            )
            return replace(item, job=replace(item.job, runs=runs), autoscale=scale)
        case _:
            return item


def delays_from_the_future(view: ClusterView, now: float) -> Iterable[Change]:
    """Delays that began in the future (by a manager whose clock was ahead, or before this clock was
    set back) are restarted now."""
    for task in view.pending.values():
        ahead = task.status.at - now
        if task.not_before > now and ahead > LONGEST_WAIT_BACK:
            yield Change(task, shifted(task, -ahead))
    for node in view.nodes.values():
        ahead = node.state_since - now
        if node.state is NodeState.DOWN and ahead > LONGEST_WAIT_BACK:
            yield Change(node, shifted(node, -ahead))
