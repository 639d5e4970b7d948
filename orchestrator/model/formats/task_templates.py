# SPDX-License-Identifier: Apache-2.0
"""Templates in specs (`{{.Task.Slot}}` and others), filled in for each task.

`{{.Task.Slot}}` and the like stand in the names of volumes, which are filled in where a volume is
looked for (`mounts.expand`). The variables and the hostname of a service's containers are templates
(`gotemplate`), which are filled in when a task is sent to its node; so are its labels, but a label
that is no template of ours stays as it is, as in Docker. A label of a service or node that is not
there is empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.model.formats.gotemplate import BadTemplate, Expression, Labels, Template
from orchestrator.model.mounts import TEMPLATE_FIELDS
from orchestrator.model.specs import ContainerSpec, ServiceMode

if TYPE_CHECKING:
    from orchestrator.model.nodes import Node
    from orchestrator.model.services import Service
    from orchestrator.model.tasks import Task

MOST = 1 << 20
"""Characters and steps of one template."""

PLACEHOLDER = re.compile(r"\{\{\s*\.(\w+\.\w+)(?:\.([^\s{}]+))?\s*\}\}")
_PLACE = re.compile(r"\.(\w+\.\w+)(?:\.([^\s{}|()]+))?")
_LABELS = ("Service.Labels", "Node.Labels")
_PLATFORM = "Node.Platform"
_FIELDS = frozenset({*TEMPLATE_FIELDS, "Node.Address"})


def task_fields(task: Task) -> dict[str, str]:
    """The fields of a task that are known before it has a node."""
    return {
        "Task.Slot": str(task.slot),
        "Task.ID": task.id,
        "Task.Name": task.name,
        "Service.ID": task.service_id,
        "Service.Name": task.service_name,
    }


def node_fields(node: Node) -> dict[str, str]:
    """The fields of a node."""
    return {"Node.ID": node.id, "Node.Hostname": node.description.hostname or node.id}


def check_place(field: str, label: str | None) -> None:
    """Raise ValueError for an unknown placeholder of a template."""
    if (field in _LABELS) if label else (field in _FIELDS):
        return
    if field == _PLATFORM and label in ("Architecture", "OS"):
        return
    whole = f"{field}.{label}" if label else field
    known = sorted("{{." + name + "}}" for name in _FIELDS)
    known += ["{{." + name + ".NAME}}" for name in _LABELS]
    known += ["{{.Node.Platform.Architecture}}", "{{.Node.Platform.OS}}"]
    raise ValueError("template {{." + whole + "}} is not known; known are " + ", ".join(known))


@dataclass(frozen=True, slots=True)
class Facts:
    """The values for the templates of a task on its node."""

    fields: Mapping[str, str]
    labels: Mapping[str, Mapping[str, str]]

    def value(self, field: str, label: str | None) -> str:
        """Of a place, by its field and label."""
        if label:
            return self.labels.get(field, {}).get(label, "")
        return self.fields.get(field, "")

    @property
    def tree(self) -> dict[str, dict[str, Any]]:
        """The dot of a template."""
        found: dict[str, dict[str, Any]] = {}
        for path, text in self.fields.items():
            noun, _, name = path.partition(".")
            found.setdefault(noun, {})[name] = text
        for path, labels in self.labels.items():
            noun, _, name = path.partition(".")
            known = dict(labels) if path == _PLATFORM else Labels(labels)
            found.setdefault(noun, {})[name] = known
        return found


def facts(task: Task, service: Service | None, node: Node) -> Facts:
    """The values for the templates of a task on its node."""
    return Facts(
        {**task_fields(task), **node_fields(node), "Node.Address": node.description.address},
        {
            "Service.Labels": service.spec.labels if service else {},
            "Node.Labels": {**node.description.labels, **node.labels},
            _PLATFORM: {"Architecture": node.description.arch, "OS": "linux"},
        },
    )


EXAMPLES = Facts(
    dict.fromkeys(_FIELDS, "1"),
    {
        **{name: {"NAME": "1"} for name in _LABELS},
        _PLATFORM: {"Architecture": "x86_64", "OS": "linux"},
    },
)
"""An example value for each placeholder, to check a template with."""


class UnknownPlace(BadTemplate):
    """A template has an unknown placeholder."""


def place(action: str) -> Expression | None:
    """What evaluates an action that is a place, in which a label may have any name. Raises
    BadTemplate for one that is unknown."""
    match = _PLACE.fullmatch(action)
    if match is None:
        return None
    field, label = match[1], match[2]
    try:
        check_place(field, label)
    except ValueError as error:
        raise UnknownPlace(str(error)) from None
    noun, name = field.split(".")

    def evaluate(scope: Mapping[str, Any]) -> Any:
        found = scope["$"][noun].get(name, "")
        return found.get(label, "") if label else found

    return evaluate


def with_examples(spec: ContainerSpec) -> ContainerSpec:
    """The container of a service with templates filled with examples, so that it can be checked.
    Raises ValueError for an invalid template."""
    tree = EXAMPLES.tree

    def example(text: str, what: str) -> str:
        try:
            template = Template(text, place=place)
            template.check(tree)
            return template.render(tree, MOST)
        except BadTemplate as error:
            words = f'{what}: {error}; two braces that are text are written {{{{"{{{{"}}}}'
            raise ValueError(words) from None

    return _filled(spec, example, _unless_unknown(tree))


def filled(spec: ContainerSpec, task: Task, service: Service, node: Node) -> ContainerSpec:
    """The container of a service's task with its templates filled in."""
    tree = facts(task, service, node).tree

    def fill(text: str, _what: str) -> str:
        try:
            return Template(text, place=place).render(tree, MOST)
        except BadTemplate:
            return ""  # it was checked before, so only the labels' values can make it too long

    return _filled(_with_job(spec, task, service), fill, _unless_unknown(tree))


def _unless_unknown(tree: Mapping[str, Any]) -> Callable[[str], str]:
    """What fills in a text if it is a template of ours. Raises ValueError for an unknown place."""

    def fill(text: str) -> str:
        for match in PLACEHOLDER.finditer(text):
            check_place(match[1], match[2])
        try:
            return Template(text, place=place).render(tree, MOST)
        except BadTemplate:
            return text

    return fill


def _with_job(spec: ContainerSpec, task: Task, service: Service) -> ContainerSpec:
    """With the environment variables of a job's task (index, run), unless the user set them."""
    if not task.job_run:
        return spec
    own = {"ORC_JOB_INDEX": task.slot, "ORC_JOB_RUN": task.job_run}
    if service.spec.mode is ServiceMode.REPLICATED_JOB:
        own["ORC_JOB_COMPLETIONS"] = service.spec.replicas
    said = {entry.partition("=")[0] for entry in spec.env}
    more = tuple(f"{key}={value}" for key, value in own.items() if key not in said)
    return replace(spec, env=(*more, *spec.env))


def _filled(
    spec: ContainerSpec, fill: Callable[[str, str], str], label: Callable[[str], str]
) -> ContainerSpec:
    texts = (*spec.env, spec.hostname, *spec.labels.values())
    if not any("{{" in text for text in texts):
        return spec

    def entry(text: str) -> str:
        return fill(text, f"variable {text.partition('=')[0]}") if "{{" in text else text

    return replace(
        spec,
        env=tuple(map(entry, spec.env)),
        hostname=fill(spec.hostname, "hostname") if "{{" in spec.hostname else spec.hostname,
        labels={k: label(text) if "{{" in text else text for k, text in spec.labels.items()},
    )
