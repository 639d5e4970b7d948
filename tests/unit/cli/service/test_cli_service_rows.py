# SPDX-License-Identifier: Apache-2.0
"""What is shown of services and their tasks, and of what they say."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from scripted_manager import Refusal, Relay
from servicekit import MIB, NODES, Refused, Run, task

from orchestrator.cli.app.contexts import save_context
from orchestrator.cli.rpc import log_resumption
from orchestrator.cli.service import log_commands, service_commands
from orchestrator.cli.service.service_rows import task_error
from orchestrator.model.convert import to_proto
from orchestrator.model.formats.log_position import LogPosition
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import control_pb2 as pb


def test_error_of_a_preempted_task_names_the_one_that_has_its_room() -> None:
    stopped = Task(
        id="t1",
        preempted_by="top.1",
        desired_state=TaskState.SHUTDOWN,
        status=TaskStatus(TaskState.SHUTDOWN, exit_code=7),
    )
    assert task_error(stopped) == "preempted by top.1"
    # Its replacement waits, for a reason of its own.
    waiting = TaskStatus(TaskState.PENDING, message="no suitable node")
    next_one = replace(stopped, desired_state=TaskState.RUNNING, status=waiting)
    assert task_error(next_one) == "no suitable node"


@pytest.fixture
def services(manager: Any) -> Any:
    manager.script.answers["ListServices"] = pb.ListServicesReply(
        services=[
            {
                "service": {
                    "id": "svc1aaaaaaaaaaaa",
                    "created_at": 60,
                    "image_digest": "sha256:ab",
                    "spec": {
                        "name": "web",
                        "labels": {"tier": "front"},
                        "replicas": 6,
                        "task": {
                            "container": {"image": "hello:1", "stop_grace": 10},
                            "ports": [{"published": 8080, "target": 80}],
                            "limit": {"memory": 64 * MIB},
                        },
                    },
                },
                "running": 5,
                "desired": 6,
            },
            {
                "service": {"id": "svc2", "spec": {"name": "agent", "mode": "MODE_GLOBAL"}},
                "running": 3,
                "desired": 3,
            },
        ]
    )
    return manager.script


def test_service_ls(services: Any, run: Run) -> None:
    assert run("service", "ls").stdout.splitlines() == [
        "ID             NAME    MODE         REPLICAS   IMAGE     PORTS",
        "svc2           agent   global       3/3",
        "svc1aaaaaaaa   web     replicated   5/6        hello:1   *:8080->80/tcp",
    ]
    rows = json.loads(run("service", "ls", "--format", "json", "--filter", "label=tier").stdout)
    promised = {
        "id": "svc1aaaaaaaaaaaa",
        "name": "web",
        "mode": "replicated",
        "replicas": 6,
        "running": 5,
        "image": "hello:1",
        "ports": [{"published": 8080, "target": 80, "protocol": "tcp", "mode": "ingress"}],
    }
    assert [row.items() >= promised.items() for row in rows] == [True]
    assert run("service", "ls", "-q", "--filter", "mode=global").stdout == "svc2\n"


def test_service_inspect(services: Any, run: Run) -> None:
    document = json.loads(run("service", "inspect", "web").stdout)[0]
    assert document["created_at"] == "1970-01-01T00:01:00.000Z"
    assert document["updated_at"] is None
    assert document["spec"]["mode"] == "replicated"
    assert document["spec"]["task"]["restart"]["condition"] == "any"
    assert document["spec"]["task"]["limit"] == {"shares": 0, "memory": 64 * MIB}
    pretty = run("service", "inspect", "--pretty", "web").stdout
    assert "Limit:      64MiB" in pretty
    assert "Running:    5 of 6" in pretty


def test_service_ps(manager: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_commands, "time", SimpleNamespace(time=lambda: 100.0))
    running: dict[str, Any] = {
        **task(1, "RUNNING", identifier="new000000000000", created_at=90.0),
        "spec": {"container": {"image": "hello:1"}},
    }
    running["status"] |= {"at": 97.0, "started_at": 97.0, "addresses": {"default": "10.128.1.7"}}
    failed = task(1, "FAILED", identifier="old", created_at=10.0)
    failed["status"] |= {"at": 80.0, "started_at": 70.0, "exit_code": 3}
    pending = task(2, "PENDING", node="", message="no suitable node (1 node: down)")
    manager.script.answers["ListTasks"] = pb.ListTasksReply(
        tasks=[pending, failed, running], hostnames=NODES
    )
    heading, *lines = run("service", "ps", "web").stdout.splitlines()
    assert heading.split("  ")[0] == "ID"
    assert [
        name
        for name in ("NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR")
        if name not in heading
    ] == []
    assert lines[0].startswith("new000000000   web.1       hello:1   node1   Running ")
    assert lines[0].endswith("Running 3 seconds ago")
    assert lines[1].startswith("old             \\_ web.1 ")
    assert re.split(r" {2,}", lines[1])[-3:] == [
        "Shutdown",
        "Failed 20 seconds ago",
        "exit status 3",
    ]
    assert lines[2].endswith("no suitable node (1 node: down)")
    rows = json.loads(run("service", "ps", "web", "--format", "json").stdout)
    promised = {
        "id": "new000000000000",
        "name": "web.1",
        "service": "web",
        "slot": 1,
        "node": "node1",
        "state": "running",
        "desired_state": "running",
        "error": "",
        "exit_code": None,
        "image": "hello:1",
        "addresses": {"default": "10.128.1.7"},
        "started_at": "1970-01-01T00:01:37.000Z",
    }
    assert rows[0].items() >= promised.items()
    assert (rows[1]["exit_code"], rows[1]["error"]) == (3, "exit status 3")
    assert (rows[2]["node"], rows[2]["started_at"]) == ("", None)

    def ids(*filters: str) -> list[str]:
        words = [word for each in filters for word in ("--filter", each)]
        return run("service", "ps", "web", "-q", *words).stdout.split()

    assert ids("desired-state=shutdown") == ["old"]
    assert ids("state=running") == ["new000000000000"]
    assert ids("node=node1", "desired-state=running") == ["new000000000000"]
    assert ids("name=web.2") == ["t2"]


def test_service_rm(manager: Any, run: Run) -> None:
    manager.script.answers["RemoveService"] = pb.RemoveServiceReply(id="svc1")
    manager.script.answers["ListServices"] = pb.ListServicesReply()
    manager.script.answers["ListTasks"] = pb.ListTasksReply()
    assert run("service", "rm", "web", "db").stdout == "web\ndb\n"
    assert manager.script.request("RemoveService").service == "db"


def test_service_rm_waits_until_the_tasks_have_stopped(manager: Any, run: Run) -> None:
    states = [TaskState.RUNNING, TaskState.PENDING, TaskState.SHUTDOWN]
    looks = iter(states)
    manager.script.answers["RemoveService"] = pb.RemoveServiceReply(id="svc1")

    def tasks(request: Any) -> Any:
        other = Task(id="t0", service_id="svc2", status=TaskStatus(TaskState.RUNNING))
        web = Task(id="t1", service_id="svc1", status=TaskStatus(next(looks)))
        return pb.ListTasksReply(tasks=map(to_proto, (other, web)))

    manager.script.answers["ListTasks"] = tasks
    assert run("service", "rm", "--detach", "web").stdout == "web\n"
    assert len(list(looks)) == len(states)
    looks = iter(states)
    assert run("service", "rm", "web").stdout == "web\n"
    assert not list(looks)


def test_long_removal_prints_progress_and_ctrl_c_detaches(
    manager: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.script.answers["RemoveService"] = pb.RemoveServiceReply(id="svc1")
    tasks = [
        Task(id=f"t{slot}", service_id="svc1", service_name="web", slot=slot) for slot in (1, 2)
    ]
    manager.script.answers["ListTasks"] = pb.ListTasksReply(tasks=map(to_proto, tasks))
    clock = iter((0.0, 0.5, 2.0, 3.0))
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt

    fake = SimpleNamespace(monotonic=lambda: next(clock), sleep=sleep)
    monkeypatch.setattr("orchestrator.cli.service.convergence.time", fake)
    done = run("service", "rm", "web")
    assert (done.exit_code, done.stdout) == (130, "web\n")
    assert done.stderr.splitlines() == [
        "waiting for 2 tasks of web to stop",
        "orc: detached; the removal continues in the background",
    ]


def _removing(request: Any) -> Any:
    if request.service == "gone":
        raise Refusal(grpc.StatusCode.UNAVAILABLE, "the store does not answer")
    if request.service == "wbe":
        raise Refusal(grpc.StatusCode.NOT_FOUND, "no service 'wbe'; did you mean 'web'?")
    return pb.RemoveServiceReply(id=request.service)


def test_service_rm_continues_after_a_refusal(manager: Any, run: Run) -> None:
    manager.script.answers["RemoveService"] = _removing
    manager.script.answers["ListServices"] = pb.ListServicesReply()
    manager.script.answers["ListTasks"] = pb.ListTasksReply()
    done = run("service", "rm", "web", "gone", "wbe", "db")
    assert (done.exit_code, done.stdout.split()) == (1, ["web", "db"])
    assert done.stderr.splitlines() == [
        "orc: the store does not answer",
        "orc: no service 'wbe'; did you mean 'web'?",
    ]


def test_logs(manager: Any, run: Run) -> None:
    manager.script.answers["Logs"] = [
        pb.LogBatch(
            task_name="web.1", node="node1", records=[pb.LogRecord(line=b"hello\n", at=60)]
        ),
        pb.LogBatch(
            task_name="web.10",
            node="node2",
            records=[
                pb.LogRecord(line=b"\xff bad", stderr=True, at=61),
                pb.LogRecord(line=b"good", at=61),
            ],
        ),
        pb.LogBatch(
            node="node3", records=[pb.LogRecord(notice=True, line=b"node3 does not answer")]
        ),
        pb.LogBatch(task_name="web.1", node="node1", records=[pb.LogRecord(line=b"again", at=62)]),
    ]
    began = time.time()
    result = run("service", "logs", "-f", "--tail", "5", "--since", "10m", "web")
    assert result.exit_code == 0
    assert result.stdout == "web.1@node1 | hello\nweb.10@node2 | good\nweb.1@node1  | again\n"
    assert result.stderr_bytes == b"web.10@node2 | \xff bad\norc: node3 does not answer\n"
    request = manager.script.request("Logs")
    assert (request.service, request.follow, request.tail) == ("web", True, 5)
    assert began <= request.since + 600 <= time.time()
    assert run("service", "logs", "--raw", "web").stdout == "hello\ngood\nagain\n"
    assert manager.script.request("Logs").tail == -1
    stamped = run("service", "logs", "--raw", "-t", "web").stdout.splitlines()
    assert stamped[0] == "1970-01-01T00:01:00.000Z hello"


@pytest.mark.parametrize(("tail", "since"), [("all", 0.0), ("9", 60.0)])
def test_followed_logs_continue_with_another_manager(
    manager: Any, run: Run, relay: Relay, monkeypatch: pytest.MonkeyPatch, tail: str, since: float
) -> None:
    monkeypatch.setattr(log_commands, "RECONNECT_PAUSE", 0.01)
    save_context(replace(manager.context, endpoints=(relay.endpoint,)))
    calls: list[int] = []
    heard = threading.Semaphore(0)

    class Heard(LogPosition):
        def advance(self, records: Any) -> None:
            super().advance(records)
            heard.release()

    monkeypatch.setattr(log_resumption, "LogPosition", Heard)

    def lines(task: str, *said: tuple[bytes, float]) -> Any:
        records = [pb.LogRecord(line=line, at=at) for line, at in said]
        return pb.LogBatch(task_id=task, records=records)

    def answer(request: Any) -> Iterator[Any]:
        calls.append(1)
        yield lines("t1", (b"a", 60), (b"b", 61), (b"b", 61))
        yield lines("t2", (b"x", 60))
        if len(calls) == 1:
            for _ in range(2):
                heard.acquire()
            relay.cut()
        yield lines("t1", (b"b", 61), (b"c", 62))
        yield lines("t2", (b"y", 60), (b"z", 70))

    manager.script.answers["Logs"] = answer
    result = run("service", "logs", "--raw", "-f", "--tail", tail, "web")
    assert result.exit_code == 0
    assert result.stdout.split() == ["a", "b", "b", "x", "b", "c", "y", "z"]
    (line,) = result.stderr.splitlines()
    assert line.endswith(" broke; is it still running? (the log continues when a manager is back)")
    again = manager.script.request("Logs")
    assert (again.since, again.tail, again.follow) == (since, -1, True)


def test_only_followed_logs_wait_for_a_lost_manager(
    manager: Any, refused: Refused, relay: Relay
) -> None:
    save_context(replace(manager.context, endpoints=(relay.endpoint,)))

    def answer(request: Any) -> Iterator[Any]:
        relay.cut()
        yield pb.LogBatch()

    manager.script.answers["Logs"] = answer
    assert "broke; is it still running?" in refused("service", "logs", "web")


def test_cut_connection_is_not_reported_as_a_certificate_error(
    manager: Any, refused: Refused, relay: Relay
) -> None:
    save_context(replace(manager.context, endpoints=(relay.endpoint,)))
    relay.cut_next()
    assert "broke; is it still running?" in refused("service", "logs", "web")


def test_logs_errors(manager: Any, refused: Refused) -> None:
    line = "no service or task 'weeb'; did you mean 'web'?"
    manager.script.answers["Logs"] = [Refusal(grpc.StatusCode.NOT_FOUND, line)]
    assert refused("service", "logs", "weeb") == line
    assert "'x' is not a number of lines" in refused("service", "logs", "-n", "x", "w", status=2)
    assert "since 'x' is not understood" in refused("service", "logs", "--since=x", "w", status=2)
