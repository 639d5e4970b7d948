"""When a container is probed, and what the answers make of its health; pure.

A probe that succeeds makes it healthy at once. `retries` failures in a row make it unhealthy, as in
Docker; failures in the start period do not count.

As long as none has succeeded, probes come soon and more seldom with time (100 ms, 200 ms, … up to
`start_interval`): a program that is ready in a moment serves in a moment. Such early probes only
ever help: a failure counts only when `interval` has passed since the start, or since the last one
that counted, so nothing is ever unhealthy sooner than in Docker, which looks only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from orchestrator.model.specs import HealthCheck
from orchestrator.model.tasks import Health

_FIRST = 0.1
"""Seconds from the start to the first probe, which then double."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one probe found. `output`: in one line, why it failed."""

    passed: bool
    output: str = ""


class Prober(Protocol):
    """Probes containers (`probes.Probes`)."""

    async def probe(
        self, container_id: str, check: HealthCheck, addresses: Mapping[str, str]
    ) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Checkup:
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


def wait(check: HealthCheck, checkup: Checkup) -> float:
    """Seconds from one probe (or the start) to the next."""
    if checkup.health is not Health.STARTING:
        return check.interval
    return min(checkup.pause, check.start_interval, check.interval)


def judge(
    check: HealthCheck, checkup: Checkup, answer: Answer, started_at: float, now: float
) -> Checkup:
    """What a probe's answer makes of the health of a container that runs since `started_at`."""
    if answer.passed:
        return Checkup(Health.HEALTHY, since=now)
    failed = replace(checkup, output=answer.output)
    if failed.health is Health.STARTING:
        failed = replace(failed, pause=2 * failed.pause)
        if now < started_at + check.start_period or now < failed.since + check.interval:
            return failed
    failures = failed.failures + 1
    health = Health.UNHEALTHY if failures >= check.retries else failed.health
    return replace(failed, health=health, since=now, failures=failures)
