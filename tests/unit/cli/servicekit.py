# SPDX-License-Identifier: Apache-2.0
"""Services as the scripted manager tells of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from orchestrator.cli.service import convergence
from orchestrator.model.convert import to_proto
from orchestrator.model.specs import (
    ContainerSpec,
    NetworkAttachment,
    PortSpec,
    Protocol,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.pb import control_pb2 as pb
from orchestrator.pb import types_pb2 as types

Run = Callable[..., Result]
Refused = Callable[..., str]
MIB = 1 << 20


NODES = {"n1": "node1", "n2": "node2"}


def stored(spec: Any, revision: int = 5) -> Any:
    return types.Service(id="svc1", spec=spec, revision=revision)


def task(slot: int, state: str, *, node: str = "n1", identifier: str = "", **values: Any) -> Any:
    status = {"state": f"TASK_{state}", "message": values.pop("message", "")}
    status["exit_code"] = values.pop("exit_code", 0)
    defaults = {"desired_state": "TASK_RUNNING", "service_name": "web", "service_id": "svc1"}
    return {
        "id": identifier or f"t{slot}",
        "slot": slot,
        "node_id": node,
        "status": status,
        **defaults,
        **values,
    }


def progress(tasks: list[Any], desired: int, converged: bool = False, **values: Any) -> Any:
    service = {"id": "svc1", "spec": {"name": "web"}, "revision": values.pop("revision", 5)}
    return pb.ServiceProgress(
        service=service,
        tasks=tasks,
        desired=desired,
        converged=converged,
        hostnames=NODES,
        **values,
    )


def current(server: Any, spec: ServiceSpec, *revisions: int) -> None:
    """Let ListServices answer with `spec` at these revisions, one after the other."""
    left = list(revisions or [5])

    def answer(request: Any) -> Any:
        revision = left.pop(0) if len(left) > 1 else left[0]
        return pb.ListServicesReply(services=[{"service": stored(to_proto(spec), revision)}])

    server.answers["ListServices"] = answer


BASE = ServiceSpec(
    name="web",
    labels={"a": "1", "b": "2"},
    replicas=3,
    constraints=("node.role==worker",),
    task=TaskSpec(
        container=ContainerSpec(image="hello:1", env=("A=1", "B=2"), labels={"x": "y"}),
        ports=(PortSpec(8080, 80), PortSpec(53, 53, Protocol.UDP)),
        networks=(NetworkAttachment("front"),),
        force=2,
    ),
)


def accepting(manager: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A manager that accepts a service and says at once that it has converged."""
    monkeypatch.setattr(convergence, "RECONNECT_PAUSE", 0.01)
    answers = manager.script.answers
    answers["CreateService"] = lambda request: stored(request.spec)
    answers["UpdateService"] = lambda request: stored(request.spec, revision=6)
    answers["WatchService"] = [progress([task(1, "RUNNING")], 1, True, revision=6)]
    return manager.script
