"""Waiting until a drained node has no task of a service left."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from orchestrator.cli.client import RECONNECT_PAUSE, Client, ManagerLost
from orchestrator.cli.groups import INTERRUPTED, NotConverged
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.units import format_duration
from orchestrator.pb import control_pb2

PATIENCE = 120.0
"""Seconds that a drain is waited for, besides its deadline, unless told otherwise."""
_LOOK = 0.2
"""Seconds between two looks at the node's tasks."""
_SPEAK = 1.0
"""Least seconds between two lines of progress."""


def until_empty(client: Client, node_id: str, name: str, timeout: float) -> None:
    """Wait until no task of a service is left on the node, with progress on stderr. Ctrl-C
    detaches: it says so and exits. Raises NotConverged, with what is left and why, after `timeout`
    seconds."""
    deadline = time.monotonic() + timeout
    said_at, said = time.monotonic(), ""
    try:
        while left := _tasks(client, node_id, deadline):
            now = time.monotonic()
            if now >= deadline:
                raise NotConverged(
                    f"node {name} still has {_counted(left)} after {format_duration(timeout)}"
                    f"{_reasons(client, left)}; the drain goes on, see 'orc node ps {name}'"
                )
            if (text := f"{name}: {_counted(left)} left") != said and now - said_at >= _SPEAK:
                click.echo(text, err=True)
                said_at, said = now, text
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        click.echo(
            f"orc: detached; the drain goes on by itself, see 'orc node ps {name}'", err=True
        )
        sys.exit(INTERRUPTED)
    if kept := _containers(client, node_id):
        click.echo(
            f"{name}: {', '.join(kept)} {'stays' if len(kept) == 1 else 'stay'}: a drain moves the "
            "tasks of services, not containers of 'orc run'",
            err=True,
        )


def _tasks(client: Client, node_id: str, deadline: float) -> list[Any]:
    """The tasks of services there that have not ended. A manager that is lost is waited for."""
    while True:
        try:
            return [task for task in _active(client, node_id) if task.service_id]
        except ManagerLost:
            if time.monotonic() >= deadline:
                raise
            time.sleep(RECONNECT_PAUSE)


def _containers(client: Client, node_id: str) -> list[str]:
    """Names of the containers of no service there that have not ended."""
    return sorted(task.container_name for task in _active(client, node_id) if not task.service_id)


def _active(client: Client, node_id: str) -> list[Any]:
    tasks = client.call("ListTasks", control_pb2.ListTasksRequest(node=node_id)).tasks
    return [task for task in tasks if not is_terminal(TaskState(task.status.state))]


def _counted(tasks: Sequence[Any]) -> str:
    """Such as `2 tasks of web and 1 task of db`."""
    return " and ".join(
        f"{count} {'task' if count == 1 else 'tasks'} of {name}"
        for name, count in sorted(Counter(task.service_name for task in tasks).items())
    )


def _reasons(client: Client, left: Sequence[Any]) -> str:
    """Why the replacements of these tasks wait, if they do."""
    services = {task.service_id for task in left}
    tasks = client.call("ListTasks", control_pb2.ListTasksRequest()).tasks
    found = Counter(
        task.status.message
        for task in tasks
        if task.service_id in services and task.status.state == TaskState.PENDING
    )
    reasons = [reason for reason, _ in found.most_common(2) if reason]
    return f": {'; '.join(reasons)}" if reasons else ""
