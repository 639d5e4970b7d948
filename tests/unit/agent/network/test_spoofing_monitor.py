# SPDX-License-Identifier: Apache-2.0
"""What source checks dropped, as the agent counts and logs it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Forgery, NetworkConfig
from orchestrator.agent.network.spoofing import LOG_PERIOD, SpoofingMonitor
from orchestrator.agent.telemetry.agent_metrics import AgentCollector, Holdings, MetricSources


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.found: list[Forgery] = []
        self.fails = False
        back = NetworkConfig("n1", "back", 1, "", "", 0, "")
        self.watch = SpoofingMonitor(self.counters, lambda: {"n1": back}, lambda: self.now)

    async def counters(self) -> Sequence[Forgery]:
        if self.fails:
            raise NetworkError("the helper died")
        return self.found

    async def pass_over(self, packets: int, container: str = "t1") -> None:
        others = [each for each in self.found if each.container != container]
        self.found = [*others, Forgery("n1", container, packets)]
        await self.watch.read()


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, int]]:
    found = [(r.task, r.network, r.packets) for r in caplog.records]  # type: ignore[attr-defined]
    caplog.clear()
    return found


async def test_a_line_for_each_container_at_most_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    world = World()
    await world.pass_over(7)
    assert lines(caplog) == [], "dropped before this agent began"
    await world.pass_over(7)
    assert lines(caplog) == []
    await world.pass_over(9)
    assert lines(caplog) == [("t1", "back", 2)]
    await world.pass_over(12)
    await world.pass_over(20, "t2")
    assert lines(caplog) == [("t2", "back", 20)]
    world.now = LOG_PERIOD
    await world.pass_over(13)
    assert lines(caplog) == [("t1", "back", 4)]
    assert world.watch.dropped == {"back": 26}


async def test_reset_kernel_counters_are_handled(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    await world.watch.read()
    await world.pass_over(5)
    await world.pass_over(3)
    world.found = []
    await world.watch.read()
    await world.pass_over(1)
    assert world.watch.dropped == {"back": 9}


def test_prometheus_has_a_counter_for_each_network() -> None:
    sources = MetricSources(
        runners={},
        access=lambda task: pytest.fail("there is no task"),
        holdings=lambda: Holdings(0, 0, 0, 0, 0, 0),
        connected=lambda: True,
        runtime="crun 1",
        dropped=lambda: {"back": 26},
    )
    samples = [one for each in AgentCollector(sources, {}).collect() for one in each.samples]
    name = "orc_agent_source_check_dropped_packets_total"
    assert [(one.labels, one.value) for one in samples if one.name == name] == [
        ({"network": "back"}, 26.0)
    ]


async def test_a_failed_helper_is_called_again() -> None:
    world = World()
    await world.watch.read()
    world.fails = True
    await world.watch.read()
    world.fails = False
    await world.pass_over(2)
    assert world.watch.dropped == {"back": 2}
