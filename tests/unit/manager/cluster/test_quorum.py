# SPDX-License-Identifier: Apache-2.0
"""Which managers can be removed without losing the quorum."""

from __future__ import annotations

import pytest

from orchestrator.manager.cluster.quorum import Voter, quorum_of, refusal_of_removal


def voters(states: str) -> list[Voter]:
    """One for each letter: h is healthy, d is down."""
    return [
        Voter(f"m{number}", f"{number}", healthy=state == "h")
        for number, state in enumerate(states, 1)
    ]


@pytest.mark.parametrize(("number", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)])
def test_quorum_is_more_than_half(number: int, quorum: int) -> None:
    assert quorum_of(number) == quorum


@pytest.mark.parametrize(
    ("states", "removed", "allowed"),
    [
        ("hh", "1", True),
        ("hd", "2", True),
        ("hd", "1", False),
        ("hhh", "1", True),
        ("hhd", "3", True),
        ("hhd", "1", False),
        ("hhhd", "1", True),
        ("hhdd", "3", True),
        ("hhhdd", "1", False),
        ("h", "1", False),
        ("hhd", "9", True),
    ],
)
def test_a_removal_keeps_a_healthy_quorum(states: str, removed: str, allowed: bool) -> None:
    assert (refusal_of_removal(voters(states), removed) == "") is allowed


def test_the_refusal_has_the_numbers() -> None:
    assert refusal_of_removal(voters("hhd"), "1") == (
        "without m1 there are 2 managers, which need 2 healthy ones for a quorum, and 1 is healthy "
        "(down: m3)"
    )
