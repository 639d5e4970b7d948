# SPDX-License-Identifier: Apache-2.0
"""`orc job`: flags to a spec, and what a user sees until a run has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from orchestrator.cli.service import convergence
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.jobs import JobSpec, Missed, Overlap
from orchestrator.model.services import JobRun, JobState, JobStatus, Service
from orchestrator.model.specs import (
    ContainerSpec,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import control_pb2 as pb

Run = Callable[..., Result]
Refused = Callable[..., str]


def job(*runs: JobRun, revision: int = 5, **fields: Any) -> Any:
    spec = ServiceSpec(name="sums", mode=ServiceMode.REPLICATED_JOB, job=JobSpec(**fields))
    return to_proto(Service(id="j1", spec=spec, job=JobStatus(runs), revision=revision))


def picture(run: JobRun, *tasks: Task, completed: int = 0, revision: int = 5) -> Any:
    return pb.ServiceProgress(
        service=job(run, revision=revision),
        tasks=[to_proto(task) for task in tasks],
        completed=completed,
        completions=2,
        hostnames={"n1": "node1"},
    )


def task(slot: int, state: TaskState, run: int = 1, **fields: Any) -> Task:
    status = TaskStatus(state, **fields)
    name = {"service_id": "j1", "service_name": "sums", "node_id": "n1"}
    return Task(id=f"t{run}{slot}", slot=slot, job_run=run, status=status, **name)


UNDER_WAY = JobRun(1, started_at=10.0)
DONE = JobRun(1, started_at=10.0, finished_at=12.5, state=JobState.COMPLETE, completed="1-2")


@pytest.fixture
def server(manager: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A manager that begins a run and says at once that it is done."""
    monkeypatch.setattr(convergence, "RECONNECT_PAUSE", 0.01)
    answers = manager.script.answers
    answers["CreateService"] = job(UNDER_WAY)
    answers["WatchService"] = [picture(DONE, completed=2)]
    return manager.script


def created(server: Any) -> ServiceSpec:
    spec: ServiceSpec = from_proto(server.request("CreateService").spec)
    return spec


def test_run_with_defaults(server: Any, run: Run) -> None:
    result = run("job", "run", "--name", "sums", "sums")
    assert (result.exit_code, result.stdout) == (0, "j1\n")
    assert result.stderr == "sums: 2 of 2 completed in 2.5s\n"
    restart = RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=3)
    assert created(server) == ServiceSpec(
        name="sums",
        mode=ServiceMode.REPLICATED_JOB,
        task=TaskSpec(container=ContainerSpec(image="sums:latest"), restart=restart),
    )


def test_run_with_all_flags(server: Any, run: Run) -> None:
    words = (
        "job run -d --name sums --completions 9 --parallelism 3 --retries 5 --restart-delay 1s "
        "--deadline 10m --schedule @daily --time-zone Europe/Vienna --overlap replace "
        "--missed skip --history 2 -e A=1 --reserve-memory 64m --constraint node.role==worker "
        "sums:1 --all"
    )
    assert run(*words.split()).exit_code == 0
    spec = created(server)
    assert spec.replicas == 9
    assert spec.task.restart == RestartPolicy(RestartCondition.ON_FAILURE, 1.0, 5)
    assert (spec.task.container.env, spec.task.container.command) == (("A=1",), ("--all",))
    assert spec.constraints == ("node.role==worker",)
    assert spec.job == JobSpec(
        3, 600.0, "@daily", "Europe/Vienna", Overlap.REPLACE, Missed.SKIP, history=2
    )


def test_docker_flags_equal_ours(server: Any, run: Run) -> None:
    run("job", "run", "-d", "--name=sums", "--replicas=4", "--max-concurrent=2", "sums:1")
    ours = created(server)
    run("service", "create", "-d", "--name=sums", "--mode=replicated-job", "--replicas=4",
        "--max-concurrent=2", "sums:1")  # fmt: skip
    assert created(server) == ours


def test_no_retries_and_each_node(server: Any, run: Run) -> None:
    run("job", "run", "-d", "--global", "--retries", "0", "sums:1")
    assert created(server).mode is ServiceMode.GLOBAL_JOB
    assert created(server).task.restart.condition is RestartCondition.NONE


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--global", "--completions", "2"),
            "a global job has a task on each node; it takes no completions",
        ),
        (("--schedule", "0 25 * * *"), "hour (field 2, character 3): 25 is not in 0-23"),
        (("--overlap", "allow"), "a time zone, overlap, missed runs and suspension are of a"),
        (("--overlap", "some"), "'some' is not one of forbid, allow, replace"),
        (("--rm", "-d"), "--rm cannot be combined with --detach or --schedule"),
        (("--restart-condition", "any"), "has no option --restart-condition"),
    ],
)
def test_bad_flags(server: Any, refused: Refused, words: tuple[str, ...], line: str) -> None:
    assert line in refused("job", "run", *words, "sums:1", status=2)
    assert server.requests == []


def test_tasks_of_the_run_are_shown_live(server: Any, run: Run) -> None:
    failed = task(2, TaskState.FAILED, exit_code=3)
    server.answers["WatchService"] = [
        picture(UNDER_WAY, task(1, TaskState.RUNNING), task(1, TaskState.COMPLETE, run=7)),
        picture(UNDER_WAY, task(1, TaskState.COMPLETE), failed, completed=1),
        picture(DONE, task(1, TaskState.COMPLETE), failed, completed=2),
    ]
    result = run("job", "run", "--name", "sums", "sums:1")
    assert result.stderr.splitlines() == [
        "sums.1  running on node1",
        "sums.1  complete on node1",
        "sums.2  failed on node1: exit status 3",
        "sums: 2 of 2 completed in 2.5s",
    ]


@pytest.mark.parametrize(
    ("state", "status", "line"),
    [
        (JobState.FAILED, 3, "job 'sums' failed: no luck; see 'orc job logs sums'"),
        (JobState.STOPPED, 1, "run 1 of job 'sums' was stopped: no luck"),
    ],
)
def test_failed_run_is_an_error(
    server: Any, run: Run, state: JobState, status: int, line: str
) -> None:
    server.answers["WatchService"] = [picture(JobRun(1, state=state, message="no luck"))]
    result = run("job", "run", "-q", "--name", "sums", "sums:1")
    assert (result.exit_code, result.stderr) == (status, f"orc: {line}\n")


def test_not_in_time(server: Any, run: Run) -> None:
    server.answers["WatchService"] = [picture(UNDER_WAY, completed=1)]
    result = run("job", "run", "-q", "--timeout", "50ms", "--name", "sums", "sums:1")
    assert result.exit_code == 3
    assert "job 'sums' has not ended in 50ms: 1 of 2 completed" in result.stderr


def test_job_is_removed_at_its_end_with_rm(server: Any, run: Run) -> None:
    server.answers["RemoveService"] = pb.RemoveServiceReply(id="j1")
    server.answers["WatchService"] = [picture(JobRun(1, state=JobState.FAILED, message="no luck"))]
    assert run("job", "run", "--rm", "--name", "sums", "sums:1").exit_code == 3
    assert server.request("RemoveService").service == "j1"


def test_scheduled_job_is_not_waited_for(server: Any, run: Run) -> None:
    server.answers["CreateService"] = job(schedule="0 2 * * *", time_zone="Europe/Vienna")
    result = run("job", "run", "--schedule", "0 2 * * *", "--name", "sums", "sums:1")
    assert result.exit_code == 0
    assert result.stderr.startswith("sums: runs next at 20")
    assert "WatchService" not in [method for method, _ in server.requests]


def rows(*jobs: Any) -> Any:
    services = [pb.ServiceRow(service=each, completed=2, completions=3, running=1) for each in jobs]
    web = pb.ServiceRow(service=to_proto(Service(id="s1", spec=ServiceSpec(name="web"))))
    return pb.ListServicesReply(services=[*services, web])


def test_listings_show_only_jobs(server: Any, run: Run, refused: Refused) -> None:
    server.answers["ListServices"] = rows(job(UNDER_WAY))
    assert run("job", "ls", "-q").stdout == "j1\n"
    assert "2/3" in run("job", "ls").stdout
    assert "0/0 (2/3 completed)" in run("service", "ls").stdout.replace("1/0", "0/0")
    assert refused("job", "ps", "web") == "no job 'web'; see 'orc job ls'"
    assert refused("job", "rm", "sum") == "no job 'sum'; did you mean 'sums'?"
    assert refused("job", "suspend", "sums") == "job 'sums' has no schedule"
    assert run("job", "suspend", "sum", "sums", "web").stderr.count("\n") == 3


def test_rm_waits_until_the_tasks_have_stopped(server: Any, run: Run) -> None:
    server.answers["ListServices"] = rows(job(UNDER_WAY))
    server.answers["RemoveService"] = pb.RemoveServiceReply()
    looks = iter([TaskState.RUNNING, TaskState.SHUTDOWN])
    server.answers["ListTasks"] = lambda request: pb.ListTasksReply(
        tasks=[to_proto(task(1, next(looks)))]
    )
    assert run("job", "rm", "-d", "sums").stdout == "sums\n"
    assert run("job", "rm", "sums").stdout == "sums\n"
    assert not list(looks)


def test_ps_has_the_newest_run_first(server: Any, run: Run) -> None:
    server.answers["ListServices"] = rows(job(UNDER_WAY))
    tasks = [task(1, TaskState.COMPLETE), task(2, TaskState.FAILED), task(1, TaskState.RUNNING, 2)]
    server.answers["ListTasks"] = pb.ListTasksReply(
        tasks=[to_proto(each) for each in tasks], hostnames={"n1": "node1"}
    )
    lines = run("job", "ps", "sums").stdout.splitlines()
    assert [line.split()[1:3] for line in lines[1:]] == [
        ["sums.1", "2"],
        ["sums.1", "1"],
        ["sums.2", "1"],
    ]
    assert run("job", "ps", "-q", "--filter", "run=1", "sums").stdout == "t11\nt12\n"
