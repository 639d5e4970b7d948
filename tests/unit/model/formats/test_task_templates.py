# SPDX-License-Identifier: Apache-2.0
"""Templates in specs, filled in with values of the task, service and node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.model.formats.task_templates import filled
from orchestrator.model.nodes import Node, NodeDescription
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, ServiceMode, ServiceSpec, TaskSpec
from orchestrator.model.tasks import Task
from orchestrator.model.validation.service_specs import InvalidSpec, validate_service, validate_task

TASK = Task(id="t1", service_id="s1", service_name="web", slot=3)
SERVICE = Service(id="s1", spec=ServiceSpec(name="web", labels={"tier": "front", "a.b": "dotted"}))
NODE = Node(
    id="n1",
    labels={"zone": "a"},
    description=NodeDescription(
        hostname="node1", address="192.0.2.1", labels={"disk": "ssd"}, arch="x86_64"
    ),
)


def container(*env: str, hostname: str = "", **labels: str) -> ContainerSpec:
    return ContainerSpec(image="web:1", env=env, hostname=hostname, labels=labels)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{.Service.Name}}-{{.Task.Slot}}", "web-3"),
        ("{{ .Task.ID }}/{{.Task.Name}}", "t1/web.3"),
        ("{{.Service.ID}} {{.Service.Labels.tier}} {{.Service.Labels.a.b}}", "s1 front dotted"),
        ("{{.Node.ID}} {{.Node.Hostname}} {{.Node.Address}}", "n1 node1 192.0.2.1"),
        ("{{.Node.Labels.zone}} {{.Node.Labels.disk}}", "a ssd"),
        ("[{{.Node.Labels.none}}]", "[]"),
        ("no {braces}", "no {braces}"),
        ('{{"{{"}} text }}', "{{ text }}"),
        ("{{.Node.Platform.Architecture}}/{{.Node.Platform.OS}}", "x86_64/linux"),
        ('{{if eq .Node.Hostname "node1"}}first{{else}}other{{end}}', "first"),
        ("{{range $k, $v := .Service.Labels}}{{$k}}:{{$v}} {{end}}", "a.b:dotted tier:front "),
        ('{{with index .Node.Labels "zone"}}in {{.}}{{end}}', "in a"),
        ('{{printf "%s.%s" .Service.Name .Task.Slot}}', "web.3"),
        ("{{.Service.Name | upper}}", "WEB"),
        ("{{$n := len .Service.Name}}{{if gt $n 2}}{{$n = 9}}{{end}}{{$n}}", "9"),
        ('{{if or (not .Node.Address) (and true (ne "a" "b"))}}yes{{end}}', "yes"),
    ],
)
def test_values(text: str, value: str) -> None:
    made = filled(container(f"A={text}", what=text), TASK, SERVICE, NODE)
    assert made.env == (f"A={value}",)
    assert made.labels == {"what": value}


def test_a_spec_without_templates_is_the_same_object() -> None:
    spec = container("A=1", hostname="web")
    assert filled(spec, TASK, SERVICE, NODE) is spec


def test_a_hostname() -> None:
    spec = container(hostname="{{.Service.Name}}-{{.Task.Slot}}")
    validate_service(ServiceSpec(name="web", task=TaskSpec(spec)))
    assert filled(spec, TASK, SERVICE, NODE).hostname == "web-3"
    with pytest.raises(InvalidSpec):  # a container of no service has none of these
        validate_task(TaskSpec(spec))


@pytest.mark.parametrize("text", ["{{.Task.Slott}}", "{{.Node.Labels}}", "{{.Task.Slot.x}}"])
def test_unknown_fields_in_templates_are_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"is not known; known are .*Node\.Labels\.NAME"):
        validate_service(ServiceSpec(name="web", task=TaskSpec(container(f"A={text}"))))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{if .Task.Slot}}", r"variable A: the template has a {{if}} without its {{end}}; two "),
        (
            "{{ x }}",
            r"variable A: the template has the unknown function 'x', .*known are if, range",
        ),
        ("{{.Task}}", None),
        ("{{if false}}{{.Node.Nme}}{{end}}", r"variable A: template {{.Node.Nme}} is not known"),
        ('{{env "X"}}', r"variable A: the template has the unknown function 'env'"),
        ("{{", r"{{ without its }}; two braces that are text are written {{\"{{\"}}"),
    ],
)
def test_no_action_is_taken_literally(text: str, words: str | None) -> None:
    spec = ServiceSpec(name="web", task=TaskSpec(container(f"A={text}")))
    if words is None:
        validate_service(spec)
        return
    with pytest.raises(InvalidSpec, match=words):
        validate_service(spec)


def test_a_label_that_is_no_template_of_ours_stays() -> None:
    text = "Host(`{{ normalize .Name }}`)"
    spec = container(rule=text)
    validate_service(ServiceSpec(name="web", task=TaskSpec(spec)))
    assert filled(spec, TASK, SERVICE, NODE).labels == {"rule": text}


def test_task_of_a_job_has_its_completion_index() -> None:
    task = replace(TASK, slot=3, job_run=2)
    spec = replace(SERVICE.spec, mode=ServiceMode.REPLICATED_JOB, replicas=7)
    job = replace(SERVICE, spec=spec)
    assert filled(ContainerSpec(env=("A={{.Task.Slot}}",)), task, job, NODE).env == (
        "ORC_JOB_INDEX=3",
        "ORC_JOB_RUN=2",
        "ORC_JOB_COMPLETIONS=7",
        "A=3",
    )
    own = filled(ContainerSpec(env=("ORC_JOB_INDEX=x",)), task, job, NODE).env
    assert own == ("ORC_JOB_RUN=2", "ORC_JOB_COMPLETIONS=7", "ORC_JOB_INDEX=x")
