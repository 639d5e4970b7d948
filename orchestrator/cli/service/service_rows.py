# SPDX-License-Identifier: Apache-2.0
"""Services and tasks as rows: dicts whose keys are part of the interface for scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    enum_word,
    jsonable,
    rfc3339,
    short,
)
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.convert import from_proto
from orchestrator.model.placement import KEPT
from orchestrator.model.services import Service
from orchestrator.model.specs import PortSpec, ServiceMode
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Health, Task
from orchestrator.model.units import format_ago

_NO_ERROR = {TaskState.RUNNING, TaskState.COMPLETE, TaskState.SHUTDOWN}


def service_row(message: Any) -> Row:
    """From a ServiceRow."""
    service: Service = from_proto(message.service)
    spec = service.spec
    replicated = spec.mode is ServiceMode.REPLICATED
    return {
        "id": service.id,
        "name": spec.name,
        "mode": enum_word(spec.mode),
        "replicas": service.replicas if replicated else message.desired,
        "_done": f" ({job_count(message)} completed)" if spec.mode.is_job else "",
        "autoscale": _autoscale(service),
        "running": message.running,
        "image": spec.task.container.image,
        "ports": [port_row(port) for port in spec.task.ports],
        "labels": spec.labels,
        "removed": service.removed,
        "created_at": rfc3339(service.created_at),
        "updated_at": rfc3339(service.updated_at),
    }


def _autoscale(service: Service) -> Row | None:
    """Bounds and status of a service that is autoscaled."""
    spec, status = service.spec.autoscale, service.autoscale
    if not spec.enabled:
        return None
    return {
        "least": spec.least,
        "most": spec.most,
        "changed_at": rfc3339(status.changed_at),
        "message": status.message,
    }


def _replicas(row: Row) -> str:
    """Such as `3/3`, `2/4 (1-10)` if it is autoscaled."""
    scale = row["autoscale"]
    bounds = f" ({scale['least']}-{scale['most']})" if scale else ""
    return f"{row['running']}/{row['replicas']}{bounds}{row['_done']}"


def job_count(message: Any) -> str:
    """Completions of the newest run of a job, such as `3/10`, from a ServiceRow."""
    return f"{message.completed}/{message.completions}"


def port_row(port: PortSpec) -> Row:
    return {
        "published": port.published,
        "target": port.target,
        "protocol": enum_word(port.protocol),
        "mode": enum_word(port.mode),
    }


def service_columns(whole: bool) -> list[Column]:
    return [
        short("ID", "id", whole),
        column("NAME", "name"),
        column("MODE", "mode"),
        Column("REPLICAS", _replicas),
        column("IMAGE", "image"),
        Column("PORTS", lambda row: ", ".join(map(port_text, row["ports"]))),
    ]


def port_text(port: Row) -> str:
    return f"*:{port['published']}->{port['target']}/{port['protocol']}"


def task_rows(messages: Iterable[Any], hostnames: Mapping[str, str], now: float) -> list[Row]:
    """From the tasks of a ListTasksReply: by service and slot, the newest of a slot first."""
    tasks: list[Task] = [from_proto(message) for message in messages]
    tasks.sort(key=lambda task: (task.service_name, task.slot, -task.created_at, task.id))
    rows, before = [], None
    for task in tasks:
        slot = (task.service_id, task.slot)
        rows.append({**task_row(task, hostnames), "_old": slot == before, "_now": now})
        before = slot
    return rows


def orphan_rows(messages: Iterable[Any], hostnames: Mapping[str, str], now: float) -> list[Row]:
    """From orphans: rows of tasks that no manager desires."""
    orphans: list[Orphan] = [from_proto(message) for message in messages]
    return [
        {
            **task_row(each.task, hostnames),
            "state": "orphan",
            "desired_state": "remove" if each.removing else "",
            "_old": False,
            "_now": now,
        }
        for each in sorted(orphans, key=lambda each: (each.name, each.id))
    ]


def task_row(task: Task, hostnames: Mapping[str, str]) -> Row:
    status = task.status
    return {
        "id": task.id,
        "name": task.name,
        "service": task.service_name,
        "slot": task.slot,
        "node": hostnames.get(task.node_id, task.node_id),
        "node_id": task.node_id,
        "state": enum_word(status.state),
        "desired_state": enum_word(task.wanted_now),
        "health": health_word(task),
        "error": task_error(task),
        "exit_code": status.exit_code if has_exit_code(task) else None,
        "image": task.spec.container.image,
        "ports": [port_row(port) for port in task.spec.ports],
        "addresses": status.addresses,
        "started_at": rfc3339(status.started_at),
        "state_at": rfc3339(status.at),
        "created_at": rfc3339(task.created_at),
        "oom_killed": status.oom_killed,
        "pid": status.pid,
        "_at": (status.started_at if status.state is TaskState.RUNNING else status.at)
        or task.created_at,
        "_health": health_text(task),
    }


def has_exit_code(task: Task) -> bool:
    """Whether its process has exited: a task that never started, or was orphaned, has no exit
    status."""
    status = task.status
    if status.state is TaskState.ORPHANED:
        return False
    if status.state is TaskState.COMPLETE or status.exit_code:
        return True
    return is_terminal(status.state) and status.started_at > 0


def health_word(task: Task) -> str:
    """`starting`, `healthy` or `unhealthy` of a running task with a health check; else empty."""
    status = task.status
    if status.state is not TaskState.RUNNING or status.health is Health.NONE:
        return ""
    return enum_word(status.health)


def health_text(task: Task) -> str:
    """The suffix of a state as in Docker: ` (healthy)`, ` (health: starting)`."""
    health = health_word(task)
    return f" ({'health: ' if health == 'starting' else ''}{health})" if health else ""


def task_error(task: Task) -> str:
    """Why a task is pending, failed or was preempted, or the output of its failing health check;
    else empty."""
    status = task.status
    if status.state is TaskState.RUNNING and status.health_output:
        return f"probe failed: {status.health_output}"
    if status.state is TaskState.RUNNING and status.message.startswith(KEPT):
        return status.message
    if status.state is TaskState.SHUTDOWN and task.desired_state <= TaskState.RUNNING:
        return status.message  # stopped by its node alone
    if task.preempted_by and task.desired_state > TaskState.RUNNING:
        return f"preempted by {task.preempted_by}"
    if status.state in _NO_ERROR:
        return ""
    if status.message:
        return status.message
    if status.state is TaskState.FAILED:
        return "out of memory" if status.oom_killed else f"exit status {status.exit_code}"
    return ""


def _task_ports(row: Row) -> str:
    """Published ports of a running task."""
    if row["state"] != "running":
        return ""
    return ", ".join(port_text(port) for port in row["ports"] if port["published"])


def task_columns(whole: bool) -> list[Column]:
    return [
        short("ID", "id", whole),
        Column("NAME", lambda row: f" \\_ {row['name']}" if row["_old"] else row["name"]),
        column("IMAGE", "image"),
        column("NODE", "node"),
        Column("DESIRED STATE", lambda row: row["desired_state"].capitalize()),
        Column(
            "CURRENT STATE",
            lambda row: (
                f"{row['state'].capitalize()} {format_ago(row['_at'], row['_now'])}{row['_health']}"
            ),
        ),
        Column("ERROR", lambda row: row["error"]),
        Column("PORTS", _task_ports),
    ]


def service_document(message: Any) -> Row:
    """The full document of a service, with its spec and the number of running tasks."""
    service: Row = jsonable(from_proto(message.service))
    return {**service, "name": service["spec"]["name"], "running": message.running}
