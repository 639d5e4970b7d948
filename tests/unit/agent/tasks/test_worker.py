# SPDX-License-Identifier: Apache-2.0
"""The worker and its runners, on scripted parts: orders, ends, refusals, restarts, crashes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentfakes import NOW, Host, Reports, assigned, until

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.plugins import plugin_client
from orchestrator.agent.runtime.interface import Exit, RuntimeFailure, Started
from orchestrator.agent.statedb import StateDb
from orchestrator.agent.tasks import runner as runner_module
from orchestrator.agent.tasks import worker as worker_module
from orchestrator.agent.tasks.health_checks import ProbeResult
from orchestrator.agent.tasks.worker import Worker
from orchestrator.model.specs import (
    ContainerSpec,
    HealthCheck,
    NetworkAttachment,
    PortSpec,
    Resources,
    TaskSpec,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, TaskStatus
from orchestrator.pb import dispatch_pb2


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


class Agent:
    """The core of one agent process on a host."""

    def __init__(self, host: Host, worker: Worker, db: StateDb, reports: Reports) -> None:
        self.host = host
        self.worker = worker
        self.db = db
        self.reports = reports

    def full(self, *tasks: dispatch_pb2.AssignedTask) -> None:
        self.worker.apply(tasks, [], [], full=True)

    def diff(self, *tasks: dispatch_pb2.AssignedTask, removed: Sequence[str] = ()) -> None:
        self.worker.apply(tasks, removed, None, full=False)

    async def reaches(self, state: TaskState, task_id: str = "t1") -> None:
        await until(lambda: self.reports.state(task_id) is state)

    async def stored(self, state: TaskState, task_id: str = "t1") -> None:
        await until(lambda: self.db.records()[task_id].status.state is state)


@asynccontextmanager
async def agent(host: Host, *, starts: int = 8) -> AsyncIterator[Agent]:
    """An agent whose process dies at the end of the block, at whatever point it is."""
    reports = Reports()
    with StateDb(host.folder / "state.db") as db:
        async with Worker(host.backends(), db, reports.reporter, starts=starts) as worker:
            yield Agent(host, worker, db, reports)


def spec(**fields: object) -> TaskSpec:
    return TaskSpec(container=ContainerSpec(image="hello:1", **fields))  # type: ignore[arg-type]


async def test_namespaces_are_created_after_earlier_ones_are_removed(host: Host) -> None:
    host.network.collecting = asyncio.Event()
    async with agent(host) as a:
        a.full(assigned())
        await until(lambda: host.network.awaited)
        assert host.runtime.did("reserve") == []
        host.network.collecting.set()
        await a.reaches(TaskState.RUNNING)
        assert host.runtime.did("reserve") == ["t1"]


async def test_an_assigned_task_runs(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
        status = a.reports.last()
        assert status.addresses == {"default": "10.128.0.2"}
        assert status.pid == host.runtime.running["t1"].pid
        assert status.started_at == NOW
        states = [status.state for status in a.reports.seen["t1"]]
        assert states == sorted(states)
        container = host.runtime.made["t1"]
        assert (container.name, container.hostname) == ("web.1", "t1")
        assert container.netns == Path("/netns/t1")


async def test_an_assignment_is_recorded_before_any_action(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        assert a.db.records()["t1"].assigned == assigned()
        assert host.runtime.calls == []


async def test_starting_is_recorded_before_the_container_is_created(host: Host) -> None:
    host.runtime.hold["create"] = asyncio.Event()
    async with agent(host) as a:
        a.full(assigned())
        await until(lambda: host.runtime.did("create"))
        record = a.db.records()["t1"].status
        assert record.state is TaskState.STARTING
        assert record.addresses == {"default": "10.128.0.2"}


@pytest.mark.parametrize(
    ("end", "state", "message"),
    [
        (Exit(0, False, NOW), TaskState.COMPLETE, ""),
        (Exit(3, False, NOW), TaskState.FAILED, "exit status 3"),
        (Exit(137, True, NOW), TaskState.FAILED, "out of memory (limit 64MiB)"),
    ],
)
async def test_an_end_is_reported_when_its_resources_are_released(
    host: Host, end: Exit, state: TaskState, message: str
) -> None:
    host.runtime.hold["remove"] = asyncio.Event()
    limited = TaskSpec(ContainerSpec(image="hello:1"), limit=Resources(memory=64 << 20))
    async with agent(host) as a:
        a.full(assigned(spec=limited))
        await a.reaches(TaskState.RUNNING)
        await host.runtime.end("t1", end)
        await until(lambda: host.runtime.did("remove"))
        # Written down at once, reported when a replacement finds nothing in its way.
        await a.stored(state)
        assert a.reports.state() is TaskState.RUNNING
        host.runtime.hold.pop("remove").set()
        await a.reaches(state)
        assert a.reports.last().message == message
        assert a.reports.last().exit_code == end.code
        assert host.network.attached == {}
        assert host.runtime.made == {}
        assert a.db.records()["t1"].released


async def test_shutdown_sends_the_images_stop_signal_and_keeps_the_log(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
        a.diff(assigned(desired=TaskState.SHUTDOWN))
        await a.reaches(TaskState.SHUTDOWN)
        assert host.runtime.signals == [("t1", signal.SIGINT)]
        assert a.reports.last().exit_code == 128 + signal.SIGINT
        live = host.runtime.log_path("t1")
        assert not live.exists()
        assert host.backends().logs.path("t1").read_text() == "log of t1\n"
        a.diff(removed=["t1"])
        await until(lambda: not a.worker.runners)
        assert not host.backends().logs.path("t1").exists()


async def test_the_specs_stop_signal_goes_before_the_images(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned(spec=spec(stop_signal="SIGUSR1")))
        await a.reaches(TaskState.RUNNING)
        a.diff(assigned(desired=TaskState.SHUTDOWN, spec=spec(stop_signal="SIGUSR1")))
        await a.reaches(TaskState.SHUTDOWN)
        assert host.runtime.signals == [("t1", signal.SIGUSR1)]


async def test_a_program_that_ignores_its_stop_signal_is_killed_after_the_grace_period(
    host: Host,
) -> None:
    host.runtime.deaf.add("t1")
    async with agent(host) as a:
        a.full(assigned(spec=spec(stop_grace=0.01)))
        await a.reaches(TaskState.RUNNING)
        a.diff(assigned(desired=TaskState.SHUTDOWN, spec=spec(stop_grace=0.01)))
        await a.reaches(TaskState.SHUTDOWN)
        assert host.runtime.signals == [("t1", signal.SIGINT), ("t1", signal.SIGKILL)]
        assert a.reports.last().exit_code == 137


async def test_a_removed_task_is_stopped_and_forgotten(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned("t1"), assigned("t2"))
        await a.reaches(TaskState.RUNNING, "t1")
        await a.reaches(TaskState.RUNNING, "t2")
        a.diff(removed=["t1"])
        await until(lambda: "t1" not in a.worker.runners)
        assert list(a.db.records()) == ["t2"]
        assert list(host.runtime.made) == list(host.network.attached) == ["t2"]
        assert a.reports.reporter.unacknowledged == {"t2"}


async def test_a_full_set_is_authoritative(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned("t1"), assigned("t2"))
        await a.reaches(TaskState.RUNNING, "t1")
        a.full(assigned("t2"), assigned("t3"))
        await a.reaches(TaskState.RUNNING, "t3")
        await until(lambda: "t1" not in a.worker.runners)
        assert set(host.runtime.running) == {"t2", "t3"}
        assert host.runtime.did("create").count("t2") == 1


async def test_a_task_that_is_stopped_before_it_started(host: Host) -> None:
    host.images.hold = asyncio.Event()
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.PREPARING)
        a.diff(assigned(desired=TaskState.SHUTDOWN))
        await a.reaches(TaskState.SHUTDOWN)
        assert host.images.cancelled == 1
        assert a.reports.last().message == "stopped before it started"
        assert host.runtime.did("create") == []


async def test_the_reason_for_waiting_for_an_image_is_in_the_status(host: Host) -> None:
    host.images.hold, host.images.reason = asyncio.Event(), "waiting for node2"
    async with agent(host) as a:
        a.full(assigned())
        await until(lambda: a.reports.last().message == "waiting for node2")
        assert a.reports.state() is TaskState.PREPARING
        host.images.hold.set()
        await a.reaches(TaskState.RUNNING)
        assert a.reports.last().message == ""


async def test_a_slow_network_is_reported_in_the_status_and_delays_no_others(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_client, "NOTICE", 0.05)
    host.network.hold = asyncio.Event()
    async with agent(host, starts=1) as a:
        a.full(assigned())
        await until(lambda: a.reports.last().message == "not yet connected to default")
        assert a.reports.state() is TaskState.PREPARING
        held, host.network.hold = host.network.hold, None
        a.diff(assigned("t2"))
        await a.reaches(TaskState.RUNNING, "t2")
        held.set()
        await a.reaches(TaskState.RUNNING)
        assert a.reports.last().message == ""


async def test_an_image_without_a_source_is_rejected(host: Host) -> None:
    host.images.missing = True
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.REJECTED)
        assert a.reports.last().message == "no node has the image hello:1"


async def test_a_port_in_use_is_rejected(host: Host) -> None:
    host.network.taken.add(8080)
    ports = TaskSpec(ContainerSpec(image="hello:1"), ports=(PortSpec(8080, 80),))
    async with agent(host) as a:
        a.full(assigned(spec=ports))
        await a.reaches(TaskState.REJECTED)
        assert a.reports.last().message == "port 8080 is in use on this node"


@pytest.mark.parametrize("method", ["create", "start"])
async def test_a_missing_program_fails_and_leaves_no_resources(host: Host, method: str) -> None:
    host.runtime.failures[method, "t1"] = RuntimeFailure("no program `hi` in the image")
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.FAILED)
        assert a.reports.last().message == "no program `hi` in the image"
        assert host.runtime.made == host.network.attached == {}


async def test_an_internal_error_ends_the_task_and_not_the_agent(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.runtime.failures["create", "t1"] = ZeroDivisionError("oops")
    async with agent(host) as a:
        a.full(assigned("t1"), assigned("t2"))
        await a.reaches(TaskState.FAILED, "t1")
        await a.reaches(TaskState.RUNNING, "t2")
        assert a.reports.last("t1").message == (
            "internal error of the agent: ZeroDivisionError: oops"
        )
        assert any(record.exc_info for record in caplog.records)


async def test_an_end_is_reported_even_if_its_removal_fails(host: Host) -> None:
    host.runtime.failures["remove", "t1"] = RuntimeFailure("device or resource busy")
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
        await host.runtime.end("t1", Exit(0, False, NOW))
        await a.reaches(TaskState.COMPLETE)
        assert not a.db.records()["t1"].released
        assert host.network.attached != {}
    # The next agent begins with what was left over.
    async with agent(host) as a:
        await until(lambda: a.db.records()["t1"].released)
        assert host.network.attached == {}


async def test_concurrent_starts_are_bounded(host: Host) -> None:
    host.runtime.hold["create"] = asyncio.Event()
    names = [f"t{n}" for n in range(10)]
    async with agent(host, starts=3) as a:
        a.full(*map(assigned, names))
        await until(lambda: len(host.network.attached) == 10)
        await until(lambda: host.runtime.active == 3)
        host.runtime.hold.pop("create").set()
        for name in names:
            await a.reaches(TaskState.RUNNING, name)
        assert host.runtime.most_active == 3


async def test_restarted_agent_adopts_running_containers(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
        before = a.reports.last()
    async with agent(host) as a:
        await until(lambda: len(host.runtime.did("wait")) >= 2)
        assert a.reports.last() == before
        assert host.runtime.did("create") == host.runtime.did("start") == ["t1"]
        await host.runtime.end("t1", Exit(1, False, NOW))
        await a.reaches(TaskState.FAILED)


async def test_an_end_while_no_agent_ran_is_reported(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
    await host.runtime.end("t1", Exit(4, False, NOW))
    async with agent(host) as a:
        await a.reaches(TaskState.FAILED)
        assert a.reports.last().message == "exit status 4"
        assert host.runtime.made == host.network.attached == {}


async def test_a_lost_task_is_not_run_again(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
    host.runtime.lose("t1")
    async with agent(host) as a:
        await a.reaches(TaskState.FAILED)
        assert a.reports.last().message == "lost during a restart of the node"
        a.full(assigned())
        await until(lambda: a.db.records()["t1"].released)
        assert host.runtime.did("start") == ["t1"]


@pytest.mark.parametrize("known", [TaskState.FAILED, TaskState.RUNNING])
async def test_a_task_known_only_to_the_manager_is_not_run_again(
    host: Host, known: TaskState
) -> None:
    order = assigned()
    order.task.status.state = int(known)  # type: ignore[assignment]
    async with agent(host) as a:
        a.full(order)
        await a.reaches(TaskState.FAILED)
        assert host.runtime.made == {}


@pytest.mark.parametrize("method", ["create", "start"])
async def test_killed_while_a_container_was_made(host: Host, method: str) -> None:
    host.runtime.hold[method] = asyncio.Event()
    async with agent(host) as a:
        a.full(assigned())
        await until(lambda: host.runtime.did(method))
    host.runtime.hold.clear()
    async with agent(host) as a:
        # It may have run, so it is not run again.
        await a.reaches(TaskState.FAILED)
        assert host.runtime.made == host.network.attached == {}


async def test_killed_after_the_start_and_before_it_was_recorded(host: Host) -> None:
    host.runtime.hold["start"] = asyncio.Event()
    async with agent(host) as a:
        a.full(assigned())
        await until(lambda: host.runtime.did("start"))
    host.runtime.hold.clear()
    await host.runtime.start("t1")
    async with agent(host) as a:
        await a.reaches(TaskState.RUNNING)
        assert a.reports.last().addresses == {"default": "10.128.0.2"}


async def test_killed_while_it_prepared(host: Host) -> None:
    host.images.hold = asyncio.Event()
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.PREPARING)
    host.images.hold = None
    async with agent(host) as a:
        # Nothing starts for the first time until a manager still wants it.
        await until(lambda: host.runtime.did("adopt"))
        assert a.reports.state() is TaskState.ASSIGNED
        assert host.runtime.did("create") == []
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)


async def test_killed_while_it_stopped(host: Host) -> None:
    host.runtime.deaf.add("t1")
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
        a.diff(assigned(desired=TaskState.SHUTDOWN))
        await until(lambda: host.runtime.signals)
    host.runtime.deaf.clear()
    async with agent(host) as a:
        await a.reaches(TaskState.SHUTDOWN)
        # The image's signal is known to the second agent too.
        assert host.runtime.signals[-1] == ("t1", signal.SIGINT)


async def test_killed_while_it_removed(host: Host) -> None:
    host.runtime.hold["remove"] = asyncio.Event()
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
        await host.runtime.end("t1", Exit(0, False, NOW))
        await until(lambda: host.runtime.did("remove"))
    host.runtime.hold.clear()
    async with agent(host) as a:
        await until(lambda: a.db.records()["t1"].released)
        assert a.reports.state() is TaskState.COMPLETE
        assert host.runtime.made == host.network.attached == {}
        assert "t1" not in a.worker.holders()


async def test_task_removed_while_the_agent_was_down(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned("t1"), assigned("t2"))
        await a.reaches(TaskState.RUNNING, "t1")
        await a.reaches(TaskState.RUNNING, "t2")
    async with agent(host) as a:
        a.full(assigned("t2"))
        await until(lambda: "t1" not in a.worker.runners)
        assert list(host.runtime.running) == ["t2"]


async def test_after_a_reboot_containers_start_again_without_a_manager(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned("t1"), assigned("t2"))
        await a.reaches(TaskState.RUNNING, "t1")
        await a.reaches(TaskState.RUNNING, "t2")
        a.diff(assigned("t2", TaskState.SHUTDOWN))
        await a.reaches(TaskState.SHUTDOWN, "t2")
        first = a.reports.last().pid
    host.reboot()
    async with agent(host) as a:
        assert a.worker.holders() == frozenset()
        await until(lambda: "t1" in host.runtime.running)
        await until(lambda: a.reports.last().pid not in (0, first))
        assert a.reports.last().state is TaskState.RUNNING
        assert a.reports.last().message == "started again after a reboot of the node"
        assert a.worker.holders() == {"t1"}
        assert list(host.runtime.running) == ["t1"]


async def test_killed_while_it_started_again_after_a_reboot(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
    host.reboot()
    host.runtime.hold["create"] = asyncio.Event()
    async with agent(host):
        await until(lambda: len(host.runtime.did("create")) == 2)
    host.runtime.hold.clear()
    async with agent(host) as a:
        await a.reaches(TaskState.FAILED)


async def test_unassigned_containers_are_removed_after_the_first_full_set(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned("t1"), assigned("old"))
        await a.reaches(TaskState.RUNNING, "old")
        await a.reaches(TaskState.RUNNING, "t1")
        a.db.forget("old")
    async with agent(host) as a:
        await until(lambda: len(host.runtime.did("wait")) >= 3)
        assert "old" in host.runtime.running
        a.full(assigned("t1"))
        await until(lambda: "old" not in host.runtime.made)
        assert list(host.network.attached) == ["t1"]
        assert list(host.runtime.running) == ["t1"]


async def test_the_name_server_knows_a_containers_networks_before_it_starts(host: Host) -> None:
    host.runtime.hold["create"] = asyncio.Event()
    both = TaskSpec(
        container=ContainerSpec(image="hello:1", dns=("9.9.9.9",)),
        networks=(NetworkAttachment("front"), NetworkAttachment("back")),
    )
    async with agent(host) as a:
        a.full(assigned("t1", spec=both), assigned("t2"))
        await until(lambda: len(host.runtime.did("create")) == 2)
        (client,) = a.worker.clients().values()
        assert list(client.addresses.items()) == [
            ("front", (host.network.attached["t1"],)),
            ("back", (host.network.attached["t1"],)),
        ]
        assert client.servers == ("9.9.9.9",)
        host.runtime.hold["create"].set()
        await a.reaches(TaskState.RUNNING)
        assert a.worker.clients() == {"t1": client}
    # So does the next agent, from what was written down.
    async with agent(host) as a:
        assert a.worker.clients() == {"t1": client}
        a.full(assigned("t2"))
        await until(lambda: not a.worker.clients())


async def test_a_named_resource_is_reused_only_after_its_holder_has_ended(host: Host) -> None:
    """A manager without a connection to the node has reassigned a device that is still in use."""
    old, new = assigned("t1"), assigned("t2")
    for item, made_at in ((old, 1.0), (new, 2.0)):
        item.task.created_at = made_at
        item.task.generic_resources["gpu"] = f"/dev/a,/dev/{item.task.id}"
    async with agent(host) as a:
        a.full(old)
        await a.reaches(TaskState.RUNNING)
        stopped = host.runtime.hold["kill"] = asyncio.Event()
        a.full(new)
        await until(lambda: host.runtime.did("kill"))
        assert host.runtime.did("create") == ["t1"]
        stopped.set()
        await a.reaches(TaskState.RUNNING, "t2")
        calls = [call for call in host.runtime.calls if call in (("kill", "t1"), ("create", "t2"))]
        assert calls == [("kill", "t1"), ("create", "t2")]


async def test_removals_do_not_use_the_slots_of_starts(host: Host) -> None:
    """Eight containers whose removal hangs, and one that is to start."""
    host.runtime.hold["remove"] = asyncio.Event()
    hanging = [assigned(f"old{n}") for n in range(8)]
    async with agent(host) as a:
        a.full(*hanging)
        for n in range(8):
            await a.reaches(TaskState.RUNNING, f"old{n}")
            await host.runtime.end(f"old{n}", Exit(0, False, NOW))
        await until(lambda: len(host.runtime.did("remove")) == 8)
        a.diff(assigned("new"))
        await a.reaches(TaskState.RUNNING, "new")


async def test_removals_that_hang_do_not_hold_up_others(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_REMOVAL_TIMEOUT", 0.01)
    monkeypatch.setattr(runner_module, "_RETRY_FIRST", 0.001)
    host.runtime.hold["remove"] = asyncio.Event()
    async with agent(host) as a:
        a.full(*(assigned(f"old{n}") for n in range(8)), assigned("new"))
        for n in range(8):
            await a.reaches(TaskState.RUNNING, f"old{n}")
            await host.runtime.end(f"old{n}", Exit(0, False, NOW))
            # Its end is known, and reported without waiting for the removal.
            await a.reaches(TaskState.COMPLETE, f"old{n}")
        await a.reaches(TaskState.RUNNING, "new")
        await host.runtime.end("new", Exit(0, False, NOW))
        await until(lambda: "new" in host.runtime.did("remove"))


async def test_a_stop_does_not_wait_for_an_image(host: Host) -> None:
    """An agent that has just started, on a node that has lost the image."""
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
    host.images.hold, host.images.missing = asyncio.Event(), True
    async with agent(host) as a:
        a.full(assigned(desired=TaskState.SHUTDOWN))
        await a.reaches(TaskState.SHUTDOWN)
        assert host.runtime.signals == [("t1", signal.SIGTERM)]


async def test_a_running_task_is_reported_without_its_image(host: Host) -> None:
    """The agent died between the start and its record."""
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
        a.db.put_status("t1", TaskStatus(state=TaskState.STARTING), "boot-1")
    host.images.hold, host.images.missing = asyncio.Event(), True
    async with agent(host) as a:
        await a.stored(TaskState.RUNNING)


async def test_unassigned_containers_are_removed_with_retries(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_SWEEP_FIRST", 0.001)
    async with agent(host) as a:
        a.full(assigned("old"))
        await a.reaches(TaskState.RUNNING, "old")
    (host.folder / "state.db").unlink()
    failures = [RuntimeFailure("device or resource busy"), OSError(24, "Too many open files")]
    remove, detach = host.runtime.remove, host.network.detach

    async def remove_at_last(container_id: str) -> None:
        if failures:
            raise failures.pop()
        await remove(container_id)

    refusals = [NetworkError("the helper has ended")]

    async def detach_at_last(container_id: str) -> None:
        if refusals:
            raise refusals.pop()
        await detach(container_id)

    monkeypatch.setattr(host.runtime, "remove", remove_at_last)
    monkeypatch.setattr(host.network, "detach", detach_at_last)
    async with agent(host) as a:
        a.full(assigned("new"))
        await until(lambda: not host.network.attached.keys() - {"new"})
        assert host.runtime.made.keys() <= {"new"}
        await a.reaches(TaskState.RUNNING, "new")


@pytest.mark.parametrize("method", ["adopt", "wait"])
@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), MemoryError(), ZeroDivisionError("a bug")]
)
async def test_an_error_of_the_agent_leaves_a_running_container_unchanged(
    host: Host, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    monkeypatch.setattr(runner_module, "_RETRY_FIRST", 0.001)
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
    for _ in range(3):
        host.runtime.failures[method, "t1"] = error
        async with agent(host) as a:
            a.full(assigned())
            await until(lambda: "agent error, retrying: " in a.reports.last().message)
            await until(lambda: a.reports.last().message == "")
            await until(lambda: host.runtime.calls[-1] == ("wait", "t1"))
            assert a.reports.state() is TaskState.RUNNING
    assert host.runtime.did("create") == ["t1"]
    assert host.runtime.signals == []
    async with agent(host) as a:
        await host.runtime.end("t1", Exit(5, False, NOW))
        await a.reaches(TaskState.FAILED)
        assert a.reports.last().exit_code == 5


async def test_an_error_while_probing_does_not_affect_the_container(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_RETRY_FIRST", 0.001)
    failures = [ZeroDivisionError("a bug")]

    async def probe(
        container_id: str, check: HealthCheck, addresses: Mapping[str, str]
    ) -> ProbeResult:
        if failures:
            raise failures.pop()
        return ProbeResult(True)

    monkeypatch.setattr(host.probes, "probe", probe)
    async with agent(host) as a:
        a.full(assigned(spec=spec(health=HealthCheck(test=("CMD", "true"), interval=0.01))))
        await until(lambda: a.reports.seen and a.reports.last().health is Health.HEALTHY)
        assert a.reports.state() is TaskState.RUNNING
        assert any("ZeroDivisionError" in status.message for status in a.reports.seen["t1"])
    assert host.runtime.signals == []


async def test_an_error_after_the_start_does_not_end_the_container(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = host.runtime.start

    async def started(container_id: str) -> Started:
        await start(container_id)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(host.runtime, "start", started)
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
    assert host.runtime.signals == []
    assert host.runtime.did("start") == ["t1"]


async def test_a_standalone_container_is_not_restarted_in_a_loop(host: Host) -> None:
    host.runtime.failures["create", "t1"] = ZeroDivisionError("oops")
    order = assigned()
    order.task.service_id = order.task.service_name = ""
    order.task.container_name = "box"
    order.task.run = order.task.status.run = 1
    order.task.status.state = int(TaskState.ASSIGNED)  # type: ignore[assignment]
    async with agent(host) as a:
        a.full(order)
        await a.reaches(TaskState.FAILED)
        assert "ZeroDivisionError" in a.reports.last().message
    assert host.runtime.did("create") == ["t1"]


async def test_a_lost_task_is_reported_before_its_removal_succeeds(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
    host.runtime.lose("t1")
    host.runtime.failures["remove", "t1"] = RuntimeFailure("device or resource busy")
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.FAILED)
        assert "lost" in a.reports.last().message
        await until(lambda: a.db.records()["t1"].released)


async def test_a_restored_cluster_stops_nothing_that_it_does_not_know(host: Host) -> None:
    async with agent(host) as a:
        a.worker.apply([assigned("t1"), assigned("t2")], [], [], full=True, incarnation="")
        await a.reaches(TaskState.RUNNING, "t1")
        await a.reaches(TaskState.RUNNING, "t2")
        a.worker.remove_orphans(3)
        a.worker.apply([assigned("t2")], [], [], full=True, incarnation="restored")
        assert "(t1)" in a.worker.orphans.text
    async with agent(host) as a:
        # Another agent, another session, and a store that counted fewer removals.
        a.worker.remove_orphans(1)
        a.worker.apply([assigned("t2")], [], [], full=True, incarnation="restored")
        await a.reaches(TaskState.RUNNING, "t1")
        await a.reaches(TaskState.RUNNING, "t2")
        assert set(host.runtime.running) == {"t1", "t2"}
        assert "(t1)" in a.worker.orphans.text
        a.worker.remove_orphans(2)
        await until(lambda: "t1" not in a.worker.runners)
        assert set(host.runtime.running) == {"t2"}
        assert a.worker.orphans.text == ""
    assert host.runtime.did("create") == ["t1", "t2"]


async def test_one_of_two_orphans_is_removed(host: Host) -> None:
    async with agent(host) as a:
        a.worker.apply([assigned("t1"), assigned("t2")], [], [], full=True, incarnation="")
        await a.reaches(TaskState.RUNNING, "t1")
        await a.reaches(TaskState.RUNNING, "t2")
        assert a.worker.orphans.state == ()
        a.worker.apply([], [], [], full=True, incarnation="restored")
        reported = a.worker.orphans.tasks
        assert [task.id for task in reported] == ["t1", "t2"]
        assert {task.status.state for task in reported} == {TaskState.RUNNING}
        before = a.worker.orphans.state
        a.worker.remove_orphans(0, ["t1", "t3"])
        assert [task.id for task in a.worker.orphans.tasks] == ["t1", "t2"], "until it is gone"
        await until(lambda: "t1" not in a.worker.runners)
        assert [task.id for task in a.worker.orphans.tasks] == ["t2"]
        assert a.worker.orphans.state != before
        assert set(host.runtime.running) == {"t2"}


async def test_an_orphan_that_is_assigned_again_is_one_no_more(host: Host) -> None:
    async with agent(host) as a:
        a.worker.apply([assigned("t1")], [], [], full=True, incarnation="")
        await a.reaches(TaskState.RUNNING, "t1")
        a.worker.apply([], [], [], full=True, incarnation="restored")
        a.diff(assigned("t1"))
        assert a.worker.orphans.text == ""
        a.worker.apply([], [], [], full=True, incarnation="restored")
        await until(lambda: "t1" not in a.worker.runners)


async def test_an_orphan_keeps_its_network(host: Host) -> None:
    order = assigned("t1")
    order.task.spec.networks.add(network="back")
    back = dispatch_pb2.AssignedNetwork(id="n1", name="back")
    async with agent(host) as a:
        a.worker.apply([order], [], [back], full=True, incarnation="")
        await a.reaches(TaskState.RUNNING, "t1")
        a.worker.apply([], [], [], full=True, incarnation="restored")
        assert [network.id for network in a.db.networks()] == ["n1"]
        a.worker.remove_orphans(1)
        await until(lambda: "t1" not in a.worker.runners)
        a.worker.apply([], [], [], full=True, incarnation="restored")
        assert a.db.networks() == []
