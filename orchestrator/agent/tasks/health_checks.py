"""When a container is probed, and what the results make of its health.

A successful probe makes it healthy at once. `retries` failures in a row make it unhealthy, as in
Docker; failures in the start period do not count.

Until the first success, probes come early and then less often (100 ms, 200 ms, … up to
`start_interval`): a program that is ready in a moment serves in a moment. Early probes can only
help: a failure counts only when `interval` has passed since the start, or since the last one that
counted, so nothing becomes unhealthy sooner than in Docker, which probes only then.
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
    """What one probe found. `output`: in one line, why it failed."""

    passed: bool
    output: str = ""


class Prober(Protocol):
    """Probes containers (`probes.Probes`)."""

    async def probe(
        self, container_id: str, check: HealthCheck, addresses: Mapping[str, str]
    ) -> ProbeResult: ...


@dataclass(frozen=True, slots=True)
class HealthRecord:
    """What is known of a container's health. Times in seconds of one clock."""

    health: Health
    since: float
    """When the container was started, or a failure last counted."""
    failures: int = 0
    """Those in a row that count."""
    pause: float = _FIRST
    """Seconds until the next probe, as long as none has succeeded."""
    output: str = ""
    """Of the last probe, if it failed."""


def next_probe(check: HealthCheck, checkup: HealthRecord) -> float:
    """Seconds from one probe (or the start) to the next."""
    if checkup.health is not Health.STARTING:
        return check.interval
    return min(checkup.pause, check.start_interval, check.interval)


def judge(
    check: HealthCheck, checkup: HealthRecord, answer: ProbeResult, started_at: float, now: float
) -> HealthRecord:
    """What a probe's answer makes of the health of a container that runs since `started_at`."""
    if answer.passed:
        return HealthRecord(Health.HEALTHY, since=now)
    failed = replace(checkup, output=answer.output)
    if failed.health is Health.STARTING:
        failed = replace(failed, pause=2 * failed.pause)
        if now < started_at + check.start_period or now < failed.since + check.interval:
            return failed
    failures = failed.failures + 1
    health = Health.UNHEALTHY if failures >= check.retries else failed.health
    return replace(failed, health=health, since=now, failures=failures)


class Monitored(Protocol):
    """A running container, as its runner knows it."""

    @property
    def id(self) -> str: ...

    @property
    def status(self) -> TaskStatus: ...


class HealthMonitor:
    """Probes one container; between two runs of it, nothing is remembered."""

    def __init__(self, probes: Prober, clock: Callable[[], float]) -> None:
        self._probes = probes
        self._clock = clock
        self._pid = 0
        self._checkup = HealthRecord(Health.STARTING, since=0.0)

    async def attend(
        self, patient: Monitored, check: HealthCheck, tell: Callable[[Health, str], None]
    ) -> None:
        """Probe until cancelled, and `tell` each change of health, or of what a failing probe
        says. A container that is paused is let alone."""
        if self._pid != patient.status.pid:
            # A new run, or one that an earlier agent looked after: its word stands.
            status = patient.status
            self._pid = status.pid
            self._checkup = HealthRecord(
                status.health, status.started_at, output=status.health_output
            )
        while True:
            await asyncio.sleep(next_probe(check, self._checkup))
            status = patient.status
            if status.paused:
                continue
            answer = await self._probes.probe(patient.id, check, status.addresses)
            self._checkup = judge(check, self._checkup, answer, status.started_at, self._clock())
            if (self._checkup.health, self._checkup.output) != (
                status.health,
                status.health_output,
            ):
                tell(self._checkup.health, self._checkup.output)
