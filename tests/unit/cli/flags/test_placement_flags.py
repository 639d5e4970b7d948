# SPDX-License-Identifier: Apache-2.0
"""The flags of order and place, to specs and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from click.testing import Result

from orchestrator.cli.service.service_rows import task_error
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.dependencies import Dependency
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import control_pb2 as pb
from orchestrator.pb import types_pb2 as types

Run = Callable[..., Result]


def test_service_rm_removes_dependents_first(manager: Any, run: Run) -> None:
    specs = [ServiceSpec(name="db"), ServiceSpec(name="web", depends_on=(Dependency("db"),))]
    manager.script.answers["RemoveService"] = pb.RemoveServiceReply(id="svc1")
    manager.script.answers["ListServices"] = pb.ListServicesReply(
        services=[pb.ServiceRow(service=to_proto(Service(id=s.name, spec=s))) for s in specs]
    )
    manager.script.answers["ListTasks"] = pb.ListTasksReply()
    assert run("service", "rm", "db", "web").stdout == "web\ndb\n"


def test_service_create_and_update_set_dependencies(manager: Any, run: Run) -> None:
    manager.script.answers["CreateService"] = types.Service(id="svc1")
    flags = ("--depends-on", "db:healthy", "--depends-on", "cache")
    run("service", "create", "-d", "--name", "web", *flags, "hello:1")
    spec = from_proto(manager.script.request("CreateService").spec)
    assert [str(each) for each in spec.depends_on] == ["db:healthy", "cache:started"]
    manager.script.answers["ListServices"] = pb.ListServicesReply(
        services=[pb.ServiceRow(service=to_proto(Service(id="svc1", spec=spec)))]
    )
    manager.script.answers["UpdateService"] = types.Service(id="svc1")
    run("service", "update", "-d", "--depends-on-rm", "db", "--depends-on-add", "cache:completed",
        "web")  # fmt: skip
    spec = from_proto(manager.script.request("UpdateService").spec)
    assert [str(each) for each in spec.depends_on] == ["cache:completed"]
    done = run("service", "create", "-d", "--depends-on", "db:ok", "hello:1")
    assert "'ok' is not one of started, healthy, completed" in done.stderr


def test_task_kept_or_stopped_while_disconnected_shows_it() -> None:
    kept = TaskStatus(TaskState.RUNNING, message="kept on node3, which is down")
    alone = TaskStatus(TaskState.SHUTDOWN, message="stopped: no manager reachable for 3s")
    assert task_error(Task(status=kept)) == kept.message
    assert task_error(Task(status=alone)) == alone.message
    assert task_error(Task(status=alone, desired_state=TaskState.SHUTDOWN)) == ""
