"""What a spec may say of the task that is made from it, in Docker's spelling.

`{{.Task.Slot}}` and the like stand in the names of volumes, which are filled in where a volume is
looked for (`mounts.expand`), and in the variables, the hostname and the labels of a service's
containers, which are filled in when a task is sent to its node. A label that is not there is empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.model.mounts import TEMPLATE_FIELDS
from orchestrator.model.specs import ContainerSpec, ServiceMode

if TYPE_CHECKING:
    from orchestrator.model.nodes import Node
    from orchestrator.model.services import Service
    from orchestrator.model.tasks import Task

PLACEHOLDER = re.compile(r"\{\{\s*\.(\w+\.\w+)(?:\.([^\s{}]+))?\s*\}\}")
_LABELS = ("Service.Labels", "Node.Labels")
_FIELDS = frozenset({*TEMPLATE_FIELDS, "Node.Address"})


def task_fields(task: Task) -> dict[str, str]:
    """What is known of a task before it has a node."""
    return {
        "Task.Slot": str(task.slot),
        "Task.ID": task.id,
        "Task.Name": task.name,
        "Service.ID": task.service_id,
        "Service.Name": task.service_name,
    }


def node_fields(node: Node) -> dict[str, str]:
    """What is known of a node."""
    return {"Node.ID": node.id, "Node.Hostname": node.description.hostname or node.id}


def check_place(field: str, label: str | None) -> None:
    """Refuse a place of a template that is unknown. Raises ValueError."""
    if (field in _LABELS) if label else (field in _FIELDS):
        return
    whole = f"{field}.{label}" if label else field
    known = sorted("{{." + name + "}}" for name in _FIELDS)
    known += ["{{." + name + ".NAME}}" for name in _LABELS]
    raise ValueError("template {{." + whole + "}} is not known; known are " + ", ".join(known))


def values(task: Task, service: Service | None, node: Node) -> Callable[[str, str | None], str]:
    """What fills a place, by its field and label, for a task on its node."""
    fields = {**task_fields(task), **node_fields(node), "Node.Address": node.description.address}
    labels = {
        "Service.Labels": service.spec.labels if service else {},
        "Node.Labels": {**node.description.labels, **node.labels},
    }

    def value(field: str, label: str | None) -> str:
        if label:
            return labels.get(field, {}).get(label, "")
        return fields.get(field, "")

    return value


def with_examples(spec: ContainerSpec) -> ContainerSpec:
    """The container of a service with something in each place that is to be filled in, so that it
    can be checked. Raises ValueError for a place that is unknown."""

    def example(field: str, label: str | None) -> str:
        check_place(field, label)
        return "1"

    return _filled(spec, example)


def filled(spec: ContainerSpec, task: Task, service: Service, node: Node) -> ContainerSpec:
    """The container of a service's task as its node is to make it."""
    return _filled(_with_job(spec, task, service), values(task, service, node))


def _with_job(spec: ContainerSpec, task: Task, service: Service) -> ContainerSpec:
    """With the variables that tell a job's task what its part is, but for those of its user."""
    if not task.job_run:
        return spec
    own = {"ORC_JOB_INDEX": task.slot, "ORC_JOB_RUN": task.job_run}
    if service.spec.mode is ServiceMode.REPLICATED_JOB:
        own["ORC_JOB_COMPLETIONS"] = service.spec.replicas
    said = {entry.partition("=")[0] for entry in spec.env}
    more = tuple(f"{key}={value}" for key, value in own.items() if key not in said)
    return replace(spec, env=(*more, *spec.env))


def _filled(spec: ContainerSpec, value: Callable[[str, str | None], str]) -> ContainerSpec:
    def fill(text: str) -> str:
        return PLACEHOLDER.sub(lambda match: value(match[1], match[2]), text)

    texts = (*spec.env, spec.hostname, *spec.labels.values())
    if not any("{{" in text for text in texts):
        return spec
    return replace(
        spec,
        env=tuple(map(fill, spec.env)),
        hostname=fill(spec.hostname),
        labels={key: fill(text) for key, text in spec.labels.items()},
    )
