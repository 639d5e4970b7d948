"""`orc service`: flags to specs, edits, waiting, listings, logs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from click.testing import Result
from scripted_manager import Refusal, Relay

from orchestrator.cli import service, wait
from orchestrator.cli.context import save_context
from orchestrator.model.convert import from_proto
from orchestrator.model.specs import (
    ContainerSpec,
    NetworkAttachment,
    PortSpec,
    Protocol,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
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


@pytest.fixture
def server(manager: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A manager that accepts a service and says at once that it has converged."""
    monkeypatch.setattr(wait, "RECONNECT_PAUSE", 0.01)
    answers = manager.script.answers
    answers["CreateService"] = lambda request: stored(request.spec)
    answers["UpdateService"] = lambda request: stored(request.spec, revision=6)
    answers["WatchService"] = [progress([task(1, "RUNNING")], 1, True, revision=6)]
    return manager.script


def created(server: Any) -> ServiceSpec:
    spec: ServiceSpec = from_proto(server.request("CreateService").spec)
    return spec


# --- create: flags to a spec


def test_create_with_nothing_said(server: Any, run: Run) -> None:
    result = run("service", "create", "--name", "web", "hello")
    assert (result.exit_code, result.stdout) == (0, "svc1\n")
    expected = ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec(image="hello:latest")))
    assert created(server) == expected


def test_create_with_everything(
    server: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("# comment\n\nA=file\nC=1\nFROM_US\nNOT_THERE\n")
    monkeypatch.setenv("FROM_US", "here")
    monkeypatch.delenv("NOT_THERE", raising=False)
    words = shlex.split(
        """
        service create --name web --replicas 3 --network front --network back -p 8080:80
        --publish 53:53/udp -p published=443,target=8443,protocol=tcp -p 90-91:70-71 -e A=1
        --env B=x=y --label tier=front -l plain --container-label c=d --constraint
        node.labels.zone==a --reserve-cpu 0.5 --reserve-memory 64m --limit-cpu 2
        --limit-memory 1g --cpu-shares 256 --pids-limit 100 --restart-condition on-failure
        --restart-delay 1m30s --restart-max-attempts 3 --restart-window 1h
        --update-parallelism 2 --update-delay 500ms --stop-signal SIGINT --stop-grace-period
        3s -u 1000:www -w /srv --hostname box --read-only
        """
    )
    words += ["--env-file", str(env_file), "--entrypoint", "sh -c", "-d"]
    result = run(*words, "hello:1", "echo", "--flag", "-d")
    assert result.exit_code == 0, result.stderr
    container = ContainerSpec(
        image="hello:1",
        entrypoint=("sh", "-c"),
        command=("echo", "--flag", "-d"),
        env=("A=1", "C=1", "FROM_US=here", "B=x=y"),
        user="1000:www",
        workdir="/srv",
        hostname="box",
        labels={"c": "d"},
        stop_signal="SIGINT",
        stop_grace=3.0,
        read_only=True,
        pids_limit=100,
    )
    spec = TaskSpec(
        container=container,
        reservation=Resources(512, 64 * MIB),
        limit=Resources(2048, 1024 * MIB),
        shares=256,
        ports=(
            PortSpec(8080, 80),
            PortSpec(53, 53, Protocol.UDP),
            PortSpec(443, 8443),
            PortSpec(90, 70),
            PortSpec(91, 71),
        ),
        restart=RestartPolicy(RestartCondition.ON_FAILURE, 90.0, 3, 3600.0),
        networks=(NetworkAttachment("front"), NetworkAttachment("back")),
    )
    assert created(server) == ServiceSpec(
        name="web",
        labels={"tier": "front", "plain": ""},
        replicas=3,
        task=spec,
        update=UpdatePolicy(2, 0.5),
        constraints=("node.labels.zone==a",),
    )
    assert [name for name, _ in server.requests] == ["CreateService"]


def test_create_global_and_without_a_name(server: Any, run: Run, refused: Refused) -> None:
    assert run("service", "create", "--mode", "global", "-d", "team/hello_1:2").exit_code == 0
    assert created(server).mode is ServiceMode.GLOBAL
    assert created(server).name.startswith("hello-1-")
    line = refused("service", "create", "--mode=global", "--replicas=2", "hello", status=2)
    assert line == "a global service has a task on each node; it takes no --replicas"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--limit-memory", "12q", "hello"],
            "--limit-memory: memory '12q' is not a size; "
            "write a number with b, k, m or g, such as 64m",
        ),
        (["--limit-memory", "1m", "hello"], "memory limit 1MiB must be at least 6MiB"),
        (["--replicas", "-1", "hello"], "replicas -1 is negative; 0 is the least"),
        (["--replicas", "x", "hello"], "--replicas: 'x' is not a valid integer"),
        (["--cpu-shares", "0", "hello"], "--cpu-shares: 0 shares must be at least 2"),
        (["--reserve-cpu", "0", "hello"], "--reserve-cpu: 0 cores must be at least 0.002"),
        (["--reserve-cpu", "half", "hello"], "--reserve-cpu: cpus 'half' is not a number of cores"),
        (["Hello"], "image name 'Hello' has upper-case letters; write 'hello'"),
        (["--name", "We b", "hello"], "service name 'We b' is not a DNS label"),
        (["-p", "80", "hello"], "port '80' is not of the form PUBLISHED:TARGET"),
        (["-p", "127.0.0.1:80:80", "hello"], "is not of the form PUBLISHED:TARGET"),
        (["-p", "99999:80", "hello"], "port 99999 of '99999:80' is not in 1-65535"),
        (["-p", "80:80/sctp", "hello"], "has the protocol 'sctp'; tcp and udp are"),
        (["-p", "80-82:80-81", "hello"], "has ranges of different lengths"),
        (["-p", "published=80,to=80", "hello"], "is not of the form PUBLISHED:TARGET"),
        (["-p", "80:80", "-p", "80:81", "hello"], "port 80/tcp is published twice"),
        (["-e", "=x", "hello"], "env '=x' is not of the form KEY=value"),
        (["--env-file", "/none", "hello"], "cannot read env file /none: No such file"),
        (["--label", "=x", "hello"], "label '=x' is not of the form KEY=value"),
        (["--restart-condition", "never", "hello"], "'never' is none of any, on-failure, none"),
        (
            ["--restart-delay", "5", "hello"],
            "--restart-delay: duration '5' is not a length",
        ),
        (["--stop-signal", "SIGFOO", "hello"], "stop signal 'SIGFOO' is unknown"),
        (["--constraint", "zone", "hello"], "constraint 'zone' is not of the form"),
        ([], "IMAGE is missing; see 'orc service create --help'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    server: Any, refused: Refused, words: list[str], line: str
) -> None:
    name = [] if "--name" in words else ["--name", "web"]
    assert line in refused("service", "create", *name, *words, status=2)
    assert server.requests == []


def test_what_the_manager_refuses(server: Any, refused: Refused) -> None:
    line = "there is a service 'web' already; choose another name, or 'orc service update web'"
    server.answers["CreateService"] = Refusal(grpc.StatusCode.ALREADY_EXISTS, line)
    assert refused("service", "create", "--name", "web", "hello") == line


# --- update, scale


def current(server: Any, spec: ServiceSpec, *revisions: int) -> None:
    """Let ListServices answer with `spec` at these revisions, one after the other."""
    from orchestrator.model.convert import to_proto

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


def updated(server: Any) -> ServiceSpec:
    spec: ServiceSpec = from_proto(server.request("UpdateService").spec)
    return spec


def test_update_of_nothing_changes_nothing(server: Any, run: Run) -> None:
    current(server, BASE)
    assert run("service", "update", "web").exit_code == 0
    assert updated(server) == BASE
    request = server.request("UpdateService")
    assert (request.service, request.revision) == ("svc1", 5)


def test_update_edits_the_current_spec(server: Any, run: Run) -> None:
    current(server, BASE)
    words = shlex.split(
        """
        --image hello:2 --replicas 5 --env-add A=9 --env-add C=3 --env-rm B --label-add c=3
        --label-rm a --container-label-add z=1 --container-label-rm x --publish-add 8080:81
        --publish-rm 53/udp --constraint-add node.labels.zone==a --constraint-rm
        node.role==worker --network-add back --network-rm front --limit-memory 32m
        --read-only --force -d
        """
    )
    result = run("service", "update", *words, "--args", "serve 'a b'", "web")
    assert result.exit_code == 0, result.stderr
    spec = updated(server)
    assert (spec.replicas, spec.labels) == (5, {"b": "2", "c": "3"})
    assert spec.constraints == ("node.labels.zone==a",)
    container = spec.task.container
    assert (container.image, container.command) == ("hello:2", ("serve", "a b"))
    assert container.env == ("A=9", "C=3")
    assert container.labels == {"z": "1"}
    assert container.read_only
    assert spec.task.ports == (PortSpec(8080, 81),)
    assert spec.task.networks == (NetworkAttachment("back"),)
    assert spec.task.limit.memory == 32 * MIB
    assert spec.task.force == 3


def test_ports_are_removed_by_target_or_whole(server: Any, run: Run, refused: Refused) -> None:
    current(server, BASE)
    run("service", "update", "-d", "--publish-rm", "80", "web")
    assert updated(server).task.ports == (PortSpec(53, 53, Protocol.UDP),)
    run("service", "update", "-d", "--publish-rm", "53:53/udp", "--publish-rm", "53", "web")
    assert updated(server).task.ports == (PortSpec(8080, 80),)
    assert "'x' is not a number" in refused("service", "update", "--publish-rm=x", "web", status=2)


def test_update_is_made_anew_when_somebody_was_faster(server: Any, run: Run) -> None:
    current(server, BASE, 5, 8)
    conflict = Refusal(grpc.StatusCode.ABORTED, "service 'web' was changed meanwhile; try again")
    server.answers["UpdateService"] = lambda request: (
        conflict if request.revision == 5 else stored(request.spec, 9)
    )
    server.answers["WatchService"] = [progress([], 0, True, revision=9)]
    assert run("service", "scale", "web=7").exit_code == 0
    assert server.request("UpdateService").revision == 8
    assert updated(server).replicas == 7


def test_update_gives_up_in_the_end(server: Any, refused: Refused) -> None:
    current(server, BASE)
    server.answers["UpdateService"] = Refusal(grpc.StatusCode.ABORTED, "changed meanwhile")
    assert "is being changed by others all the time" in refused("service", "scale", "web=7")


def test_scale(server: Any, run: Run, refused: Refused) -> None:
    current(server, BASE)
    result = run("service", "scale", "web=12")
    assert (result.exit_code, result.stdout) == (0, "svc1\n")
    assert updated(server).replicas == 12
    for words in (["web"], ["web="], ["=3"], ["web=x"]):
        assert "SERVICE=REPLICAS" in refused("service", "scale", *words, status=2)
    assert "replicas -1 is negative" in refused("service", "scale", "web=-1", status=2)
    line = "no service 'weeb'; did you mean 'web'?"
    server.answers["ListServices"] = Refusal(grpc.StatusCode.NOT_FOUND, line)
    assert refused("service", "scale", "weeb=3") == line


def test_scale_of_a_global_service(server: Any, refused: Refused) -> None:
    current(server, ServiceSpec(name="web", mode=ServiceMode.GLOBAL, task=BASE.task))
    assert "service 'web' is global" in refused("service", "scale", "web=3", status=2)
    assert "takes no --replicas" in refused("service", "update", "--replicas=3", "web", status=2)


# --- waiting

CREATE = ("service", "create", "--name", "web", "hello")


def test_a_line_for_each_task_that_runs_or_ends(server: Any, run: Run) -> None:
    old = task(1, "FAILED", identifier="old", message="exit status 1")
    server.answers["WatchService"] = [
        progress([old, task(1, "PREPARING")], 2),
        progress([old, task(1, "RUNNING"), task(2, "FAILED", node="n2", exit_code=3)], 2),
        progress([task(1, "RUNNING"), task(2, "RUNNING", node="n2", identifier="new")], 2, True),
    ]
    result = run(*CREATE)
    assert (result.exit_code, result.stdout) == (0, "svc1\n")
    assert result.stderr.splitlines() == [
        "web.1  running on node1",
        "web.2  failed on node2: exit status 3",
        "web.2  running on node2",
        "web: 2 of 2 running, converged",
    ]


def test_a_wait_that_lasts_shows_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    view = wait.PlainView(clock=lambda: now)
    steps = ["PREPARING", "PREPARING", "STARTING", "RUNNING"]
    for now, state in enumerate(steps):  # noqa: B007 # the view's clock
        picture = progress([task(1, state)], 1)
        view.show(picture, [from_proto(one) for one in picture.tasks], {"n1": "node1"})
    assert capsys.readouterr().err.splitlines() == [
        "web.1  preparing on node1",
        "web.1  starting on node1",
        "web.1  running on node1",
    ]


def test_quiet_and_detached(server: Any, run: Run) -> None:
    assert run(*CREATE[:-1], "-q", "hello").stderr == ""
    assert run(*CREATE[:-1], "-d", "hello").stderr == ""
    assert [name for name, _ in server.requests].count("WatchService") == 1


def test_an_older_picture_is_not_the_answer(server: Any, run: Run) -> None:
    current(server, BASE)
    server.answers["WatchService"] = [
        progress([task(1, "RUNNING")], 1, True, revision=5),
        progress([task(1, "RUNNING"), task(2, "RUNNING")], 2, True, revision=6),
    ]
    assert "web: 2 of 2 running, converged" in run("service", "scale", "web=2").stderr


def _and_then_nothing(*messages: Any) -> Callable[[Any], Iterator[Any]]:
    """Answers that are followed by silence; the client's deadline ends it."""

    def answer(request: Any) -> Iterator[Any]:
        yield from messages
        time.sleep(0.6)

    return answer


def test_not_converged_in_time(server: Any, run: Run) -> None:
    reason = "no suitable node (3 nodes: insufficient memory)"
    waiting = [task(n, "PENDING", node="", message=reason) for n in (2, 3)]
    server.answers["WatchService"] = _and_then_nothing(
        progress([task(1, "RUNNING"), *waiting], 3), progress([task(1, "RUNNING"), *waiting], 3)
    )
    result = run(*CREATE[:-1], "--timeout", "300ms", "hello")
    assert (result.exit_code, result.stdout) == (3, "svc1\n")
    assert result.stderr.splitlines() == [
        "web.1  running on node1",
        f"web: 2 tasks wait: {reason}",
        "orc: service 'web' has not converged in 300ms: 1 of 3 running; "
        f"2 pending: {reason}; it goes on in the background, see 'orc service ps web'",
    ]


def test_a_crash_loop_tells_of_its_failures(server: Any, run: Run) -> None:
    failed = task(1, "FAILED", identifier="a", exit_code=7, desired_state="TASK_SHUTDOWN")
    server.answers["WatchService"] = _and_then_nothing(
        progress([failed, task(1, "READY", identifier="b")], 1)
    )
    result = run(*CREATE[:-1], "--timeout", "300ms", "hello")
    assert result.exit_code == 3
    assert "0 of 1 running; 1 failed: exit status 7; it goes on" in result.stderr


def test_a_service_that_is_removed_meanwhile(server: Any, run: Run) -> None:
    server.answers["WatchService"] = [progress([], 1, removed=True)]
    result = run(*CREATE)
    assert result.exit_code == 1
    assert result.stderr == "orc: service 'web' was removed meanwhile\n"


def test_a_manager_that_restarts_is_called_again(
    manager: Any, server: Any, run: Run, relay: Relay
) -> None:
    save_context(replace(manager.context, endpoints=(relay.endpoint,)))
    calls: list[int] = []

    def answer(request: Any) -> Iterator[Any]:
        calls.append(1)
        if len(calls) == 1:
            yield progress([task(1, "STARTING")], 1)
            relay.cut()
        yield progress([task(1, "RUNNING")], 1, True)

    server.answers["WatchService"] = answer
    result = run(*CREATE)
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert "the connection to the manager at 127.0.0.1:" in lines[0]
    assert lines[0].endswith(" broke; is it still running?; trying again")
    assert lines[1:] == ["web.1  running on node1", "web: 1 of 1 running, converged"]


def test_ctrl_c_detaches(server: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wait.PlainView, "show", interrupted)
    result = run(*CREATE)
    assert result.exit_code == 130
    assert result.stderr == (
        "orc: detached; service 'web' goes on by itself, see 'orc service ps web'\n"
    )


def test_a_store_that_restarts_is_waited_for(server: Any, run: Run) -> None:
    away = Refusal(grpc.StatusCode.UNAVAILABLE, "the cluster's store is away: no leader")
    answers = [[away], [progress([task(1, "RUNNING")], 1, True)]]
    server.answers["WatchService"] = lambda _: answers.pop(0)
    result = run(*CREATE)
    assert result.exit_code == 0
    assert result.stderr.startswith("web: the cluster's store is away: no leader; trying again\n")


def test_ctrl_c_on_a_terminal(server: Any) -> None:
    """The real command on a real terminal: progress in place, and detached by SIGINT."""
    release = threading.Event()

    def answer(request: Any) -> Iterator[Any]:
        yield progress([task(1, "STARTING")], 2)
        release.wait(30)

    server.answers["WatchService"] = answer
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "orchestrator.cli.main", *CREATE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown, pressed = b"", False
        with contextlib.suppress(OSError):  # EIO: the other end was closed
            while data := os.read(ours, 4096):
                shown += data
                if b"starting on node1" in shown and not pressed:
                    process.send_signal(signal.SIGINT)
                    pressed = True
        assert process.wait() == 130
        assert process.stdout is not None
        assert process.stdout.read() == b"svc1\n"
    release.set()
    os.close(ours)
    assert b"web: 0 of 2 running" in shown
    assert b"orc: detached; service 'web' goes on by itself, see 'orc service ps web'" in shown


def test_a_line_a_task_on_a_terminal() -> None:
    from io import StringIO

    from rich.console import Console

    from orchestrator.cli.live import LiveView

    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=6, color_system=None)
    reason = "no suitable node (1 node: down)"
    messages = [task(n, "RUNNING") for n in range(1, 6)]
    messages.append(task(6, "PENDING", node="", message=reason))
    picture = progress(messages, 6)
    with LiveView(console) as view:
        view.show(picture, [from_proto(each) for each in picture.tasks], picture.hostnames)
    shown = screen.getvalue()
    assert "web: 5 of 6 running" in shown
    assert f"web: 1 task waits: {reason}" in shown
    assert "web.6  pending" in shown
    assert "… and 4 more" in shown


# --- listings


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
    monkeypatch.setattr(service, "time", SimpleNamespace(time=lambda: 100.0))
    running: dict[str, Any] = {
        **task(1, "RUNNING", identifier="new000000000000", created_at=90.0),
        "spec": {"container": {"image": "hello:1"}},
    }
    running["status"] |= {"at": 97.0, "started_at": 97.0, "addresses": {"default": "10.128.1.7"}}
    failed = task(1, "FAILED", identifier="old", created_at=10.0, desired_state="TASK_SHUTDOWN")
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
    assert run("service", "rm", "web", "db").stdout == "web\ndb\n"
    assert manager.script.request("RemoveService").service == "db"


# --- logs


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
    result = run("service", "logs", "-f", "--tail", "5", "--since", "10m", "web")
    assert result.exit_code == 0
    assert result.stdout == "web.1@node1 | hello\nweb.10@node2 | good\nweb.1@node1  | again\n"
    assert result.stderr_bytes == b"web.10@node2 | \xff bad\norc: node3 does not answer\n"
    request = manager.script.request("Logs")
    assert (request.service, request.follow, request.tail) == ("web", True, 5)
    assert abs(time.time() - 600 - request.since) < 5
    assert run("service", "logs", "--raw", "web").stdout == "hello\ngood\nagain\n"
    assert manager.script.request("Logs").tail == -1
    stamped = run("service", "logs", "--raw", "-t", "web").stdout.splitlines()
    assert stamped[0] == "1970-01-01T00:01:00.000Z hello"


def test_logs_errors(manager: Any, refused: Refused) -> None:
    line = "no service or task 'weeb'; did you mean 'web'?"
    manager.script.answers["Logs"] = [Refusal(grpc.StatusCode.NOT_FOUND, line)]
    assert refused("service", "logs", "weeb") == line
    assert "'x' is not a number of lines" in refused("service", "logs", "-n", "x", "w", status=2)
    assert "since 'x' is not understood" in refused("service", "logs", "--since=x", "w", status=2)
