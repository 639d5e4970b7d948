# SPDX-License-Identifier: Apache-2.0
"""The cluster as JSON for the web page: by kind and id, complete or only changes. Pure.

A snapshot of 5,000 tasks is sent to each browser that opens the page, followed by messages about
changes. The snapshot therefore omits empty fields, and a change has only the fields that differ.
Removed objects are None. Environment and commands of containers are not included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.convergence import desired_tasks
from orchestrator.manager.planning.reconcile.jobs import job_count, job_tasks
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Network, Object
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import STACK_LABEL, ServiceMode
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Health, Task

Picture = dict[str, dict[str, Any]]
"""Kind (`nodes`, `services`, `tasks`, `networks`, `managers`) → id → fields, or None if removed."""

_KINDS: dict[type, str] = {
    Node: "nodes",
    Service: "services",
    Task: "tasks",
    Network: "networks",
}
_MANAGERS = "managers"


def full_snapshot(view: ClusterView) -> Picture:
    """Everything, without empty fields."""
    found: Picture = {kind: {} for kind in _KINDS.values()}
    for item in view.objects():
        kind = _KINDS.get(type(item))
        if kind is not None and (drawn := _drawn(view, item)) is not None:
            found[kind][item.id] = _filled(drawn)
    found[_MANAGERS] = {id: _manager(view, id) for id in view.managers}
    return found


def snapshot_changes(view: ClusterView, changes: Sequence[Change]) -> Picture:
    """The changed fields of changed objects, and all fields of new ones. Kinds without changes are
    missing."""
    found: Picture = {}
    for change in changes:
        subject = change.subject
        if isinstance(subject, Manager | ManagerPresence):
            found.setdefault(_MANAGERS, {})[subject.id] = _manager(view, subject.id)
            continue
        kind = _KINDS.get(type(subject))
        if kind is None:
            continue
        before = _drawn(view, change.before) if change.before is not None else None
        after = _drawn(view, change.after) if change.after is not None else None
        if before == after:
            continue
        if before is not None and after is not None:
            after = {key: value for key, value in after.items() if before[key] != value}
        elif after is not None:
            after = _filled(after)
        found.setdefault(kind, {})[subject.id] = after
    if any(isinstance(change.subject, Node) for change in changes):
        # The number of desired tasks of such a service depends on the nodes.
        for service in view.services.values():
            if service.spec.mode in (ServiceMode.GLOBAL, ServiceMode.GLOBAL_JOB):
                told = found.setdefault("services", {}).setdefault(service.id, {})
                if told is not None:
                    told.update(_extent(view, service))
    return found


def _filled(drawn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in drawn.items() if value}


def _drawn(view: ClusterView, item: Object) -> dict[str, Any] | None:
    match item:
        case Node():
            return _node(item)
        case Service():
            return None if item.removed else _service(view, item)
        case Task():
            return _task(item)
        case Network():
            return {
                "name": item.name,
                "driver": item.driver,
                "subnet": item.subnet,
                "internal": item.internal,
                "encrypted": item.encrypted,
            }
    return None


def _manager(view: ClusterView, id: str) -> dict[str, Any] | None:
    manager = view.managers.get(id)
    if manager is None:
        return None
    state = "joining" if manager.joining else "ready" if id in view.manager_presence else "down"
    return {"name": manager.hostname, "state": state}


def _node(node: Node) -> dict[str, Any]:
    about = node.description
    return {
        "name": about.hostname,
        "state": node.state.name.lower(),
        "availability": node.availability.name.lower(),
        "message": node.message,
        "address": about.address,
        "shares": about.resources.shares,
        "memory": about.resources.memory,
        "labels": node.labels,
        "about": f"{about.os}, {about.kernel}, {about.arch}, {about.runtime}",
    }


def _extent(view: ClusterView, service: Service) -> dict[str, Any]:
    """Number of desired tasks, and for a job's newest run `done` `of` how many."""
    if not service.spec.mode.is_job:
        return {"wanted": desired_tasks(view, service), "done": 0, "of": 0, "job": ""}
    done, of = job_count(view, service)
    state = service.job.runs[0].state.name.lower() if service.job.runs else "waiting"
    return {"wanted": job_tasks(view, service), "done": done, "of": of, "job": state}


def _service(view: ClusterView, service: Service) -> dict[str, Any]:
    spec, update = service.spec, service.update
    return {
        "name": spec.name,
        "mode": spec.mode.name.lower().replace("_", "-"),
        **_extent(view, service),
        "image": spec.task.container.image,
        "stack": spec.labels.get(STACK_LABEL, ""),
        "ports": [f"{port.published}→{port.target}" for port in spec.task.ports],
        "networks": [each.network for each in spec.task.attachments],
        "update": "" if update.state is UpdateState.NONE else update.state.name.lower(),
        "message": update.message,
        "version": service.spec_version,
        "past": len(service.history),
    }


def _task(task: Task) -> dict[str, Any]:
    status, counted = task.status, task.spec.counted
    return {
        "name": task.name,
        "service": task.service_id,
        "slot": task.slot,
        "node": task.node_id,
        "state": status.state.name.lower(),
        "stops": task.desired_state > TaskState.RUNNING and not is_terminal(status.state),
        "health": "" if status.health is Health.NONE else status.health.name.lower(),
        "message": status.message or status.health_output,
        "image": task.spec.container.image,
        "shares": counted.shares,
        "memory": counted.memory,
        "addresses": status.addresses,
        "started": status.started_at,
        "at": status.at,
        "version": task.spec_version,
        "retry_at": task.not_before if task.attempt else 0.0,
    }
