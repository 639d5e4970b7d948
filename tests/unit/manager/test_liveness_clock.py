# SPDX-License-Identifier: Apache-2.0
"""A manager that was late does not count that as the silence of nodes."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator.daemon.background import background
from orchestrator.manager.event_loop import LONGEST_STEP, SAMPLE_INTERVAL, LivenessClock
from orchestrator.manager.leader.agent_reports import ReportBuffer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_clock_advances_while_the_loop_runs() -> None:
    clock = Clock()
    listening = LivenessClock(clock)
    for _ in range(50):
        clock.now += SAMPLE_INTERVAL
        listening.turn()
    assert listening() == pytest.approx(clock())


def test_the_clock_stands_while_the_loop_is_blocked() -> None:
    clock = Clock()
    listening = LivenessClock(clock)
    clock.now += 60.0
    assert listening() == pytest.approx(100.0 + LONGEST_STEP)
    listening.turn()
    clock.now += SAMPLE_INTERVAL
    assert listening() == pytest.approx(100.0 + LONGEST_STEP + SAMPLE_INTERVAL)


async def test_a_blocked_event_loop_stops_the_clock() -> None:
    def block() -> None:
        time.sleep(1.0)

    listening = LivenessClock()
    async with background(listening.run()):
        await asyncio.sleep(3 * SAMPLE_INTERVAL)
        before = listening()
        block()
        assert listening() <= before + LONGEST_STEP


def test_nodes_are_not_silent_while_the_manager_cannot_listen() -> None:
    clock = Clock()
    listening = LivenessClock(clock)
    report_buffer = ReportBuffer(clock, listening)
    report_buffer.hear("a")
    clock.now += 60.0
    assert clock() - report_buffer.heard["a"] == pytest.approx(LONGEST_STEP)
    for _ in range(10):
        listening.turn()
        clock.now += SAMPLE_INTERVAL
    assert clock() - report_buffer.heard["a"] == pytest.approx(LONGEST_STEP + 10 * SAMPLE_INTERVAL)
