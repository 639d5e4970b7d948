# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is to pull an image, and what ends a turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from orchestrator.manager.dispatch.pull_coordination import (
    FIRST_NOTICE,
    LEASE,
    NEXT_NOTICE,
    PATIENCE,
    PULLS_PER_SOURCE,
    REGISTRY,
    REPORT_GRACE,
    Granted,
    Pull,
    PullCoordinator,
    Waiting,
)


def everyone(node: str) -> bool:
    return True


class World:
    """Requests of nodes for the image `x`."""

    def __init__(self) -> None:
        self.turns = PullCoordinator()
        self.now = 100.0

    def ask(self, node: str, image: str = "x", *, reports: bool = True, failed: str = "") -> int:
        pull = Pull(node, image, frozenset(failed.split()), reports)
        return self.turns.ask(pull, self.now)

    def poll(
        self, ticket: int, holders: Sequence[str] = (), up: Callable[[str], bool] = everyone
    ) -> Granted | Waiting:
        return self.turns.poll(ticket, self.now, holders, up)

    def source(self, ticket: int, *holders: str) -> str:
        found = self.poll(ticket, holders)
        assert isinstance(found, Granted)
        return found.source

    def waits(self, ticket: int, *holders: str) -> Waiting:
        found = self.poll(ticket, holders)
        assert isinstance(found, Waiting)
        assert found.until > self.now
        return found


def test_one_pull_at_a_time_per_image_from_the_registry() -> None:
    world = World()
    first, second = world.ask("a"), world.ask("b")
    assert world.source(first) == REGISTRY
    assert [turn.pull.node_id for turn in world.waits(second).behind] == ["a"]
    assert world.source(world.ask("b", "y")) == REGISTRY


def test_the_next_waits_until_the_first_has_reported_that_it_has_the_image() -> None:
    world = World()
    first, second = world.ask("a"), world.ask("b")
    world.source(first)
    world.turns.end(first, world.now)
    waiting = world.waits(second)
    assert (waiting.behind, waiting.until) == ((), world.now + REPORT_GRACE)
    assert world.source(second, "a:1") == "a:1"
    third = world.ask("c")
    world.now += REPORT_GRACE
    assert world.source(third) == REGISTRY


def test_a_few_pulls_at_a_time_per_source() -> None:
    world = World()
    tickets = [world.ask(f"n{n}") for n in range(2 * PULLS_PER_SOURCE)]
    given = [world.source(ticket, "a:1", "b:1") for ticket in tickets]
    assert sorted(given) == ["a:1"] * PULLS_PER_SOURCE + ["b:1"] * PULLS_PER_SOURCE
    late = world.ask("late")
    assert len(world.waits(late, "a:1", "b:1").behind) == 2 * PULLS_PER_SOURCE
    world.turns.end(tickets[given.index("b:1")], world.now)
    assert world.source(late, "a:1", "b:1") == "b:1"


def test_a_failed_source_is_not_granted_again() -> None:
    world = World()
    assert world.source(world.ask("n", failed="a:1"), "a:1", "b:1") == "b:1"
    assert world.source(world.ask("n", failed="a:1 b:1"), "a:1", "b:1") == REGISTRY


def test_a_pull_without_progress_ends() -> None:
    world = World()
    world.source(world.ask("stuck"))
    waiting = world.ask("b")
    begun = world.now
    world.now += 4
    world.turns.progress("stuck", "x", 1000, world.now)
    (turn,) = world.waits(waiting).behind
    assert turn.received == 1000
    world.now = begun + LEASE
    assert world.waits(waiting).until == begun + 4 + LEASE
    world.now = begun + 4 + LEASE
    assert world.source(waiting) == REGISTRY


def test_a_pull_from_a_node_without_progress_ends() -> None:
    world = World()
    for number in range(PULLS_PER_SOURCE):
        world.source(world.ask(f"stuck{number}"), "a:1")
    waiting = world.ask("b")
    until = world.waits(waiting, "a:1").until
    while until < 100 + LEASE:
        world.now = until
        until = world.waits(waiting, "a:1").until
    world.now = until
    assert world.source(waiting, "a:1") == "a:1"


def test_a_pull_by_a_node_that_is_down_or_removed_ends() -> None:
    world = World()
    world.source(world.ask("gone"))
    waiting = world.ask("b")
    world.waits(waiting)
    assert world.poll(waiting, up=lambda node: node != "gone") == Granted(REGISTRY)


def test_ending_an_expired_pull_frees_nothing() -> None:
    world = World()
    stuck, second = world.ask("stuck"), world.ask("b")
    world.source(stuck)
    world.now += LEASE
    world.source(second)
    world.turns.end(stuck, world.now)
    world.turns.progress("stuck", "x", 1, world.now)
    (turn,) = world.waits(world.ask("c")).behind
    assert turn.pull.node_id == "b"


def test_a_waiting_node_gets_notices_periodically() -> None:
    world = World()
    world.source(world.ask("a"))
    waiting = world.ask("b")
    told = []
    end = world.now + 60
    while world.now < end:
        world.turns.progress("a", "x", 1, world.now)
        found = world.waits(waiting)
        if found.notify:
            told.append(world.now)
            assert not world.waits(waiting).notify
        world.now = found.until
    assert told[0] == 100 + FIRST_NOTICE
    assert {later - earlier for earlier, later in pairwise(told)} == {NEXT_NOTICE}


def test_an_older_node_is_sent_to_the_registry() -> None:
    world = World()
    world.source(world.ask("a"))
    old = world.ask("old", reports=False)
    end = world.now + PATIENCE
    while world.now < end:
        world.turns.progress("a", "x", 1, world.now)
        found = world.waits(old)
        assert not found.notify
        world.now = min(found.until, end)
    assert world.source(old) == REGISTRY


def test_ended_calls_leave_no_state() -> None:
    world = World()
    tickets = [world.ask(name) for name in "abc"]
    world.source(tickets[0])
    world.source(tickets[1], "z:1")
    for ticket in tickets:
        world.turns.end(ticket, world.now)
        world.turns.end(ticket, world.now)
    assert world.turns.turns() == ()
