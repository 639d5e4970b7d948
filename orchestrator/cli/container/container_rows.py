# SPDX-License-Identifier: Apache-2.0
"""Containers as rows: keys that scripts rely on, states and statuses in Docker's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.listings import Column, Row, column, jsonable, rfc3339, short
from orchestrator.cli.service.service_rows import (
    has_exit_code,
    health_text,
    health_word,
    port_row,
    task_error,
)
from orchestrator.model.convert import from_proto
from orchestrator.model.names import parse_image
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task
from orchestrator.model.units import format_age, format_ago, format_size

LIVE = ("running", "paused", "restarting", "starting", "orphan")
"""The states that `ps` shows by default."""
FILTERS = (
    *("id", "name", "status", "exited", "node", "ancestor", "label", "service", "before", "since"),
    *("volume", "network", "publish", "expose", "is-task", "health"),
)
"""Keys of `ps --filter`."""
STATES = ("created", "pending", *LIVE, "removing", "exited", "failed")


def container_state(task: Task) -> str:
    """A container's state in one word, Docker's where it has one."""
    status = task.status
    if status.state <= TaskState.PENDING:
        return "restarting" if task.restarts and task.not_before else "pending"
    if is_terminal(status.state):
        if task.desired_state is TaskState.REMOVE:
            return "removing"
        if task.standalone and task.run > status.run:
            return "restarting"
        return "exited" if has_exit_code(task) else "failed"
    if status.state is TaskState.RUNNING:
        return "paused" if status.paused else "running"
    if task.desired_state < TaskState.RUNNING:
        return "created"
    return "starting"


def container_row(message: Any, now: float) -> Row:
    """From a ContainerRow."""
    task: Task = from_proto(message.task)
    node: Node | None = from_proto(message.node) if message.HasField("node") else None
    status, spec = task.status, task.spec
    state = container_state(task)
    address = node.description.address if node else ""
    return {
        "id": task.id,
        "name": task.name,
        "image": spec.container.image,
        # Fields that an older manager does not send are taken from the spec, without the image's
        # part.
        "command": list(message.command) or spec.container.arguments((), ()),
        "node": node.description.hostname if node else task.node_id,
        "node_id": task.node_id,
        "node_state": node.state.name.lower() if node else "",
        "state": state,
        "exit_code": status.exit_code if has_exit_code(task) else None,
        "health": health_word(task),
        "error": task_error(task),
        "addresses": status.addresses,
        "ports": [{**port_row(port), "address": address} for port in spec.ports],
        "networks": list(spec.network_names),
        "mounts": [mount.source or mount.target for mount in spec.container.mounts],
        "service": task.service_name,
        "labels": spec.container.labels,
        "restarts": task.restarts,
        "oom_killed": status.oom_killed,
        "pid": status.pid,
        "created_at": rfc3339(task.created_at),
        "started_at": rfc3339(status.started_at),
        "finished_at": rfc3339(status.finished_at),
        "_targets": [mount.target for mount in spec.container.mounts],
        "_created_at": task.created_at,
        "_status": _status(task, state, node, now),
        "_created": format_ago(task.created_at, now),
    }


def orphan_row(message: Any, now: float) -> Row:
    """From a ContainerRow of an orphan: its state is `orphan` while it runs."""
    row = container_row(message, now)
    if row["state"] not in LIVE:
        return row
    return {**row, "state": "orphan", "_status": f"Orphan, {row['_status']}"}


def container_document(message: Any, now: float) -> Row:
    """The full document of a container: its row, and its task as stored."""
    row = {k: v for k, v in container_row(message, now).items() if not k.startswith("_")}
    task: Task = from_proto(message.task)
    stored: Row = jsonable(task)
    kept = ("image_digest", "desired_state", "run", "auto_remove", "constraints", "status", "spec")
    return {**row, **{key: stored[key] for key in kept}}


def _status(task: Task, state: str, node: Node | None, now: float) -> str:
    """Docker's STATUS column."""
    status = task.status
    match state:
        case "running" | "paused":
            text = f"Up {format_age(now - status.started_at)}"
            text += " (Paused)" if state == "paused" else health_text(task)
        case "exited" | "removing":
            text = f"Exited ({status.exit_code}) {format_ago(status.finished_at or now, now)}"
        case "restarting":
            text = f"Restarting ({status.exit_code})"
        case _:
            text = state.capitalize()
    error = task_error(task) if state in ("pending", "failed", "exited") else ""
    if error and error != f"exit status {status.exit_code}":
        text += f": {error}"
    if node is not None and node.state is NodeState.DOWN:
        text += f" (node {node.description.hostname} is down)"
    return text


def container_columns(whole: bool, sizes: bool = False) -> list[Column]:
    """The columns of `ps`; `sizes`: with the disk usage."""
    return [
        short("CONTAINER ID", "id", whole),
        column("IMAGE", "image"),
        Column("COMMAND", lambda row: _command(row["command"], whole)),
        column("CREATED", "_created"),
        column("STATUS", "_status"),
        Column("PORTS", lambda row: ", ".join(map(port_words, row["ports"]))),
        column("NODE", "node"),
        column("NAMES", "name"),
        *([Column("SIZE", _size)] if sizes else []),
    ]


def _size(row: Row) -> str:
    if row["size"] is None:
        return ""
    return f"{format_size(row['size'])} (virtual {format_size(row['size'] + row['image_size'])})"


def _command(words: Sequence[str], whole: bool) -> str:
    text = " ".join(words)
    if not whole and len(text) > 20:
        text = text[:19] + "…"
    return f'"{text}"' if text else ""


def port_words(port: Row) -> str:
    """Such as `10.0.0.1:8080->80/tcp`."""
    return f"{port['address']}:{port['published']}->{port['target']}/{port['protocol']}"


def matches(row: Row, filters: Mapping[str, Sequence[str]]) -> bool:
    """Docker's filters of `ps`: values of one key are alternatives, different keys must all
    hold."""
    return all(any(_holds(row, key, value) for value in values) for key, values in filters.items())


def with_moments(
    filters: Mapping[str, Sequence[str]], rows: Sequence[Row]
) -> dict[str, Sequence[str]]:
    """The filters with a creation time in place of each container that `before` and `since` name.
    Raises CliError for an unknown container."""
    found = dict(filters)
    for key in ("before", "since"):
        if key in filters:
            found[key] = [str(_made(value, rows)) for value in filters[key]]
    return found


def _made(word: str, rows: Sequence[Row]) -> float:
    for row in rows:
        if row["name"] == word or row["id"].startswith(word):
            return float(row["_created_at"])
    raise CliError(f"no container '{word}'; see 'orc ps -a'")


def _holds(row: Row, key: str, value: str) -> bool:
    match key:
        case "name":
            return value in row["name"]
        case "id":
            return bool(row["id"].startswith(value))
        case "status":
            return bool(row["state"] == value)
        case "exited":
            return str(row["exit_code"]) == value
        case "node":
            return bool(value == row["node"] or row["node_id"].startswith(value))
        case "before":
            return bool(row["_created_at"] < float(value))
        case "since":
            return bool(row["_created_at"] > float(value))
        case "volume":
            return value in row["mounts"] or value in row["_targets"]
        case "network":
            return value in row["networks"]
        case "publish" | "expose":
            return any(_is_port(port, key, value) for port in row["ports"])
        case "is-task":
            return bool(row["service"]) is (value.lower() in ("true", "1"))
        case "ancestor":
            return _same_image(row["image"], value)
        case "label":
            name, equals, wanted = value.partition("=")
            labels = row["labels"]
            return name in labels and (not equals or labels[name] == wanted)
        case _:
            return bool(row[key] == value)


def _is_port(port: Row, key: str, value: str) -> bool:
    """Whether a published port is one of `8080`, `8000-8080`, `53/udp`; `expose`: inside."""
    numbers, _, protocol = value.partition("/")
    first, _, last = numbers.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()):
        return False
    number = port["published" if key == "publish" else "target"]
    within = int(first) <= number <= int(last or first)
    return within and (not protocol or port["protocol"] == protocol)


def _same_image(image: str, wanted: str) -> bool:
    try:
        return str(parse_image(image)) == str(parse_image(wanted)) or (
            ":" not in wanted and parse_image(image).name == wanted
        )
    except ValueError:
        return False
