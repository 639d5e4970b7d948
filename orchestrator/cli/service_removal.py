"""Waiting until removed services are gone, so that what they used can be removed next."""

from __future__ import annotations

import time
from collections.abc import Collection

from orchestrator.cli.client import Client
from orchestrator.cli.groups import NotConverged
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.units import format_duration
from orchestrator.pb import control_pb2

STOP_TIMEOUT = 120.0
"""Seconds that tasks have to stop."""
_LOOK = 0.1
"""Seconds between two looks whether they have."""


def until_stopped(client: Client, services: Collection[str]) -> None:
    """Wait until no task of these removed services, by id, is left that may run. Raises
    NotConverged, with the tasks that have not stopped, after `STOP_TIMEOUT`."""
    deadline = time.monotonic() + STOP_TIMEOUT
    while services and (left := _running(client, services)):
        if time.monotonic() > deadline:
            raise NotConverged(
                f"{', '.join(left)}: not stopped within {format_duration(STOP_TIMEOUT)}; "
                "see 'orc node ls'"
            )
        time.sleep(_LOOK)


def _running(client: Client, services: Collection[str]) -> list[str]:
    """Names of the tasks that have not ended, those that still wait for a node included."""
    tasks = client.call("ListTasks", control_pb2.ListTasksRequest()).tasks
    return sorted(
        f"{task.service_name}.{task.slot}"
        for task in tasks
        if task.service_id in services and not is_terminal(TaskState(task.status.state))
    )
