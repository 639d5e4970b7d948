"""A manager that was late does not count that as the silence of nodes."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator.daemon.background import background
from orchestrator.manager.inbox import Inbox
from orchestrator.manager.listening import LIMIT, TURN, ListeningClock


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_goes_with_the_clock_while_the_loop_turns() -> None:
    clock = Clock()
    listening = ListeningClock(clock)
    for _ in range(50):
        clock.now += TURN
        listening.turn()
    assert listening() == pytest.approx(clock())


def test_it_stands_while_the_loop_is_blocked() -> None:
    clock = Clock()
    listening = ListeningClock(clock)
    clock.now += 60.0
    assert listening() == pytest.approx(100.0 + LIMIT)
    listening.turn()
    clock.now += TURN
    assert listening() == pytest.approx(100.0 + LIMIT + TURN)


async def test_a_blocked_loop_stops_it() -> None:
    def block() -> None:
        time.sleep(1.0)

    listening = ListeningClock()
    async with background(listening.run()):
        await asyncio.sleep(3 * TURN)
        before = listening()
        block()
        assert listening() <= before + LIMIT


def test_nodes_are_not_silent_while_nobody_listens() -> None:
    clock = Clock()
    listening = ListeningClock(clock)
    inbox = Inbox(clock, listening)
    inbox.hear("a")
    clock.now += 60.0
    assert clock() - inbox.heard["a"] == pytest.approx(LIMIT)
    for _ in range(10):
        listening.turn()
        clock.now += TURN
    assert clock() - inbox.heard["a"] == pytest.approx(LIMIT + 10 * TURN)
