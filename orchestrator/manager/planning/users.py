"""Who uses a network, volume, secret or config, in the words of a listing or a refusal."""

from __future__ import annotations

from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.tasks import Task

STOPPING = ", which is stopping"
"""Follows the name of a task whose service was removed."""


def user(view: ClusterView, task: Task) -> str:
    """What needs the things that a task has: `service web`, `container db`, or the task itself if
    its service was removed and it has yet to stop."""
    if task.standalone:
        return f"container {task.name}"
    service = view.services.get(task.service_id)
    if service is None or service.removed:
        return f"task {task.name}{STOPPING}"
    return f"service {task.service_name}"


def in_order(users: set[str]) -> list[str]:
    """Services first, then tasks and containers, each by name."""
    kinds = ("service", "task", "container")
    return sorted(users, key=lambda each: (kinds.index(each.partition(" ")[0]), each))
