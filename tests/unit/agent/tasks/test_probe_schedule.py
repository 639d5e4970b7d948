# SPDX-License-Identifier: Apache-2.0
"""When a container is probed, and what the answers make of its health."""

from __future__ import annotations

import pytest

from orchestrator.agent.tasks.health_checks import HealthRecord, ProbeResult, judge, next_probe
from orchestrator.model.specs import HealthCheck
from orchestrator.model.tasks import Health

CHECK = HealthCheck(
    ("TCP", "80"), interval=10.0, timeout=1.0, start_period=0.0, start_interval=2.0, retries=3
)
PASSED, FAILED = ProbeResult(True), ProbeResult(False, "refused")
START = 1000.0


class Run:
    """One container's checks, as time passes from its start."""

    def __init__(self, check: HealthCheck = CHECK) -> None:
        self.check = check
        self.now = START
        self.checkup = HealthRecord(Health.STARTING, since=START)

    def probe(self, answer: ProbeResult) -> Health:
        self.now += next_probe(self.check, self.checkup)
        self.checkup = judge(self.check, self.checkup, answer, START, self.now)
        return self.checkup.health

    def until(self, health: Health, answer: ProbeResult) -> float:
        """Seconds after the start at which such answers led there."""
        for _ in range(1000):
            if self.probe(answer) is health:
                return self.now - START
        raise AssertionError(f"never {health.name}")


def test_the_first_success_comes_soon_and_makes_it_healthy() -> None:
    assert Run().until(Health.HEALTHY, PASSED) == pytest.approx(0.1)


def test_probes_come_more_seldom_up_to_the_start_interval_until_one_succeeds() -> None:
    run = Run()
    moments = []
    for _ in range(7):
        run.probe(FAILED)
        moments.append(round(run.now - START, 3))
    assert moments == [0.1, 0.3, 0.7, 1.5, 3.1, 5.1, 7.1]
    run.probe(PASSED)
    assert next_probe(CHECK, run.checkup) == 10.0


def test_a_start_that_fails_is_unhealthy_no_sooner_than_by_the_interval_alone() -> None:
    run = Run()
    assert 30.0 <= run.until(Health.UNHEALTHY, FAILED) < 40.0
    assert run.checkup.output == "refused"


def test_failures_in_the_start_period_do_not_count() -> None:
    slow = HealthCheck(("TCP", "80"), 10.0, 1.0, 60.0, 2.0, 3)
    assert 60.0 + 20.0 <= Run(slow).until(Health.UNHEALTHY, FAILED) < 60.0 + 40.0


def test_retries_count_failures_in_a_row() -> None:
    run = Run()
    run.probe(PASSED)
    assert [run.probe(FAILED), run.probe(FAILED)] == [Health.HEALTHY] * 2
    assert run.checkup.output == "refused"
    assert run.probe(PASSED) is Health.HEALTHY
    assert run.checkup.output == ""
    healths = [run.probe(FAILED) for _ in range(3)]
    assert healths == [Health.HEALTHY, Health.HEALTHY, Health.UNHEALTHY]


def test_a_recovered_container_is_healthy_again() -> None:
    run = Run()
    run.until(Health.UNHEALTHY, FAILED)
    assert run.probe(PASSED) is Health.HEALTHY
