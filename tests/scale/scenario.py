# SPDX-License-Identifier: Apache-2.0
"""One run: nodes join, services are declared, and what a user cares for is counted."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from orchestrator.daemon.background import background
from orchestrator.pb import control_pb2, control_pb2_grpc, types_pb2
from tests.scale.agents import DIGEST, IMAGE, Report
from tests.scale.cluster import Agents, ManagerProcess, burning

POLL = 0.25
"""Seconds between two looks at the agents' reports."""
PROBE = 0.5
"""Seconds between two calls of the API whose answers are timed."""
SETTLE = 3.0
"""Seconds for which a converged cluster is watched for what comes late."""
IDLE = 5.0
"""Seconds over which the CPU of an idle cluster is measured."""
CHANGES, CHANGED_TASKS = 10, 10
"""Services that are created in the end, one after another, and the tasks of each."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is tried."""

    nodes: int
    tasks: int
    services: int = 20
    seconds: float = 300.0
    """How long each phase may take."""
    burn: bool = False
    """Other processes use all cores."""
    reconnect: bool = False
    """All nodes reconnect at once when the cluster has converged."""
    fail: float = 0.0
    """Per cent of the nodes that then fail."""
    update: bool = False
    """All services are then updated, a tenth of their tasks at a time."""
    external_etcd: bool = False
    """etcd with its default limits."""
    folder: Path | None = None
    """Where the manager's log and data stay; nowhere if there is none."""


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    joined: float | None = None
    """Seconds until all nodes were in session; None if they were not in time."""
    converged: float | None = None
    """Seconds until all tasks ran, and the manager knew."""
    reconnected: float | None = None
    """Seconds until all nodes were in session again, and the manager knew all that runs."""
    idle_cpu: float = 0.0
    """Cores that the manager uses while nodes are in session and nothing changes."""
    idle_store_cpu: float = 0.0
    """Cores that etcd uses then."""
    recovered: float | None = None
    """Seconds from the failure of nodes until their tasks ran on others."""
    updated: float | None = None
    """Seconds until all tasks ran with a new spec."""
    store_cpu: float = 0.0
    """Seconds of etcd's process."""
    store_memory: int = 0
    """Bytes resident in etcd at the end."""
    sessions: int = 0
    """Nodes in session at the end."""
    lost: int = 0
    """Sessions that ended, but for those that were broken by order."""
    failed: int = 0
    """Attempts to open a session that failed."""
    elections: int = 0
    replaced: int = 0
    """Tasks that were assigned beyond those declared."""
    stopped: int = 0
    """Tasks that ran and were stopped."""
    running: int = 0
    down: int = 0
    """Nodes that the manager called down."""
    cpu: float = 0.0
    """Seconds of the manager's process."""
    memory: int = 0
    """Bytes resident in the manager's process at the end."""
    answers: list[float] = field(default_factory=list)
    """Seconds until each answer to a simple call of the API: how late the manager's loop is."""
    changes: list[float] = field(default_factory=list)
    """Seconds from the request for another small service until its tasks were assigned, once all
    others ran."""
    received: int = 0
    """Bytes of all messages to agents."""
    messages: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    """Why sessions ended or were not opened."""
    load: float = 0.0
    """Of the machine over the last minute, before the run."""


async def run(scenario: Scenario) -> Outcome:
    """Have it happen."""
    outcome = Outcome(load=os.getloadavg()[0])
    async with AsyncExitStack() as stack:
        folder = scenario.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orc-scale-")))
        manager = ManagerProcess(folder, external_etcd=scenario.external_etcd)
        stack.enter_context(manager.running())
        await manager.ready()
        if scenario.burn:
            stack.enter_context(burning(os.cpu_count() or 1))
        agents = Agents(manager, scenario.nodes)
        await stack.enter_async_context(agents.running())
        channel = await stack.enter_async_context(manager.channel())
        stub = control_pb2_grpc.ControlStub(channel)
        await stack.enter_async_context(background(_probe(stub, outcome.answers)))
        await _phases(scenario, outcome, agents, manager, stub)
        await _count(outcome, agents, manager, stub)
        if outcome.converged is not None:
            outcome.changes = [await _change(stub, number) for number in range(CHANGES)]
    return outcome


async def _phases(
    scenario: Scenario,
    outcome: Outcome,
    agents: Agents,
    manager: ManagerProcess,
    stub: control_pb2_grpc.ControlStub,
) -> None:
    def connected(report: Report) -> bool:
        return report.connected == scenario.nodes

    def running(report: Report) -> bool:
        return connected(report) and report.running == scenario.tasks

    outcome.joined = await _until(agents, connected, scenario.seconds)
    if outcome.joined is None:
        return
    await _measure_idle(outcome, manager)
    began = time.monotonic()
    for spec in _specs(scenario):
        await _create(stub, spec)
    if await _until(agents, running, scenario.seconds) is None:
        return
    outcome.converged = time.monotonic() - began
    await asyncio.sleep(SETTLE)
    if scenario.reconnect:
        before = agents.report.opened
        agents.reconnect()

        def again(report: Report) -> bool:
            return report.opened >= before + scenario.nodes and running(report)

        outcome.reconnected = await _until(agents, again, scenario.seconds)
        await asyncio.sleep(SETTLE)
    if scenario.update:
        assigned = agents.report.assigned
        began = time.monotonic()
        for spec in _specs(scenario, generation=2):
            request = control_pb2.UpdateServiceRequest(
                service=spec.name, spec=spec, no_resolve_image=True
            )
            await stub.UpdateService(request)

        def renewed(report: Report) -> bool:
            return report.assigned >= assigned + scenario.tasks and running(report)

        if await _until(agents, renewed, scenario.seconds) is not None:
            outcome.updated = time.monotonic() - began
    if failing := round(scenario.nodes * scenario.fail / 100):
        agents.fail(failing)

        def elsewhere(report: Report) -> bool:
            left = report.connected == scenario.nodes - failing
            return left and report.running == scenario.tasks

        outcome.recovered = await _until(agents, elsewhere, scenario.seconds)


async def _measure_idle(outcome: Outcome, manager: ManagerProcess) -> None:
    await asyncio.sleep(SETTLE)
    began, cpu, store = time.monotonic(), manager.cpu_seconds, manager.store_cpu_seconds
    await asyncio.sleep(IDLE)
    took = time.monotonic() - began
    outcome.idle_cpu = (manager.cpu_seconds - cpu) / took
    outcome.idle_store_cpu = (manager.store_cpu_seconds - store) / took


async def _create(stub: control_pb2_grpc.ControlStub, spec: types_pb2.ServiceSpec) -> None:
    """Create a service, as often as it takes: the store may be away for a moment."""
    request = control_pb2.CreateServiceRequest(spec=spec, no_resolve_image=True)
    while True:
        try:
            await stub.CreateService(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                return
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(POLL)
        else:
            return


async def _change(stub: control_pb2_grpc.ControlStub, number: int) -> float:
    """Seconds until the tasks of a new service were assigned, as a client sees it."""
    name = f"late{number}"
    began = time.monotonic()
    await _create(stub, _spec(name, CHANGED_TASKS))
    while True:
        reply = await stub.ListTasks(control_pb2.ListTasksRequest(service=name))
        if sum(bool(task.node_id) for task in reply.tasks) == CHANGED_TASKS:
            return time.monotonic() - began
        await asyncio.sleep(0.002)


def _specs(scenario: Scenario, generation: int = 1) -> list[types_pb2.ServiceSpec]:
    """The services; a later generation differs in what their containers see."""
    services = min(scenario.services, scenario.tasks)
    share, rest = divmod(scenario.tasks, services)
    return [
        _spec(f"app{number}", share + (number < rest), max(1, share // 10), generation)
        for number in range(services)
    ]


def _spec(
    name: str, replicas: int, parallelism: int = 1, generation: int = 1
) -> types_pb2.ServiceSpec:
    return types_pb2.ServiceSpec(
        name=name,
        replicas=replicas,
        update=types_pb2.UpdatePolicy(parallelism=parallelism),
        task=types_pb2.TaskSpec(
            container=types_pb2.ContainerSpec(
                image=f"{IMAGE}@{DIGEST}",
                env=["A=1", f"B={generation}"],
                labels={"part": "load"},
            ),
            reservation=types_pb2.Resources(shares=16, memory=16 << 20),
            networks=[types_pb2.NetworkAttachment(network="default")],
        ),
    )


async def _until(agents: Agents, done: object, seconds: float) -> float | None:
    """Seconds until the agents' report is as wanted; None if that takes too long."""
    assert callable(done)
    began = time.monotonic()
    while not done(agents.report):
        if time.monotonic() - began > seconds:
            return None
        await asyncio.sleep(POLL)
    return time.monotonic() - began


async def _probe(stub: control_pb2_grpc.ControlStub, answers: list[float]) -> None:
    while True:
        began = time.monotonic()
        with suppress(grpc.aio.AioRpcError):
            await stub.GetCluster(control_pb2.GetClusterRequest(), timeout=30.0)
        answers.append(time.monotonic() - began)
        await asyncio.sleep(PROBE)


async def _all_tasks(stub: control_pb2_grpc.ControlStub) -> list[types_pb2.Task]:
    request = control_pb2.ListTasksRequest(page_size=5000)
    tasks: list[types_pb2.Task] = []
    while True:
        reply = await stub.ListTasks(request)
        tasks += reply.tasks
        if not reply.next_page_token:
            return tasks
        request.page_token = reply.next_page_token


async def _count(
    outcome: Outcome, agents: Agents, manager: ManagerProcess, stub: control_pb2_grpc.ControlStub
) -> None:
    outcome.cpu, outcome.memory = manager.cpu_seconds, manager.memory
    outcome.store_cpu, outcome.store_memory = manager.store_cpu_seconds, manager.store_memory
    report = agents.report
    tasks = await _all_tasks(stub)
    wanted = [task for task in tasks if task.desired_state <= types_pb2.TASK_RUNNING]
    outcome.running = sum(task.status.state == types_pb2.TASK_RUNNING for task in wanted)
    nodes = (await stub.ListNodes(control_pb2.ListNodesRequest())).nodes
    # A node that was called down and is back keeps the time of that.
    outcome.down = sum(bool(row.node.downs) for row in nodes)
    ever = {task.id for task in tasks if task.node_id}
    outcome.replaced = max(report.assigned, len(ever)) - len(wanted)
    outcome.stopped = report.stopped
    outcome.sessions = report.connected
    outcome.lost = sum(report.ended.values())
    outcome.failed = sum(report.failed.values())
    outcome.elections = manager.logged("elected")
    outcome.received, outcome.messages = report.received, report.messages
    outcome.reasons = {**report.failed, **report.ended}
