# SPDX-License-Identifier: Apache-2.0
"""What a task's health does to it: reported, lasting over an agent's end, the end of a service's
task and not of a container of its own."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from agentfakes import Host, assigned, until
from test_worker import Agent, agent

from orchestrator.agent.tasks.health_checks import ProbeResult
from orchestrator.model.specs import ContainerSpec, HealthCheck, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health
from orchestrator.pb import dispatch_pb2, types_pb2

OFTEN = HealthCheck(("TCP", "80"), interval=0.001, timeout=1.0, start_interval=0.001, retries=3)
REFUSED = ProbeResult(False, "connection refused")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def probed(health: HealthCheck = OFTEN) -> dispatch_pb2.AssignedTask:
    return assigned(spec=TaskSpec(ContainerSpec(image="hello:1", health=health)))


async def is_now(a: Agent, health: Health) -> None:
    await until(lambda: "t1" in a.reports.seen and a.reports.last().health is health)


async def test_a_task_without_a_check_has_no_health_and_is_not_probed(host: Host) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
        assert a.reports.last().health is Health.NONE
        assert a.reports.last().works
    assert host.probes.asked == []


async def test_task_works_only_once_a_probe_has_succeeded(host: Host) -> None:
    async with agent(host) as a:
        a.full(probed())
        await is_now(a, Health.HEALTHY)
        statuses = [s for s in a.reports.seen["t1"] if s.state is TaskState.RUNNING]
        assert [s.health for s in statuses] == [Health.STARTING, Health.HEALTHY]
        assert [s.works for s in statuses] == [False, True]


async def test_the_images_own_check_is_made(host: Host) -> None:
    host.images.config_of_image = replace(host.images.config_of_image, health=OFTEN)
    async with agent(host) as a:
        a.full(assigned())
        await is_now(a, Health.HEALTHY)


async def test_an_unhealthy_task_of_a_service_is_stopped_and_has_failed(host: Host) -> None:
    host.probes.answers = [ProbeResult(True), REFUSED]
    async with agent(host) as a:
        a.full(probed())
        await a.reaches(TaskState.FAILED)
        assert a.reports.last().message == "unhealthy: connection refused"
        assert host.runtime.signals == [("t1", signal.SIGINT)]
        assert len(host.probes.asked) == 4, "one that passes, three that fail"
        health = [s.health for s in a.reports.seen["t1"]]
        assert Health.UNHEALTHY in health[: health.index(health[-1]) + 1]


async def test_an_unhealthy_standalone_container_continues(host: Host) -> None:
    host.probes.answers = [REFUSED, REFUSED, REFUSED, REFUSED, ProbeResult(True)]
    order = probed()
    order.task.service_id = ""
    order.task.container_name = "box"
    order.task.run = order.task.status.run = 1
    order.task.status.state = types_pb2.TASK_ASSIGNED
    async with agent(host) as a:
        a.full(order)
        await is_now(a, Health.HEALTHY)
        assert a.reports.last().state is TaskState.RUNNING
        assert host.runtime.signals == []


async def test_the_next_agent_continues_where_the_last_one_stopped(host: Host) -> None:
    async with agent(host) as a:
        a.full(probed())
        await is_now(a, Health.HEALTHY)
        await a.stored(TaskState.RUNNING)
    host.probes.answers = [REFUSED]
    host.probes.asked.clear()
    async with agent(host) as a:
        assert a.reports.last().health is Health.HEALTHY, "until a probe says otherwise"
        await a.reaches(TaskState.FAILED)
        assert len(host.probes.asked) >= OFTEN.retries


async def test_an_agent_that_died_before_it_stopped_the_unhealthy_stops_it(host: Host) -> None:
    host.probes.answers = [ProbeResult(True), REFUSED]
    host.runtime.deaf.add("t1")
    async with agent(host) as a:
        a.full(probed())
        await until(lambda: host.runtime.signals)
    host.runtime.deaf.clear()
    async with agent(host) as a:
        await a.reaches(TaskState.FAILED)
        assert a.reports.last().message == "unhealthy: connection refused"


async def test_an_ordered_stop_is_a_shutdown_despite_failing_health(host: Host) -> None:
    async with agent(host) as a:
        a.full(probed())
        await is_now(a, Health.HEALTHY)
        order = probed()
        order.task.desired_state = int(TaskState.SHUTDOWN)
        a.diff(order)
        await a.reaches(TaskState.SHUTDOWN)
