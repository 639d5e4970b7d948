"""Waiting until removed services are gone, so that what they used can be removed next."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Collection

import click

from orchestrator.cli.client import Client
from orchestrator.cli.groups import INTERRUPTED, NotConverged
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.units import format_duration
from orchestrator.pb import control_pb2

STOP_TIMEOUT = 120.0
"""Seconds that tasks have to stop."""
_LOOK = 0.1
"""Seconds between two looks whether they have."""
_SILENT = 1.0
"""Seconds after which the wait is explained."""


def until_stopped(client: Client, services: Collection[str], quiet: bool = False) -> None:
    """Wait until no task of these removed services, by id, is left that may run; what is waited for
    is said on stderr unless `quiet`. Ctrl-C detaches: it says so and exits.

    Raises NotConverged, with the tasks that have not stopped, after `STOP_TIMEOUT`."""
    begun = time.monotonic()
    said = ""
    try:
        while services and (left := _running(client, services)):
            waited = time.monotonic() - begun
            if waited > STOP_TIMEOUT:
                raise NotConverged(
                    f"{', '.join(sorted(left))}: not stopped within "
                    f"{format_duration(STOP_TIMEOUT)}; see 'orc node ls'"
                )
            text = f"waiting for {_counted(left.values())} to stop"
            if waited > _SILENT and text != said and not quiet:
                click.echo(text, err=True)
                said = text
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        click.echo("orc: detached; what was removed goes on stopping by itself", err=True)
        sys.exit(INTERRUPTED)


def _counted(services: Collection[str]) -> str:
    """Such as `2 tasks of web and 1 task of db`."""
    return " and ".join(
        f"{count} {'task' if count == 1 else 'tasks'} of {name}"
        for name, count in sorted(Counter(services).items())
    )


def _running(client: Client, services: Collection[str]) -> dict[str, str]:
    """The tasks that have not ended, those that still wait for a node included: the name of each,
    and of its service."""
    tasks = client.call("ListTasks", control_pb2.ListTasksRequest()).tasks
    return {
        f"{task.service_name}.{task.slot}": task.service_name
        for task in tasks
        if task.service_id in services and not is_terminal(TaskState(task.status.state))
    }
