# SPDX-License-Identifier: Apache-2.0
"""Calls about jobs while the planner writes how they go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.manager.store.keys import object_key
from orchestrator.manager.store.kv import Guard, Op, Put
from orchestrator.model.convert import decode, encode, from_proto, to_proto
from orchestrator.model.jobs import JobSpec
from orchestrator.model.services import JobState, Service
from orchestrator.model.specs import (
    ContainerSpec,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.pb import control_pb2, control_pb2_grpc, jobs_pb2, jobs_pb2_grpc

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


def overtake(running: Running, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on somebody is faster, once for each write of a job: how it goes is written, as the
    planner does, between what a call has read and what it writes."""
    key, txn, ahead = object_key(from_proto(service)), running.kv.txn, True

    async def overtaken(guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        nonlocal ahead
        entry = await running.kv.get(key)
        if entry is None or key not in {guard.key for guard in guards}:
            return await txn(guards, ops)
        if ahead:
            ahead = False
            job = decode(Service, entry.value)
            after = replace(job, job=replace(job.job, skipped=job.job.skipped + 1))
            await txn([Guard(key, mod_revision=entry.mod_revision)], [Put(key, encode(after))])
        revision = await txn(guards, ops)
        ahead = True
        return revision

    monkeypatch.setattr(running.kv, "txn", overtaken)


async def create(control: Any, spec: ServiceSpec = SPEC) -> Any:
    return await control.CreateService(control_pb2.CreateServiceRequest(spec=to_proto(spec)))


async def test_a_busy_job_is_changed_stopped_started_and_removed(
    running: Running, calls: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    control, jobs = calls
    overtake(running, await create(control), monkeypatch)
    spec = to_proto(replace(SPEC, labels={"a": "b"}))
    update = control_pb2.UpdateServiceRequest(service="sums", spec=spec)
    changed: Service = from_proto(await control.UpdateService(update))
    assert (changed.spec.labels, len(changed.job.runs)) == ({"a": "b"}, 1)
    stopped = from_proto(await jobs.StopJob(jobs_pb2.StopJobRequest(job="sums")))
    assert stopped.job.runs[0].state is JobState.STOPPED
    started = from_proto(await jobs.StartJob(jobs_pb2.StartJobRequest(job="sums")))
    assert started.job.runs[0].number == 2
    await control.RemoveService(control_pb2.RemoveServiceRequest(service="sums"))


async def test_errors_for_services_that_are_no_jobs_and_jobs_without_runs(
    running: Running, calls: tuple[Any, Any]
) -> None:
    control, jobs = calls
    await create(control)
    web = replace(SPEC, name="web", mode=ServiceMode.REPLICATED)
    await create(control, web)
    await create(control, replace(SPEC, name="nightly", job=JobSpec(schedule="@daily")))
    for call, words in (
        (
            jobs.StartJob(jobs_pb2.StartJobRequest(job="sums")),
            "run 1 of job 'sums' is still in progress",
        ),
        (jobs.StopJob(jobs_pb2.StopJobRequest(job="web")), "'web' is a service, not a job"),
        (
            jobs.StopJob(jobs_pb2.StopJobRequest(job="nightly")),
            "no run of job 'nightly' is in progress",
        ),
        (jobs.StopJob(jobs_pb2.StopJobRequest(job="nigthly")), "did you mean 'nightly'?"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert words in str(refused.value.details())
