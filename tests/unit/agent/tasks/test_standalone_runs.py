# SPDX-License-Identifier: Apache-2.0
"""A standalone container through several runs, with an agent that dies at every step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from agentfakes import Host, Reports, until

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.statedb import StateDb
from orchestrator.agent.tasks.worker import Worker
from orchestrator.model.convert import to_proto
from orchestrator.model.specs import (
    ContainerSpec,
    Resources,
    RestartCondition,
    RestartPolicy,
    TaskSpec,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import dispatch_pb2

S = TaskState
BOX = Task(
    id="c1",
    container_name="box",
    spec=TaskSpec(
        container=ContainerSpec(image="hello:1"), restart=RestartPolicy(RestartCondition.NONE)
    ),
    image_digest="sha256:" + "0" * 64,
    node_id="n1",
    run=1,
    status=TaskStatus(S.ASSIGNED, run=1),
)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@asynccontextmanager
async def agent(host: Host, order: Task) -> AsyncIterator[tuple[Worker, Reports]]:
    """An agent whose process dies at the end of the block; it gets `order` first."""
    reports = Reports()
    with StateDb(host.folder / "state.db") as db:
        async with Worker(host.backends(), db, reports.reporter) as worker:
            give(worker, order, full=True)
            yield worker, reports


def give(worker: Worker, order: Task, *, full: bool = False) -> None:
    worker.apply([dispatch_pb2.AssignedTask(task=to_proto(order))], [], [] if full else None,
                 full=full)  # fmt: skip


def desired(task: Task, state: TaskState) -> Task:
    return replace(task, desired_state=state)


def next_run(task: Task) -> Task:
    run = task.run + 1
    return replace(task, run=run, desired_state=S.RUNNING, status=TaskStatus(S.ASSIGNED, run=run))


def newest(reports: Reports) -> tuple[int, TaskState]:
    seen = reports.seen.get("c1")
    return (seen[-1].run, seen[-1].state) if seen else (0, S.NEW)


WAY = (
    (desired(BOX, S.READY), (1, S.READY)),
    (desired(BOX, S.RUNNING), (1, S.RUNNING)),
    (desired(BOX, S.SHUTDOWN), (1, S.SHUTDOWN)),
    (next_run(BOX), (2, S.RUNNING)),
    (next_run(next_run(BOX)), (3, S.RUNNING)),
    (desired(next_run(next_run(BOX)), S.REMOVE), (3, S.SHUTDOWN)),
)
"""Orders, and what is reported in the end of each."""


async def test_runs_begin_and_end_as_ordered(host: Host) -> None:
    async with agent(host, WAY[0][0]) as (worker, reports):
        for order, end in WAY:
            give(worker, order)
            await until(lambda end=end: newest(reports) == end)  # type: ignore[misc]
        assert host.runtime.did("start") == ["c1"] * 3
        # Its files stay over the first two ends, and go with the last.
        assert host.runtime.did("remove") == ["c1"]
        assert host.network.attached == {}
        clocks = [(status.run, status.state) for status in reports.seen["c1"]]
        assert clocks == sorted(clocks)
        worker.apply([], ["c1"], None, full=False)
        await until(lambda: not worker.runners)


@pytest.mark.parametrize("step", range(len(WAY)))
@pytest.mark.parametrize("method", ["create", "start", "wait", "kill", "release", "remove"])
async def test_an_agent_that_dies_in_a_step_leaves_it_to_the_next(
    host: Host, step: int, method: str
) -> None:
    for order, end in WAY[:step]:
        async with agent(host, order) as (_, reports):
            await until(lambda end=end, reports=reports: newest(reports) == end)  # type: ignore[misc]
    order, end = WAY[step]
    before = len(host.runtime.calls)
    host.runtime.hold[method] = asyncio.Event()
    async with agent(host, order) as (_, reports):
        # It dies within the call, or when all is done if it never comes to that.
        await until(
            lambda: (
                method in [called for called, _ in host.runtime.calls[before:]]
                or newest(reports) == end
            )
        )
    del host.runtime.hold[method]
    async with agent(host, order) as (_, reports):
        await until(lambda: newest(reports) == end)
    async with agent(host, desired(order, S.REMOVE)) as (worker, _):
        worker.apply([], [], [], full=True)
        await until(lambda: not worker.runners)
    assert host.runtime.made == host.network.attached == {}


async def test_the_next_run_waits_for_the_manager(host: Host) -> None:
    async with agent(host, BOX) as (worker, reports):
        await until(lambda: newest(reports) == (1, S.RUNNING))
        waiting = replace(BOX, run=2, status=TaskStatus(S.PENDING, run=2))
        give(worker, waiting)
        await until(lambda: newest(reports) == (1, S.SHUTDOWN))
        assert host.runtime.did("start") == ["c1"]
    # A node that lost its record of it does not start it either.
    (host.folder / "state.db").unlink()
    async with agent(host, waiting) as (worker, reports):
        await until(lambda: newest(reports)[0] == 2)
        assert host.runtime.did("start") == ["c1"]
        give(worker, next_run(BOX))
        await until(lambda: newest(reports) == (2, S.RUNNING))


async def test_a_run_that_is_replaced_before_it_is_assigned_is_reported_as_ended(
    host: Host,
) -> None:
    again = replace(next_run(BOX), run=3)
    async with agent(host, again) as (worker, reports):
        await until(lambda: newest(reports) == (2, S.SHUTDOWN))
        assert host.runtime.did("start") == []
        give(worker, next_run(next_run(BOX)))
        await until(lambda: newest(reports) == (3, S.RUNNING))
        # Once more, while the node has the run before.
        give(worker, desired(next_run(next_run(BOX)), S.SHUTDOWN))
        await until(lambda: newest(reports) == (3, S.SHUTDOWN))
        give(worker, replace(next_run(next_run(next_run(BOX))), run=5))
        await until(lambda: newest(reports) == (4, S.SHUTDOWN))
        assert host.runtime.did("start") == ["c1"]


async def test_a_program_that_cannot_run_has_an_exit_status(host: Host) -> None:
    host.runtime.failures["create", "c1"] = RuntimeFailure("the image has no program `x`", 127)
    async with agent(host, BOX) as (_, reports):
        await until(lambda: newest(reports) == (1, S.FAILED))
        status = reports.seen["c1"][-1]
        assert (status.exit_code, status.message) == (127, "the image has no program `x`")


async def test_pause_outlives_the_agent_and_a_stop_ends_it(host: Host) -> None:
    async with agent(host, BOX) as (worker, reports):
        await until(lambda: newest(reports) == (1, S.RUNNING))
        await worker.runners["c1"].freeze(True)
        assert reports.seen["c1"][-1].paused
    async with agent(host, BOX) as (worker, reports):
        await until(lambda: newest(reports) == (1, S.RUNNING))
        assert reports.seen["c1"][-1].paused
        give(worker, desired(BOX, S.SHUTDOWN))
        await until(lambda: newest(reports) == (1, S.SHUTDOWN))
        assert not reports.seen["c1"][-1].paused
        with pytest.raises(RuntimeFailure, match="not running"):
            await worker.runners["c1"].freeze(True)


def limited(task: Task, memory: int) -> Task:
    return replace(task, spec=replace(task.spec, limit=Resources(memory=memory)))


async def test_limits_are_changed_in_place_and_follow_the_newest_order(host: Host) -> None:
    def enforced() -> int | None:
        limits = host.runtime.limits.get("c1")
        return limits.memory if limits else None

    async with agent(host, limited(BOX, 1 << 30)) as (worker, reports):
        await until(lambda: newest(reports) == (1, S.RUNNING))
        runner = worker.runners["c1"]
        assert host.runtime.did("resize") == [], "it was made with them"
        # What a manager had set and then failed to write down ends with the next order.
        await runner.resize(limited(BOX, 2 << 30).spec)
        assert enforced() == 2 << 30
        give(worker, limited(BOX, 1 << 30))
        await until(lambda: enforced() == 1 << 30)
        # What it did write down is in force already.
        await runner.resize(limited(BOX, 3 << 30).spec)
        calls = len(host.runtime.did("resize"))
        give(worker, limited(BOX, 3 << 30))
        assert len(host.runtime.did("resize")) == calls
        # An order that changes while another is carried out is the one that counts.
        host.runtime.hold["resize"] = asyncio.Event()
        give(worker, limited(BOX, 4 << 30))
        await until(lambda: len(host.runtime.did("resize")) == calls + 1)
        give(worker, limited(BOX, 3 << 30))
        host.runtime.hold.pop("resize").set()
        await until(lambda: len(host.runtime.did("resize")) == calls + 2)
        await until(lambda: enforced() == 3 << 30)
    # Another agent cannot know how far the one before it got.
    host.runtime.limits.clear()
    async with agent(host, limited(BOX, 5 << 30)) as (_, reports):
        await until(lambda: enforced() == 5 << 30)
    assert host.runtime.did("start") == ["c1"]


async def test_refused_limits_are_reported_and_the_container_continues(host: Host) -> None:
    async with agent(host, BOX) as (worker, reports):
        await until(lambda: newest(reports) == (1, S.RUNNING))
        host.runtime.failures["resize", "c1"] = RuntimeFailure("it uses 40MiB of memory")
        with pytest.raises(RuntimeFailure, match="uses 40MiB"):
            await worker.runners["c1"].resize(limited(BOX, 1 << 20).spec)
        host.runtime.failures["resize", "c1"] = RuntimeFailure("it uses 40MiB of memory")
        give(worker, limited(BOX, 1 << 20))
        await until(lambda: bool(reports.seen["c1"][-1].message))
        assert reports.seen["c1"][-1].message == "limits not changed: it uses 40MiB of memory"
        give(worker, limited(BOX, 1 << 30))
        await until(lambda: not reports.seen["c1"][-1].message)
        assert newest(reports) == (1, S.RUNNING)
