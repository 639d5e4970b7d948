# SPDX-License-Identifier: Apache-2.0
"""Waiting until a service is as it shall be: what is shown, and how the wait ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from scripted_manager import Refusal, Relay
from servicekit import BASE, Run, accepting, current, progress, task

from orchestrator.cli.app.contexts import save_context
from orchestrator.cli.service import convergence
from orchestrator.model.convert import from_proto
from orchestrator.pb import control_pb2 as pb
from orchestrator.pb import types_pb2 as types


@pytest.fixture
def server(manager: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return accepting(manager, monkeypatch)


CREATE = ("service", "create", "--name", "web", "hello")


def test_line_per_running_or_finished_task(server: Any, run: Run) -> None:
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


def test_long_wait_shows_task_states(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    view = convergence.PlainView(clock=lambda: now)
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


def test_progress_of_an_older_version_is_ignored(server: Any, run: Run) -> None:
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
        time.sleep(1.3)

    return answer


def test_not_converged_in_time(server: Any, run: Run) -> None:
    reason = "no suitable node (3 nodes: insufficient memory)"
    waiting = [task(n, "PENDING", node="", message=reason) for n in (2, 3)]
    server.answers["WatchService"] = _and_then_nothing(
        progress([task(1, "RUNNING"), *waiting], 3), progress([task(1, "RUNNING"), *waiting], 3)
    )
    result = run(*CREATE[:-1], "--timeout", "1s", "hello")
    assert (result.exit_code, result.stdout) == (3, "svc1\n")
    assert result.stderr.splitlines() == [
        "web.1  running on node1",
        f"web: 2 tasks wait: {reason}",
        "orc: service 'web' has not converged in 1s: 1 of 3 running; "
        f"2 pending: {reason}; it continues in the background, see 'orc service ps web'",
    ]


def test_crash_loop_shows_its_failures(server: Any, run: Run) -> None:
    failed = task(1, "FAILED", identifier="a", exit_code=7, desired_state="TASK_SHUTDOWN")
    server.answers["WatchService"] = _and_then_nothing(
        progress([failed, task(1, "READY", identifier="b")], 1)
    )
    result = run(*CREATE[:-1], "--timeout", "1s", "hello")
    assert result.exit_code == 3
    assert "0 of 1 running; 1 failed: exit status 7; it continues" in result.stderr


def test_permanent_failure_ends_the_wait(server: Any, run: Run) -> None:
    picture = progress([task(1, "RUNNING"), task(2, "FAILED", message="exit status 1")], 2)
    picture.given_up = 1
    server.answers["WatchService"] = [picture]
    result = run(*CREATE)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == (
        "orc: service 'web' does not converge: 1 of 2 running; 1 failed: exit status 1; it is "
        "not restarted; fix it with 'orc service update web'"
    )


def logged(*lines: str) -> list[Any]:
    """What a node sends of a task's log."""
    records = [pb.LogRecord(line=f"{line}\n".encode()) for line in lines]
    return [pb.LogBatch(task_id="a", task_name="web.1", node="node1", records=records)]


def crash(**values: Any) -> Any:
    """A picture of a service whose only task crashed."""
    failed = task(1, "FAILED", identifier="a", exit_code=7, spec_version=1, revision=9, **values)
    failed["status"] |= {"started_at": 10.0, "finished_at": 11.0}
    return progress([failed], 1, crashed=["a"], failing=True)


def test_crash_ends_the_wait_with_the_last_log_lines(server: Any, run: Run) -> None:
    server.answers["WatchService"] = [crash()]
    server.answers["Logs"] = logged("loading", "no such table")
    result = run(*CREATE)
    assert (result.exit_code, result.stdout) == (3, "svc1\n")
    assert result.stderr.splitlines() == [
        "web.1  failed on node1: exit status 7",
        "web.1 on node1 logged last:",
        "  loading",
        "  no such table",
        "orc: service 'web' has not converged: web.1 failed within 5s of its start: exit status 7; "
        "see 'orc service ps web' and 'orc service logs web'",
    ]
    assert (server.request("Logs").service, server.request("Logs").tail) == ("a", 10)


def test_crash_without_readable_logs(server: Any, run: Run) -> None:
    server.answers["WatchService"] = [crash()]
    server.answers["Logs"] = []
    quiet = run(*CREATE[:-1], "-q", "hello")
    assert quiet.exit_code == 3
    assert quiet.stderr.splitlines()[0] == "web.1 on node1 logged nothing"
    server.answers["Logs"] = [Refusal(grpc.StatusCode.INTERNAL, "the node is gone")]
    lost = run(*CREATE[:-1], "-q", "hello")
    assert lost.exit_code == 3
    assert lost.stderr.startswith("the log of web.1 on node1 cannot be read: the node is gone\n")


def test_exiting_service_gets_a_hint_about_jobs(server: Any, run: Run) -> None:
    done = task(1, "COMPLETE", identifier="a", spec_version=1, revision=9)
    server.answers["WatchService"] = [progress([done], 1, crashed=["a"], failing=True)]
    server.answers["Logs"] = []
    assert run(*CREATE).stderr.splitlines()[-1] == (
        "orc: service 'web' has not converged: web.1 exited within 5s of its start: exit status "
        "0; a service keeps its tasks running; for run-to-completion work use 'orc job run', or a "
        "restart condition of on-failure"
    )


def test_rolled_back_update_shows_the_crashed_task(server: Any, run: Run) -> None:
    current(server, BASE)
    updating = types.UpdateStatus(state="UPDATE_UPDATING")
    server.answers["UpdateService"] = lambda request: types.Service(
        id="svc1", spec=request.spec, revision=6, spec_version=2, update=updating
    )
    old = task(1, "FAILED", identifier="old", spec_version=1, revision=9)
    new = task(2, "FAILED", identifier="new", spec_version=2, revision=9, exit_code=1)
    back = progress([old, new, task(1, "RUNNING"), task(2, "RUNNING")], 2, True, revision=12)
    back.service.update.state = types.UPDATE_ROLLED_BACK
    back.service.update.message = "1 of 2 failed: web.2: exit status 1"
    server.answers["WatchService"] = [back]
    server.answers["Logs"] = logged("no")
    result = run("service", "update", "-q", "--env-add", "A=2", "web")
    assert result.exit_code == 4
    assert result.stderr.splitlines() == [
        "web.2 on node1 logged last:",
        "  no",
        "orc: service 'web' was rolled back: 1 of 2 failed: web.2: exit status 1",
    ]
    assert server.request("Logs").service == "new"


def test_countdown_in_plain_lines_restarts_with_a_replacement(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    view = convergence.PlainView(clock=lambda: now)
    for now, left in [(0.0, 5.0), (2.0, 3.0), (3.0, 0.0), (4.0, 5.0), (6.0, 3.0)]:  # noqa: B007
        picture = progress([task(1, "RUNNING")], 1, stable_in=left)
        view.show(picture, [from_proto(one) for one in picture.tasks], {"n1": "node1"})
    assert capsys.readouterr().err.splitlines() == [
        "web.1  running on node1",
        "web: 1 of 1 running, verifying for 5s that tasks stay up",
        "web: 1 of 1 running, verifying for 5s that tasks stay up",
    ]


def test_countdown_longer_than_the_timeout(server: Any, run: Run) -> None:
    server.answers["WatchService"] = _and_then_nothing(
        progress([task(1, "RUNNING")], 1, stable_in=5.0)
    )
    result = run(*CREATE[:-1], "-q", "--timeout", "1s", "hello")
    assert result.exit_code == 3
    assert "1 of 1 running; verifying for 5s that tasks stay up; it continues" in result.stderr


@pytest.mark.parametrize(
    ("flags", "env", "monitor"),
    [((), {}, None), (("--monitor", "0s"), {}, 0.0), ((), {"ORC_MONITOR": "2s"}, 2.0)],
)
def test_monitor_period_of_a_service(
    server: Any,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    env: dict[str, str],
    monitor: float | None,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    run(*CREATE[:-1], *flags, "hello")
    request = server.request("WatchService")
    assert (request.monitor if request.HasField("monitor") else None) == monitor
    assert request.since == 5, "what crashed before the service was written is not its fault"


def test_service_removed_during_the_wait(server: Any, run: Run) -> None:
    server.answers["WatchService"] = [progress([], 1, removed=True)]
    result = run(*CREATE)
    assert result.exit_code == 1
    assert result.stderr == "orc: service 'web' was removed\n"


def test_restarted_manager_is_called_again(
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
    *lost, running, converged = result.stderr.splitlines()
    assert [running, converged] == ["web.1  running on node1", "web: 1 of 1 running, converged"]
    # Without a message, if nothing had arrived by then.
    assert [line.partition(" broke; ")[2] for line in lost] in (
        [],
        ["is it still running?; trying again"],
    )


def test_ctrl_c_detaches(server: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convergence.PlainView, "show", interrupted)
    result = run(*CREATE)
    assert result.exit_code == 130
    assert result.stderr == (
        "orc: detached; service 'web' converges in the background, see 'orc service ps web'\n"
    )


def test_restarting_store_is_waited_for(server: Any, run: Run) -> None:
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
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
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
    assert (
        b"orc: detached; service 'web' converges in the background, see 'orc service ps web'"
        in shown
    )


def test_a_countdown_on_a_terminal() -> None:
    from io import StringIO

    from rich.console import Console

    from orchestrator.cli.service.live_view import LiveView

    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=6, color_system=None)
    picture = progress([task(1, "RUNNING")], 1, stable_in=1.5)
    now = 0.0
    with LiveView(console, lambda: now) as view:
        view.show(picture, [from_proto(each) for each in picture.tasks], picture.hostnames)
        assert "web: 1 of 1 running, verifying for 2s that tasks stay up" in screen.getvalue()
        now = 1.0
        while "verifying for 1s" not in screen.getvalue():
            time.sleep(0.01)  # no other picture comes: time alone redraws it


def test_one_line_per_task_on_a_terminal() -> None:
    from io import StringIO

    from rich.console import Console

    from orchestrator.cli.service.live_view import LiveView

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
