# SPDX-License-Identifier: Apache-2.0
"""Two who change one service at once: the second is told, with what the first has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from click.testing import Result
from scripted_manager import Refusal

from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.pb import control_pb2 as pb
from orchestrator.pb import types_pb2 as types

Run = Callable[..., Result]

BASE = ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec(image="web:1", env=("A=1",))))


def with_env(*env: str, replicas: int = 1) -> ServiceSpec:
    container = replace(BASE.task.container, env=env)
    return replace(BASE, replicas=replicas, task=replace(BASE.task, container=container))


@pytest.fixture
def race(manager: Any) -> Callable[[ServiceSpec], Any]:
    """Make somebody else store a spec between our first look and our first write."""

    def begin(theirs: ServiceSpec) -> Any:
        script = manager.script
        looks = iter([Service("svc1", spec=BASE, revision=1)])
        now = Service("svc1", spec=theirs, revision=2)

        def listed(request: Any) -> Any:
            row = pb.ServiceRow(service=to_proto(next(looks, now)))
            return pb.ListServicesReply(services=[row])

        def written(request: Any) -> Any:
            if request.revision == 1:
                return Refusal(grpc.StatusCode.ABORTED, "changed by somebody else meanwhile")
            return types.Service(id="svc1", spec=request.spec, revision=3)

        script.answers["ListServices"] = listed
        script.answers["UpdateService"] = written
        return script

    return begin


def written(script: Any) -> ServiceSpec:
    spec: ServiceSpec = from_proto(script.request("UpdateService").spec)
    return spec


def test_concurrent_edit_of_other_fields_is_merged_and_reported(race: Any, run: Run) -> None:
    script = race(with_env("A=1", replicas=5))
    done = run("service", "update", "-d", "--env-add", "B=2", "web")
    assert done.exit_code == 0
    assert done.stderr == (
        "conflict: service 'web' was modified concurrently: replicas 1 -> 5; that is kept\n"
    )
    assert (written(script).replicas, written(script).task.container.env) == (5, ("A=1", "B=2"))
    assert from_proto(script.request("UpdateService").base).replicas == 5


def test_concurrent_edit_of_the_same_field_is_a_conflict(race: Any, run: Run) -> None:
    race(with_env("A=7", replicas=5))
    done = run("service", "update", "-d", "--env-add", "A=2", "web")
    assert done.exit_code == 1
    assert done.stderr == (
        "orc: conflict: service 'web' was modified concurrently: replicas 1 -> 5, env -A=1 +A=7; "
        "nothing was done, as this would modify env again: see 'orc service inspect web', then "
        "try again, or override it with 'orc service update --force'\n"
    )


def test_force_overrides(race: Any, run: Run) -> None:
    script = race(with_env("A=7"))
    done = run("service", "update", "-d", "--force", "--env-add", "A=2", "web")
    assert (done.exit_code, done.stderr) == (
        0,
        "conflict: service 'web' was modified concurrently: env -A=1 +A=7; this overrides it\n",
    )
    assert written(script).task.container.env == ("A=2",)


def test_concurrent_scaling_is_a_conflict(race: Any, run: Run) -> None:
    race(with_env("A=1", replicas=5))
    done = run("service", "scale", "-d", "web=3")
    assert done.exit_code == 1
    assert "replicas 1 -> 5; nothing was done, as this would modify replicas again" in done.stderr
