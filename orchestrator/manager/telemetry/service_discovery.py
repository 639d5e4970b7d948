# SPDX-License-Identifier: Apache-2.0
"""`GET /sd`: service discovery for Prometheus.

The format is Prometheus' HTTP service discovery (prometheus.io, "Writing HTTP service discovery"):
an array of groups, each with targets (HOST:PORT) and labels. `?job=` narrows it to one of

    orc-managers    every manager, `/metrics` over HTTPS
    orc-agents      every agent, including those that are down
    orc-services    every running task whose service's (or container's) labels request it:
                    prometheus.port, and optionally prometheus.path (default /metrics),
                    prometheus.scheme (http), prometheus.network (the task's first one)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.specs import STACK_LABEL
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

MANAGERS, AGENTS, SERVICES = JOBS = ("orc-managers", "orc-agents", "orc-services")
"""Values of the label `job`."""

_PORT, _PATH = "prometheus.port", "prometheus.path"
_SCHEME, _NETWORK = "prometheus.scheme", "prometheus.network"

Group = dict[str, Any]
"""One group of targets in Prometheus' format."""

WEB_PORT = 2
"""Port of a manager's HTTPS server, relative to its control port."""


def web_address(identity: ManagerIdentity) -> str:
    """HOST:PORT of a manager's HTTPS server."""
    return _host_port(identity.address, identity.port + WEB_PORT)


def manager_targets(view: ClusterView) -> list[str]:
    """HOST:PORT of the HTTPS servers of all managers that have joined, by id."""
    managers = sorted(view.managers.values(), key=lambda manager: manager.id)
    return [_host_port(each.address, each.port + WEB_PORT) for each in managers if not each.joining]


def other_pages(view: ClusterView, identity: ManagerIdentity) -> list[str]:
    """HOST:PORT of the HTTPS servers of the other managers that serve, by id."""
    managers = sorted(view.managers.values(), key=lambda manager: manager.id)
    return [
        _host_port(each.address, each.port + WEB_PORT)
        for each in managers
        if each.id in view.manager_presence and each.id != identity.manager_id
    ]


def scrape_targets(view: ClusterView, managers: Iterable[str], job: str = "") -> list[Group]:
    """All scrape targets. `managers` are HOST:PORT of their HTTPS servers; `job` is one of `JOBS`,
    or empty for all."""
    found: list[Group] = []
    if job in ("", MANAGERS):
        found += [_group(each, MANAGERS, {"__scheme__": "https"}) for each in managers]
    if job in ("", AGENTS):
        found += [
            _group(
                _host_port(node.description.address, node.description.metrics_port),
                AGENTS,
                {"__scheme__": "https", "node": node.description.hostname, "node_id": node.id},
            )
            for node in sorted(view.nodes.values(), key=lambda node: node.id)
            if node.description.metrics_port
        ]
    if job in ("", SERVICES):
        found += _tasks(view)
    return found


def _tasks(view: ClusterView) -> Iterator[Group]:
    for task in sorted(view.tasks.values(), key=lambda task: task.id):
        node = view.nodes.get(task.node_id)
        if (
            task.status.state is not TaskState.RUNNING
            or node is None
            or node.state is NodeState.DOWN
        ):
            continue
        service = view.services.get(task.service_id)
        labels = task.spec.container.labels | (service.spec.labels if service else {})
        port = labels.get(_PORT, "")
        address = _address(task, labels.get(_NETWORK, ""))
        if port.isdigit() and address:
            yield _group(
                _host_port(address, int(port)),
                SERVICES,
                {
                    "__scheme__": labels.get(_SCHEME, "http"),
                    "__metrics_path__": labels.get(_PATH, "/metrics"),
                    **_of_task(task, node, labels),
                },
            )


def _of_task(task: Task, node: Node, labels: Mapping[str, str]) -> dict[str, str]:
    return {
        "service": task.service_name,
        "name": task.name,
        "task": task.id,
        "slot": str(task.slot or ""),
        "stack": labels.get(STACK_LABEL, ""),
        "node": node.description.hostname,
    }


def _address(task: Task, network: str) -> str:
    """The task's address in a network, or in its first network."""
    has = task.status.addresses
    order = [network] if network else [each.network for each in task.spec.networks] + sorted(has)
    found = (has.get(name, "") for name in order)
    return next((address for address in found if address), "")


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _group(target: str, job: str, labels: Mapping[str, str]) -> Group:
    return {"targets": [target], "labels": {"job": job, **labels}}
