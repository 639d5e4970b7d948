# SPDX-License-Identifier: Apache-2.0
"""The order in which the kernel kills containers when a node runs out of memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.qos import QosClass, oom_score, qos_class

GIB = 1 << 30
SIZES = st.integers(0, 64 * GIB)


def test_the_class_follows_from_reservation_and_limit() -> None:
    assert qos_class(0, 0) is QosClass.BEST_EFFORT
    assert qos_class(0, GIB) is QosClass.BEST_EFFORT
    assert qos_class(GIB, 0) is QosClass.BURSTABLE
    assert qos_class(GIB, 2 * GIB) is QosClass.BURSTABLE
    assert qos_class(GIB, GIB) is QosClass.GUARANTEED


def test_scores() -> None:
    assert oom_score(0, 0, 8 * GIB) == 1000
    assert oom_score(2 * GIB, 2 * GIB, 8 * GIB) == 0
    assert oom_score(2 * GIB, 0, 8 * GIB) == 750
    assert oom_score(1, 0, 8 * GIB) == 999
    assert oom_score(64 * GIB, 0, 8 * GIB) == 2
    assert oom_score(GIB, 0, 0) == 999, "the node's memory is unknown"


@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_no_class_is_killed_before_a_lower_one(
    one: int, limit: int, other: int, other_limit: int, memory: int
) -> None:
    order = list(QosClass)
    ours, theirs = qos_class(one, limit), qos_class(other, other_limit)
    if order.index(ours) < order.index(theirs):
        assert oom_score(one, limit, memory) < oom_score(other, other_limit, memory)
    elif ours is theirs and one <= other:
        assert oom_score(one, limit, memory) >= oom_score(other, other_limit, memory)
