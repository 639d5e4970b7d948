# SPDX-License-Identifier: Apache-2.0
"""Consumers of networks, volumes, secrets and configs, named for listings and errors."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.manager.planning.slots import waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.objects import Network
from orchestrator.model.states import is_terminal
from orchestrator.model.tasks import Task

STOPPING = ", which is stopping"
"""Follows the name of a task whose service was removed."""


def consumer(view: ClusterView, task: Task) -> str:
    """The consumer on whose behalf a task uses objects: `service web`, `container db`, or the task
    itself while it stops after its service was removed."""
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


def not_stopping(users: Iterable[str]) -> list[str]:
    """The consumers without tasks that are stopping because their service was removed."""
    return [each for each in users if not each.endswith(STOPPING)]


def network_consumers(view: ClusterView, network: Network) -> list[str]:
    """Consumers of a network, such as `service web`: services, and containers that have not ended.
    Ordered by kind and name.

    A task of a removed service that waits for a node is none: it is never placed.
    """
    found = {
        f"service {service.spec.name}"
        for service in view.services.values()
        if not service.removed and network.name in service.spec.task.network_names
    }
    for task in view.tasks.values():
        if network.name not in task.spec.network_names or _ended(task):
            continue
        if task.standalone or not (waits(task) and _removed(view, task.service_id)):
            found.add(consumer(view, task))
    return in_order(found)


def _removed(view: ClusterView, service_id: str) -> bool:
    service = view.services.get(service_id)
    return service is None or service.removed


def _ended(task: Task) -> bool:
    return is_terminal(task.status.state) and task.run <= task.status.run
