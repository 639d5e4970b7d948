# SPDX-License-Identifier: Apache-2.0
"""A task's spec as its node gets it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.formats.generic_resources import with_generic
from orchestrator.model.formats.task_templates import filled
from orchestrator.model.tasks import Task


def filled_in(view: ClusterView, task: Task) -> Task:
    """The task with its spec's placeholders replaced by values of task and node."""
    service, node = view.services.get(task.service_id), view.nodes.get(task.node_id)
    container = task.spec.container
    if service is not None and node is not None:
        container = filled(container, task, service, node)
    container = with_generic(container, task.generic_resources)
    if container is task.spec.container:
        return task
    return replace(task, spec=replace(task.spec, container=container))
