# SPDX-License-Identifier: Apache-2.0
"""Autoscaling: how many replicas a service needs, from the utilisation of its tasks and a query.

As in Kubernetes' horizontal pod autoscaler: the number of replicas times utilisation by target,
rounded up; for a query, its value by that of one replica. Of several targets the one that needs
most decides. Within a tolerance of 10% nothing changes. Tasks that have not been measured count as
idle when more replicas would be needed, and as at their target when fewer would do, so that missing
measurements make changes smaller. Without the query's value nothing is removed.

More replicas are added once they have been needed for the up window, at most as many as there are
(or `LEAST_STEP`, if that is more) with each decision. Some are removed once fewer have sufficed for
the down window, and at most half of them. What a window needs to know is in the service's status,
written when it changes; so decisions survive a change of leader.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.bounds import MAX_REPLICAS
from orchestrator.model.scheduling.autoscaling import AutoscaleSpec, AutoscaleStatus, bounded
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

TOLERANCE = 0.1
"""Relative deviation from the target within which nothing changes."""

LEAST_STEP = 4
"""Replicas that one decision may always add."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of a task on its node."""

    at: float
    """Seconds by a clock of the node."""
    cpu: float
    """Seconds of CPU time that it has used."""
    memory: int
    """Bytes in use."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a task uses now."""

    cores: float
    memory: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Need:
    """How many replicas a service needs, and why."""

    replicas: int
    reason: str


def autoscaled(view: ClusterView) -> list[Service]:
    """The services to be autoscaled now, by id: not those that are removed or being updated."""
    return sorted(
        (
            service
            for service in view.services.values()
            if service.spec.autoscale.enabled and not service.removed and not service.update.moving
        ),
        key=lambda service: service.id,
    )


def measured_tasks(view: ClusterView, service: Service) -> list[Task]:
    """The tasks whose utilisation counts: those that work."""
    return [
        task
        for _, task in sorted(view.tasks_of_service(service.id).items())
        if task.status.works and task.desired_state <= TaskState.RUNNING
    ]


def needed(
    service: Service,
    tasks: Iterable[Task],
    usages: Mapping[str, Usage],
    values: Mapping[str, float] | None = None,
) -> Need | None:
    """How many replicas the service needs, within its bounds; None if nothing was measured.
    `values` has the queries' values, of those that have one."""
    spec, tasks = service.spec.autoscale, list(tasks)
    found = [task for task in tasks if task.id in usages]
    needs = []
    for name, target in (("cpu", spec.cpu), ("memory", spec.memory)):
        if not target or not found:
            continue
        used = [_utilisation(task, usages[task.id], name) for task in found]
        needs.append(_need(service.replicas, name, used, len(tasks) - len(found), target))
    value = (values or {}).get(spec.query)
    if spec.query and value is not None:
        needs.append(_need_of_query(service.replicas, value, spec.per_replica))
    if not needs:
        return None
    most = max(needs, key=lambda need: need.replicas)
    if spec.query and value is None and most.replicas < service.replicas:
        return None
    return replace(most, replicas=bounded(spec, most.replicas))


def _need(replicas: int, name: str, used: list[float], missing: int, target: int) -> Need:
    """What one target needs. `used` and `target` are in percent."""
    mean = sum(used) / len(used)
    reason = f"{name} at {mean:.0f}% of {target}%"
    if missing:
        # As Kubernetes: assume for what was not measured whatever changes less.
        assumed = 0.0 if mean > target else float(target)
        mean = (sum(used) + assumed * missing) / (len(used) + missing)
    ratio = mean / target
    if abs(ratio - 1) <= TOLERANCE:
        return Need(replicas, reason)
    return Need(math.ceil(round(replicas * ratio, 6)), reason)


def _need_of_query(replicas: int, value: float, per_replica: float) -> Need:
    reason = f"query at {value:.6g}, {per_replica:g} per replica"
    if replicas and abs(value / (per_replica * replicas) - 1) <= TOLERANCE:
        return Need(replicas, reason)
    wanted = min(max(value, 0.0) / per_replica, MAX_REPLICAS)  # the quotient may be infinite
    return Need(math.ceil(round(wanted, 6)), reason)


def _utilisation(task: Task, usage: Usage, name: str) -> float:
    """In percent of what the scheduler counts."""
    counted = task.spec.counted
    if name == "cpu":
        return usage.cores * 1024 * 100 / counted.shares
    return usage.memory * 100 / counted.memory


def decide(service: Service, need: Need | None, now: float) -> Service:
    """The service with the status of its autoscaling after a measurement; the same object if
    nothing changes. Without a need nothing does: a new leader measures rates from its second
    measurement on, and continues the windows."""
    spec, status = service.spec.autoscale, service.autoscale
    current = service.replicas
    if need is None:
        return service
    if need.replicas == current:
        after = replace(status, more_since=0.0, more=0, fewer_since=0.0, fewer=0)
    elif need.replicas > current:
        after = _more(spec, status, current, need, now)
    else:
        after = _fewer(spec, status, current, need, now)
    return service if after == status else replace(service, autoscale=after)


def _more(
    spec: AutoscaleSpec, status: AutoscaleStatus, current: int, need: Need, now: float
) -> AutoscaleStatus:
    since = _since(status.more_since, now)
    more = min(status.more or need.replicas, need.replicas)
    if now - since < spec.up_window:
        return replace(status, more_since=since, more=more, fewer_since=0.0, fewer=0)
    most = max(current * 2, current + LEAST_STEP)
    return _decided(bounded(spec, min(more, most)), need, now)


def _fewer(
    spec: AutoscaleSpec, status: AutoscaleStatus, current: int, need: Need, now: float
) -> AutoscaleStatus:
    since = _since(status.fewer_since, now)
    fewer = max(status.fewer, need.replicas)
    if now - since < spec.down_window:
        return replace(status, fewer_since=since, fewer=fewer, more_since=0.0, more=0)
    least = current - current // 2
    return _decided(bounded(spec, max(fewer, least)), need, now)


def _decided(replicas: int, need: Need, now: float) -> AutoscaleStatus:
    return AutoscaleStatus(replicas=replicas, changed_at=now, message=need.reason)


def _since(since: float, now: float) -> float:
    """When a window began; now, if it has not, or began in the future by another clock."""
    return since if 0 < since <= now else now
