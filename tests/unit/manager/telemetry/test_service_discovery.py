# SPDX-License-Identifier: Apache-2.0
"""Scrape targets for Prometheus."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.telemetry.service_discovery import (
    AGENTS,
    MANAGERS,
    SERVICES,
    manager_targets,
    scrape_targets,
)
from orchestrator.model.administration.managers import Manager
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, NetworkAttachment, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

NODE = Node(
    id="n1",
    state=NodeState.READY,
    description=NodeDescription(hostname="host1", address="10.0.0.1", metrics_port=7424),
)


def service(**labels: str) -> Service:
    dotted = {key.replace("_", "."): value for key, value in labels.items()}
    return Service(id="s1", spec=ServiceSpec(name="web", labels=dotted))


def task(state: TaskState = TaskState.RUNNING, **container_labels: str) -> Task:
    dotted = {key.replace("_", "."): value for key, value in container_labels.items()}
    return Task(
        id="t1",
        service_id="s1",
        service_name="web",
        slot=2,
        node_id="n1",
        spec=TaskSpec(
            container=ContainerSpec(image="web:1", labels=dotted),
            networks=(NetworkAttachment("front"), NetworkAttachment("back")),
        ),
        status=TaskStatus(state, addresses={"back": "10.2.0.5", "front": "10.1.0.5"}),
    )


def test_managers_and_agents() -> None:
    silent = replace(NODE, id="n2", state=NodeState.DOWN)
    old = replace(NODE, id="n3", description=replace(NODE.description, metrics_port=0))
    six = replace(NODE, id="n4", description=replace(NODE.description, address="fd00::4"))
    found = scrape_targets(ClusterView.of([NODE, silent, old, six]), ["10.0.0.9:7422"])
    assert found == [
        {"targets": ["10.0.0.9:7422"], "labels": {"job": MANAGERS, "__scheme__": "https"}},
        *(
            {
                "targets": [target],
                "labels": {"job": AGENTS, "__scheme__": "https", "node": "host1", "node_id": id},
            }
            for id, target in (
                ("n1", "10.0.0.1:7424"),
                ("n2", "10.0.0.1:7424"),
                ("n4", "[fd00::4]:7424"),
            )
        ),
    ]


def test_every_manager_that_has_joined_is_a_target() -> None:
    view = ClusterView.of(
        [
            Manager(id="m2", address="10.0.0.12", port=7420),
            Manager(id="m1", address="10.0.0.11", port=7420),
            Manager(id="m3", address="10.0.0.13", port=7420, joining=True),
        ]
    )
    assert manager_targets(view) == ["10.0.0.11:7422", "10.0.0.12:7422"], "also those that are down"


def test_a_task_is_discovered_by_labels_of_its_service() -> None:
    view = ClusterView.of([NODE, service(prometheus_port="9100"), task()])
    (found,) = scrape_targets(view, [], SERVICES)
    assert found == {
        "targets": ["10.1.0.5:9100"],
        "labels": {
            "job": SERVICES,
            "__scheme__": "http",
            "__metrics_path__": "/metrics",
            "service": "web",
            "name": "web.2",
            "task": "t1",
            "slot": "2",
            "stack": "",
            "node": "host1",
        },
    }


def test_service_labels_override_container_labels() -> None:
    asked = task(prometheus_port="1", prometheus_path="/m", prometheus_network="back")
    view = ClusterView.of([NODE, service(prometheus_port="9100", prometheus_scheme="https"), asked])
    (found,) = scrape_targets(view, [], SERVICES)
    assert found["targets"] == ["10.2.0.5:9100"]
    assert found["labels"]["__metrics_path__"] == "/m"
    assert found["labels"]["__scheme__"] == "https"


@pytest.mark.parametrize(
    ("made", "of"),
    [
        (task(), service()),
        (task(), service(prometheus_port="http")),
        (task(TaskState.STARTING), service(prometheus_port="9100")),
        (task(TaskState.FAILED), service(prometheus_port="9100")),
        (task(), service(prometheus_port="9100", prometheus_network="elsewhere")),
    ],
    ids=["not asked", "no port", "not yet", "no more", "not on that network"],
)
def test_no_target(made: Task, of: Service) -> None:
    assert scrape_targets(ClusterView.of([NODE, of, made]), [], SERVICES) == []
