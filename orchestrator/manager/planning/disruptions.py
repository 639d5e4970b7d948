# SPDX-License-Identifier: Apache-2.0
"""Disruption budgets: how many working tasks of a service may be stopped now for other reasons than
its own.

A slot without a working task counts as unavailable whatever the reason: a crash, an update in
progress, an earlier disruption. Failures themselves are not prevented, of course.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from orchestrator.manager.planning.slots import Slot, slots_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.scheduling.disruptions import DisruptionBudget, most_unavailable
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


def unavailable(slots: Iterable[Slot]) -> int:
    """How many slots have no working task."""
    return sum(not any(task.status.works for task in slot.live) for slot in slots)


def disruptions_left(service: Service, slots: Sequence[Slot]) -> int:
    """How many more working tasks may be stopped now, of these slots of the service."""
    if service.spec.disruption == DisruptionBudget():
        return sys.maxsize
    most = most_unavailable(service.spec.disruption, len(slots))
    return max(most - unavailable(slots), 0)


def was_preempted(before: Task | None, after: Task) -> bool:
    """Whether a change of a task stops it to make room for another one."""
    stopped = before is not None and before.desired_state <= TaskState.RUNNING
    stopped = stopped and after.desired_state > TaskState.RUNNING
    return stopped and bool(after.node_id and after.preempted_by)


def disruptions_left_in(view: ClusterView, service: Service) -> int:
    """As `disruptions_left`, of all slots that the service has in a view."""
    if service.spec.disruption == DisruptionBudget():
        return sys.maxsize
    slots = slots_of(view.tasks_of_service(service.id)).values()
    return disruptions_left(service, [slot for slot in slots if slot.kept])
