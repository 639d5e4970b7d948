# SPDX-License-Identifier: Apache-2.0
"""Lists of tasks, in pages.

The order is that of the services' names, then of their ids, slots, and from the newest to the
oldest task of a slot. A token is the place of a page's last task in that order. So a page needs no
state in a manager, any manager can continue, and what changes meanwhile neither repeats nor hides
other tasks.
"""

from __future__ import annotations

import heapq
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.manager.errors import invalid_argument
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.tasks import Task

MAX_PAGE = 10_000
"""Tasks of a page: about 20 MiB, of the 64 MiB that a message may have."""

Place = tuple[str, str, int, float, str]
"""Of a task in the order of lists."""


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A part of a list."""

    tasks: list[Task]
    next_token: str
    """Empty: these are the last."""


def task_page(groups: Iterable[Iterable[Task]], size: int, token: str) -> TaskPage:
    """The next `size` tasks (0: all) after the page that gave `token`. All tasks of a group must
    precede those of the next one. Raises RequestError for a token that no list gave."""
    left = min(size, MAX_PAGE) if size > 0 else 0
    after = _parse(token) if token else None
    found: list[Task] = []
    for group in groups:
        rest = (task for task in group if after is None or place(task) > after)
        if not left:
            found += sorted(rest, key=place)
            continue
        found += heapq.nsmallest(left + 1 - len(found), rest, key=place)
        if len(found) > left:
            return TaskPage(found[:left], _token(found[left - 1]))
    return TaskPage(found, "")


def by_service(view: ClusterView, token: str) -> Iterator[Iterable[Task]]:
    """All tasks, a group for each service, without services whose tasks precede the token."""
    after = _parse(token)[:2] if token else ("", "")
    groups = []
    for service_id in view.services_with_tasks:
        tasks = view.tasks_of_service(service_id).values()
        name = next(iter(tasks)).service_name
        if (name, service_id) >= after:
            groups.append((name, service_id, tasks))
    groups.sort(key=lambda group: group[:2])
    return (tasks for _, _, tasks in groups)


def place(task: Task) -> Place:
    """The place of a task in the order of lists."""
    return task.service_name, task.service_id, task.slot, -task.created_at, task.id


def _token(task: Task) -> str:
    return urlsafe_b64encode(json.dumps(place(task)).encode()).decode()


def _parse(token: str) -> Place:
    try:
        name, service_id, slot, created, id = json.loads(urlsafe_b64decode(token.encode()))
        return str(name), str(service_id), int(slot), float(created), str(id)
    except (Base64Error, ValueError, TypeError) as error:
        raise invalid_argument(
            "unknown page token: pass the next_page_token of the page before, or none"
        ) from error
