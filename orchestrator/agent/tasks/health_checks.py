# SPDX-License-Identifier: Apache-2.0
"""Health checks: when a container is probed, and how the results change its health.

A successful probe makes a container healthy immediately. `retries` consecutive failures make it
unhealthy, as in Docker; failures in the start period do not count.

Until the first success, probes begin early and become less frequent (100 ms, 200 ms, … up to
`start_interval`), so that a program which starts fast gets traffic soon. Early probes never make a
container unhealthy sooner than in Docker, which probes every `interval`: a failure counts only when
`interval` has passed since the start, or since the last one that counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from orchestrator.model.specs import HealthCheck
from orchestrator.model.tasks import Health, TaskStatus

_FIRST = 0.1
"""Seconds from the start to the first probe, which then double."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one probe. `output`: why it failed, in one line."""

    passed: bool
    output: str = ""


class Prober(Protocol):
    """Probes containers (`probes.Probes`)."""

    async def probe(
        self, container_id: str, check: HealthCheck, addresses: Mapping[str, str]
    ) -> ProbeResult: ...


@dataclass(frozen=True, slots=True)
class HealthRecord:
    """The health of a container. Times in seconds of one clock."""

    health: Health
    since: float
    """When the container started, or a failure last counted."""
    failures: int = 0
    """Consecutive failures that count."""
    pause: float = _FIRST
    """Seconds until the next probe, as long as none has succeeded."""
    output: str = ""
    """Of the last probe, if it failed."""


def next_probe(check: HealthCheck, record: HealthRecord) -> float:
    """Seconds from one probe (or the start) to the next."""
    if record.health is not Health.STARTING:
        return check.interval
    return min(record.pause, check.start_interval, check.interval)


def judge(
    check: HealthCheck, record: HealthRecord, result: ProbeResult, started_at: float, now: float
) -> HealthRecord:
    """The health of a container, running since `started_at`, after a probe."""
    if result.passed:
        return HealthRecord(Health.HEALTHY, since=now)
    failed = replace(record, output=result.output)
    if failed.health is Health.STARTING:
        failed = replace(failed, pause=2 * failed.pause)
        if now < started_at + check.start_period or now < failed.since + check.interval:
            return failed
    failures = failed.failures + 1
    health = Health.UNHEALTHY if failures >= check.retries else failed.health
    return replace(failed, health=health, since=now, failures=failures)


class Monitored(Protocol):
    """A running container."""

    @property
    def id(self) -> str: ...

    @property
    def status(self) -> TaskStatus: ...


class HealthMonitor:
    """Probes one container."""

    def __init__(self, probes: Prober, clock: Callable[[], float]) -> None:
        self._probes = probes
        self._clock = clock
        self._pid = 0
        self._record = HealthRecord(Health.STARTING, since=0.0)

    async def run(
        self, container: Monitored, check: HealthCheck, report: Callable[[Health, str], None]
    ) -> None:
        """Probe until cancelled; `report` gets each change of health or of a failing probe's
        output. A paused container is not probed."""
        if self._pid != container.status.pid:
            # A new run, or one that an earlier agent has probed: continue with its result.
            status = container.status
            self._pid = status.pid
            self._record = HealthRecord(
                status.health, status.started_at, output=status.health_output
            )
        while True:
            await asyncio.sleep(next_probe(check, self._record))
            status = container.status
            if status.paused:
                continue
            result = await self._probes.probe(container.id, check, status.addresses)
            self._record = judge(check, self._record, result, status.started_at, self._clock())
            if (self._record.health, self._record.output) != (
                status.health,
                status.health_output,
            ):
                report(self._record.health, self._record.output)
