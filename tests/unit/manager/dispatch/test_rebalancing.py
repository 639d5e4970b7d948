# SPDX-License-Identifier: Apache-2.0
"""Sessions spread over managers, by a few redirections at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrator.manager.dispatch.rebalancing import (
    STEADY,
    Handover,
    Rebalancer,
    handover,
    less_loaded,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.nodes import SessionRecord


def view(loads: Sequence[int], gone: str = "") -> ClusterView:
    """Managers m0, m1, … with so many sessions each."""
    managers = [Manager(id=f"m{n}", address=f"10.0.0.{n}", port=7420) for n in range(len(loads))]
    present = [ManagerPresence(id=each.id) for each in managers if each.id != gone]
    sessions = [
        SessionRecord(id=f"n{n}-{k}", manager_id=f"m{n}")
        for n, load in enumerate(loads)
        for k in range(load)
    ]
    return ClusterView.of([*managers, *present, *sessions])


def given_by(seen: ClusterView, id: str) -> Handover | None:
    return handover(seen, id, less_loaded(seen, id))


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ((5,), None),
        ((1, 0), None),
        ((2, 2, 1), None),
        ((2, 0), Handover("10.0.0.1:7420", 1)),
        ((3, 2, 1), Handover("10.0.0.2:7420", 1)),
        ((100, 100, 0), Handover("10.0.0.2:7420", 1)),
        ((300, 0, 0), Handover("10.0.0.1:7420", 5)),
        ((0, 9), None),
    ],
)
def test_the_manager_with_too_many_sessions_hands_some_over(
    loads: Sequence[int], expected: Handover | None
) -> None:
    assert given_by(view(loads), "m0") == expected


def test_stopped_manager_gets_no_sessions() -> None:
    assert given_by(view((9, 0), gone="m1"), "m0") is None


def test_manager_that_has_just_lost_its_sessions_gets_none_until_it_is_known_to_live() -> None:
    rebalancer, lost, others = Rebalancer("m0"), view((3, 0, 0)), view((3, 2, 0))
    assert rebalancer.handover(others, 0.0) is None
    assert rebalancer.handover(lost, STEADY - 1) is None
    given = rebalancer.handover(lost, STEADY)
    assert given is not None
    assert given.address == "10.0.0.2:7420"
    # Once it had as many as others, its time begins anew.
    assert rebalancer.handover(view((1, 2, 2)), STEADY + 1) is None
    assert rebalancer.handover(lost, STEADY + 2) is None


@pytest.mark.parametrize("loads", [(50, 0, 0), (7, 1, 4), (0, 0, 31)])
def test_sessions_are_balanced_in_the_end(loads: Sequence[int]) -> None:
    left = list(loads)
    for _ in range(1000):
        for n in range(len(left)):
            if (given := given_by(view(left), f"m{n}")) is not None:
                left[n] -= given.count
                left[int(given.address.split(":")[0][-1])] += given.count
    assert max(left) - min(left) <= 1
