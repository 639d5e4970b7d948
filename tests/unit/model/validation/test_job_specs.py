# SPDX-License-Identifier: Apache-2.0
"""Each error in a job spec, with its field and message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.model.jobs import JobSpec, Overlap
from orchestrator.model.specs import (
    ContainerSpec,
    EndpointMode,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
)
from orchestrator.model.validation.service_specs import InvalidSpec, validate_service

RESTART = RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=3)
TASK = TaskSpec(container=ContainerSpec(image="sums:1"), restart=RESTART)
GOOD = ServiceSpec(name="sums", mode=ServiceMode.REPLICATED_JOB, task=TASK)


def job(**values: Any) -> ServiceSpec:
    return replace(GOOD, job=JobSpec(**values))


def restarting(**values: Any) -> ServiceSpec:
    return replace(GOOD, task=replace(TASK, restart=replace(RESTART, **values)))


@pytest.mark.parametrize(
    "spec",
    [
        GOOD,
        replace(GOOD, mode=ServiceMode.GLOBAL_JOB),
        job(parallelism=3, deadline=60.0, history=1),
        job(schedule="@daily", time_zone="Europe/Vienna", overlap=Overlap.ALLOW, suspended=True),
        restarting(condition=RestartCondition.NONE),
    ],
)
def test_valid_job_specs_are_accepted(spec: ServiceSpec) -> None:
    validate_service(spec)


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (replace(job(parallelism=2), mode=ServiceMode.GLOBAL), "job", "only jobs have"),
        (replace(GOOD, replicas=100_001), "replicas", "completions 100001 is over 100000"),
        (replace(GOOD, replicas=-1), "replicas", "completions -1 is negative"),
        (job(parallelism=-1), "job.parallelism", "parallelism -1 is negative; 0 is no limit"),
        (job(deadline=-1.0), "job.deadline", "deadline -1 is negative"),
        (job(history=0), "job.history", "history 0 is below 1"),
        (job(schedule="* * *"), "job.schedule", "has 3 fields"),
        (job(schedule="@daily", time_zone="Mars/Base"), "job.schedule", "'Mars/Base' is unknown"),
        (job(overlap=Overlap.REPLACE), "job.schedule", "are of a schedule; give one"),
        (
            restarting(condition=RestartCondition.ANY),
            "task.restart.condition",
            "on-failure or",
        ),
        (restarting(window=5.0), "task.restart.window", "over its whole run"),
        (replace(GOOD, update=UpdatePolicy(delay=1.0)), "update", "another spec is another run"),
        (replace(GOOD, rollback=UpdatePolicy(parallelism=2)), "rollback", "another run"),
        (replace(GOOD, endpoint_mode=EndpointMode.DNSRR), "endpoint_mode", "no endpoint mode"),
    ],
)
def test_invalid_job_specs_name_the_field(spec: ServiceSpec, field: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as raised:
        validate_service(spec)
    assert (raised.value.field, words in str(raised.value)) == (field, True), str(raised.value)
