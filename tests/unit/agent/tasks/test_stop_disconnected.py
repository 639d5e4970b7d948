# SPDX-License-Identifier: Apache-2.0
"""Tasks that must not run without a connection to a manager."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agentfakes import Host, Reports, assigned, until

from orchestrator.agent.statedb import StateDb
from orchestrator.agent.tasks.worker import Worker, stop_disconnected
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2


def stopping(task_id: str, after: float) -> dispatch_pb2.AssignedTask:
    item = assigned(task_id)
    item.stop_after = after
    return item


async def test_each_task_is_stopped_after_its_own_time_and_others_continue(tmp_path: Path) -> None:
    host, reports = Host(tmp_path), Reports()
    with StateDb(host.folder / "state.db") as db:
        async with Worker(host.backends(), db, reports.reporter) as worker:
            tasks = [stopping("never", 0.0), stopping("soon", 10.0), stopping("late", 60.0)]
            worker.apply(tasks, [], [], full=True)
            for item in tasks:
                await until(lambda id=item.task.id: reports.state(id) is TaskState.RUNNING)
            stop_disconnected(worker.runners.values(), 9.9)
            stop_disconnected(worker.runners.values(), 10.0)
            stop_disconnected(worker.runners.values(), 11.0)
            await until(lambda: reports.state("soon") is TaskState.SHUTDOWN)
            assert reports.last("soon").message == "stopped: no manager reachable for 10s"
            assert {"never", "late"} <= host.runtime.running.keys()
            assert [call for call in host.runtime.calls if call[0] == "kill"] == [("kill", "soon")]


async def test_an_agent_that_is_started_alone_remembers_when_to_stop_it(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for _ in range(2):
        reports = Reports()
        with StateDb(host.folder / "state.db") as db:
            async with Worker(host.backends(), db, reports.reporter) as worker:
                if not worker.runners:
                    worker.apply([stopping("t1", 10.0)], [], [], full=True)
                await until(lambda r=reports: r.state("t1") is TaskState.RUNNING)
                await asyncio.sleep(0)
                again = worker.runners["t1"].stop_after
    assert again == 10.0
