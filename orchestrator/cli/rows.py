"""Objects as rows: the dicts whose keys scripts rely on, and that tables are made from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.cli.groups import CliError
from orchestrator.cli.output import Column, Row, column, is_named, jsonable, moment, word
from orchestrator.model.convert import from_proto
from orchestrator.model.generic import supply_names, supply_size
from orchestrator.model.names import parse_image, short_id
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Image
from orchestrator.model.placement import KEPT
from orchestrator.model.services import Service
from orchestrator.model.specs import PortSpec, ServiceMode
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Health, Task
from orchestrator.model.units import (
    format_ago,
    format_cores,
    format_memory,
    format_size,
    parse_moment,
)

_NO_ERROR = {TaskState.RUNNING, TaskState.COMPLETE, TaskState.SHUTDOWN}


def short(heading: str, key: str, whole: bool) -> Column:
    """A column of ids, cut to 12 characters unless `whole`."""
    return Column(heading, lambda row: row[key] if whole else short_id(row[key]))


def node_row(message: Any) -> Row:
    """From a NodeRow."""
    node: Node = from_proto(message.node)
    about = node.description
    return {
        "id": node.id,
        "hostname": about.hostname,
        "role": node.role,
        "availability": word(node.availability),
        "state": word(node.state),
        "address": about.address,
        "shares_total": about.resources.shares,
        "shares_reserved": message.reserved.shares,
        "memory_total": about.resources.memory,
        "memory_reserved": message.reserved.memory,
        "tasks": message.tasks,
        "version": about.version,
        "labels": {**about.labels, **node.labels},
        "message": node.message,
        "trouble": about.trouble,
        "created_at": moment(node.created_at),
        "kernel": about.kernel,
        "os": about.os,
        "arch": about.arch,
        "cgroup": about.cgroup,
        "runtime": about.runtime,
        "drain": {
            "max_unavailable": node.drain_most,
            "deadline": moment(node.drain_deadline),
        },
        "downs": [moment(at) for at in node.downs],
        "generic_resources": {
            kind: {
                "total": supply_size(value),
                "reserved": supply_size(value) - message.generic_free[kind],
                "names": list(supply_names(value)),
            }
            for kind, value in sorted(about.generic_resources.items())
        },
        "network_features": list(about.network_features),
        "cni_plugins": list(about.cni_plugins),
        "network_drivers": about.network_drivers,
        "ipam_drivers": list(about.ipam_drivers),
        "path_mtu": about.path_mtu or None,
        "tunnel_keys": [{"public": key.public, "port": key.port} for key in about.tunnel_keys],
    }


def node_columns(whole: bool) -> list[Column]:
    return [
        short("ID", "id", whole),
        column("HOSTNAME", "hostname"),
        Column("STATUS", lambda row: row["state"].capitalize()),
        Column("AVAILABILITY", lambda row: row["availability"].capitalize()),
        column("ROLE", "role"),
        column("ADDRESS", "address"),
        column("TASKS", "tasks"),
        Column("CPUS", lambda row: _used(row, "shares", format_cores)),
        Column("MEMORY", lambda row: _used(row, "memory", format_memory)),
        column("VERSION", "version"),
    ]


def _used(row: Row, what: str, text: Any) -> str:
    return f"{text(row[f'{what}_reserved'])} / {text(row[f'{what}_total'])}"


def service_row(message: Any) -> Row:
    """From a ServiceRow."""
    service: Service = from_proto(message.service)
    spec = service.spec
    replicated = spec.mode is ServiceMode.REPLICATED
    return {
        "id": service.id,
        "name": spec.name,
        "mode": word(spec.mode),
        "replicas": spec.replicas if replicated else message.desired,
        "_done": f" ({job_count(message)} completed)" if spec.mode.is_job else "",
        "running": message.running,
        "image": spec.task.container.image,
        "ports": [port_row(port) for port in spec.task.ports],
        "labels": spec.labels,
        "removed": service.removed,
        "created_at": moment(service.created_at),
        "updated_at": moment(service.updated_at),
    }


def job_count(message: Any) -> str:
    """What the newest run of a job has done, such as `3/10`, from a ServiceRow."""
    return f"{message.completed}/{message.completions}"


def port_row(port: PortSpec) -> Row:
    return {
        "published": port.published,
        "target": port.target,
        "protocol": word(port.protocol),
        "mode": word(port.mode),
    }


def service_columns(whole: bool) -> list[Column]:
    return [
        short("ID", "id", whole),
        column("NAME", "name"),
        column("MODE", "mode"),
        Column("REPLICAS", lambda row: f"{row['running']}/{row['replicas']}{row['_done']}"),
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


def task_row(task: Task, hostnames: Mapping[str, str]) -> Row:
    status = task.status
    return {
        "id": task.id,
        "name": task.name,
        "service": task.service_name,
        "slot": task.slot,
        "node": hostnames.get(task.node_id, task.node_id),
        "node_id": task.node_id,
        "state": word(status.state),
        "desired_state": word(task.wanted_now),
        "health": health_word(task),
        "error": task_error(task),
        "exit_code": status.exit_code if has_exit_code(task) else None,
        "image": task.spec.container.image,
        "addresses": status.addresses,
        "started_at": moment(status.started_at),
        "state_at": moment(status.at),
        "created_at": moment(task.created_at),
        "oom_killed": status.oom_killed,
        "pid": status.pid,
        "_at": (status.started_at if status.state is TaskState.RUNNING else status.at)
        or task.created_at,
        "_health": health_text(task),
    }


def has_exit_code(task: Task) -> bool:
    """Whether its process ran and ended: what never started, and what was given up with its node,
    has no exit status."""
    status = task.status
    if status.state is TaskState.ORPHANED:
        return False
    if status.state is TaskState.COMPLETE or status.exit_code:
        return True
    return is_terminal(status.state) and status.started_at > 0


def health_word(task: Task) -> str:
    """`starting`, `healthy` or `unhealthy`, of a task that runs and is probed; else empty."""
    status = task.status
    if status.state is not TaskState.RUNNING or status.health is Health.NONE:
        return ""
    return word(status.health)


def health_text(task: Task) -> str:
    """The same behind a state, as Docker has it: ` (healthy)`, ` (health: starting)`."""
    health = health_word(task)
    return f" ({'health: ' if health == 'starting' else ''}{health})" if health else ""


def task_error(task: Task) -> str:
    """Why a task waits or has failed, or what its failing probe says; empty if all is well."""
    status = task.status
    if status.state is TaskState.RUNNING and status.health_output:
        return f"probe failed: {status.health_output}"
    if status.state is TaskState.RUNNING and status.message.startswith(KEPT):
        return status.message
    if status.state is TaskState.SHUTDOWN and task.desired_state <= TaskState.RUNNING:
        return status.message  # nobody told it to stop but its node
    if status.state in _NO_ERROR:
        return ""
    if status.message:
        return status.message
    if status.state is TaskState.FAILED:
        return "out of memory" if status.oom_killed else f"exit status {status.exit_code}"
    return ""


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
    ]


def image_rows(messages: Iterable[Any], hostnames: Mapping[str, str]) -> list[Row]:
    """From the images of a ListImagesReply: a row a name, newest first."""
    images: list[Image] = [from_proto(message) for message in messages]
    rows = []
    for image in sorted(images, key=lambda image: (-image.created_at, image.id)):
        for name in image.names or ("",):
            parsed = parse_image(name) if name else None
            rows.append(
                {
                    "id": image.id,
                    "repository": parsed.name if parsed else "<none>",
                    "tag": (parsed.tag if parsed else "") or "<none>",
                    "digest": image.indexes[0] if image.indexes else image.id,
                    "dangling": not image.names,
                    "size": image.size,
                    "nodes": sorted(hostnames.get(node, node) for node in image.nodes),
                    "layers": list(image.layers),
                    "labels": image.labels,
                    "config_digest": image.config_digest,
                    "created_at": moment(image.created_at),
                    "_created": image.created_at,
                }
            )
    return rows


_AGES = {"before", "since", "until"}


def by_age(
    rows: list[Row], filters: Mapping[str, Sequence[str]]
) -> tuple[list[Row], dict[str, Sequence[str]]]:
    """The images that `before=IMAGE`, `since=IMAGE` and `until=TIME` leave, and the other
    filters. Raises CliError for an image that is none of the rows."""
    rest = {key: values for key, values in filters.items() if key not in _AGES}
    kept = rows
    for key in _AGES & filters.keys():
        for value in filters[key]:
            moment = _moment_of(key, value, rows)
            kept = [
                row
                for row in kept
                if (row["_created"] > moment if key == "since" else row["_created"] < moment)
            ]
    return kept, rest


def _moment_of(key: str, value: str, rows: Sequence[Row]) -> float:
    if key == "until":
        try:
            return parse_moment(value, time.time(), "until")
        except ValueError as error:
            raise CliError(str(error)) from None
    for row in rows:
        if is_named(row, value) or short_id(row["id"]).startswith(value) or row["id"] == value:
            return float(row["_created"])
    raise CliError(f"no image '{value}'; see 'orc images'")


def image_columns(whole: bool, digests: bool, now: float) -> list[Column]:
    columns = [column("REPOSITORY", "repository"), column("TAG", "tag")]
    if digests:
        columns.append(column("DIGEST", "digest"))
    return [
        *columns,
        short("IMAGE ID", "id", whole),
        Column("CREATED", lambda r: format_ago(r["_created"], now) if r["_created"] else ""),
        Column("SIZE", lambda row: format_size(row["size"])),
        Column("NODES", lambda row: ", ".join(row["nodes"])),
    ]


def service_document(message: Any) -> Row:
    """A service in full, its spec included, with how many of its tasks run."""
    service: Row = jsonable(from_proto(message.service))
    return {**service, "name": service["spec"]["name"], "running": message.running}
