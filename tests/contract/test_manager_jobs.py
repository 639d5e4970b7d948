"""Calls about jobs while the planner writes how they go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Conflict, Guard, Put
from orchestrator.model.convert import decode, encode, from_proto, to_proto
from orchestrator.model.objects import JobState, Service
from orchestrator.model.specs import (
    ContainerSpec,
    JobSpec,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.pb import control_pb2, control_pb2_grpc, jobs_pb2, jobs_pb2_grpc

PACE = 0.01
"""Seconds between two writes: faster than any job's tasks end on a node."""

SPEC = ServiceSpec(
    name="sums",
    mode=ServiceMode.REPLICATED_JOB,
    task=TaskSpec(
        container=ContainerSpec(command=("true",), rootfs="host"),
        restart=RestartPolicy(RestartCondition.ON_FAILURE),
    ),
)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager") as running:
        yield running


@pytest.fixture
async def calls(running: Running) -> AsyncIterator[tuple[Any, Any]]:
    async with running.channel(running.admin) as channel:
        yield control_pb2_grpc.ControlStub(channel), jobs_pb2_grpc.JobsStub(channel)


@asynccontextmanager
async def busy(running: Running, service: Any) -> AsyncIterator[None]:
    """Somebody writes how the job goes, again and again, each time once it has read what it wrote,
    as the planner does."""
    key = object_key(from_proto(service))

    async def write() -> None:
        for number in range(1_000_000):
            entry = await running.kv.get(key)
            if entry is None:
                return
            job = decode(Service, entry.value)
            after = replace(job, job=replace(job.job, message=str(number)))
            guard = Guard(key, mod_revision=entry.mod_revision)
            try:
                revision = await running.kv.txn([guard], [Put(key, encode(after))])
            except Conflict:
                continue
            await running.manager.cache.wait_for(revision)
            await asyncio.sleep(PACE)

    writing = asyncio.create_task(write())
    try:
        yield
    finally:
        writing.cancel()


async def create(control: Any, spec: ServiceSpec = SPEC) -> Any:
    return await control.CreateService(control_pb2.CreateServiceRequest(spec=to_proto(spec)))


async def test_a_busy_job_is_changed_stopped_started_and_removed(
    running: Running, calls: tuple[Any, Any]
) -> None:
    control, jobs = calls
    made = await create(control)
    async with busy(running, made):
        spec = to_proto(replace(SPEC, labels={"a": "b"}))
        update = control_pb2.UpdateServiceRequest(service="sums", spec=spec)
        changed: Service = from_proto(await control.UpdateService(update))
        assert (changed.spec.labels, len(changed.job.runs)) == ({"a": "b"}, 1)
        stopped = from_proto(await jobs.StopJob(jobs_pb2.StopJobRequest(job="sums")))
        assert stopped.job.runs[0].state is JobState.STOPPED
        started = from_proto(await jobs.StartJob(jobs_pb2.StartJobRequest(job="sums")))
        assert started.job.runs[0].number == 2
        await control.RemoveService(control_pb2.RemoveServiceRequest(service="sums"))


async def test_what_is_no_job_or_has_no_run_is_told(
    running: Running, calls: tuple[Any, Any]
) -> None:
    control, jobs = calls
    await create(control)
    web = replace(SPEC, name="web", mode=ServiceMode.REPLICATED)
    await create(control, web)
    await create(control, replace(SPEC, name="nightly", job=JobSpec(schedule="@daily")))
    for call, words in (
        (jobs.StartJob(jobs_pb2.StartJobRequest(job="sums")), "run 1 of job 'sums' is still under"),
        (jobs.StopJob(jobs_pb2.StopJobRequest(job="web")), "'web' is a service, not a job"),
        (jobs.StopJob(jobs_pb2.StopJobRequest(job="nightly")), "no run of job 'nightly' is under"),
        (jobs.StopJob(jobs_pb2.StopJobRequest(job="nigthly")), "did you mean 'nightly'?"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert words in str(refused.value.details())
