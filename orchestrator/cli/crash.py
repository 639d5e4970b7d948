"""What a user is shown of a task that crashed: how it ended, and the last lines that it logged."""

from __future__ import annotations

from collections.abc import Mapping

import click

from orchestrator.cli.client import Client
from orchestrator.cli.groups import CliError
from orchestrator.cli.rows import has_exit_code, task_error
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task
from orchestrator.model.units import format_duration
from orchestrator.pb import control_pb2

LINES = 10
"""Log lines that are shown."""
_TIMEOUT = 10.0
"""Seconds that a node has to send them."""


def crash_text(task: Task, monitor: float) -> str:
    """How a task crashed, such as `web.1 failed within 5s of its start: exit status 1`."""
    status = task.status
    exit_text = f"exit status {status.exit_code}"
    why = task_error(task) or exit_text
    if has_exit_code(task) and exit_text not in why:
        why = f"{why} ({exit_text})"
    if status.state is TaskState.REJECTED:
        return f"{task.name} was rejected: {why}"
    verb = "exited" if status.state is TaskState.COMPLETE else "failed"
    within = f" within {format_duration(monitor)} of its start"
    return f"{task.name} {verb}{'' if status.health is Health.UNHEALTHY else within}: {why}"


def show_last_lines(client: Client, task: Task, hostnames: Mapping[str, str]) -> None:
    """Print on stderr the last lines that a task logged. One that never ran logged nothing."""
    if not has_exit_code(task):
        return
    lines: list[bytes] = []
    trouble = ""
    request = control_pb2.LogsRequest(service=task.id, tail=LINES)
    try:
        for batch in client.stream("Logs", request, timeout=_TIMEOUT):
            lines += [record.line for record in batch.records if not record.notice]
    except TimeoutError:
        trouble = f"no answer in {format_duration(_TIMEOUT)}"
    except CliError as error:
        trouble = error.format_message()
    where = hostnames.get(task.node_id, task.node_id)
    if lines:
        click.echo(f"{task.name} on {where} logged last:", err=True)
    elif trouble:
        click.echo(f"the log of {task.name} on {where} cannot be read: {trouble}", err=True)
    else:
        click.echo(f"{task.name} on {where} logged nothing", err=True)
    for line in lines[-LINES:]:
        click.echo(f"  {line.decode(errors='replace').rstrip()}", err=True)
