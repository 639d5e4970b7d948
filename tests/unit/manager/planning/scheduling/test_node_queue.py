# SPDX-License-Identifier: Apache-2.0
"""The node queue: after each placement, the node that a search through all nodes finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.scheduling.node_queue import NEVER, NodeQueue, Zones

NODES = st.lists(
    st.tuples(
        st.integers(0, 3) | st.just(NEVER),  # score
        st.booleans(),  # avoided
        st.integers(0, 2),  # the wide zone
        st.integers(0, 1),  # the narrow zone within it
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(
    NODES,
    st.integers(0, 2),
    st.lists(st.integers(-1, 2), max_size=25),
    st.lists(st.integers(0, 3), min_size=9, max_size=9),
)
def test_queue_gives_what_a_search_finds(
    nodes: list[tuple[int, bool, int, int]], levels: int, steps: list[int], counts: list[int]
) -> None:
    scores = [score for score, _, _, _ in nodes]
    avoided = [later for _, later, _, _ in nodes]
    wide = [zone for _, _, zone, _ in nodes]
    narrow = [3 + 2 * zone + part for _, _, zone, part in nodes]
    tasks = list(counts)
    both = [Zones(np.array(of_row, dtype=np.int64), list(counts)) for of_row in (wide, narrow)]
    queue = NodeQueue(
        np.array(scores, dtype=np.int64),
        np.array(avoided, dtype=np.bool_),
        both[:levels],
        len(steps),
    )

    def key(row: int) -> tuple[object, ...]:
        zones = (tasks[wide[row]], tasks[narrow[row]])[:levels]
        return (avoided[row], *zones, scores[row], row)

    for step in steps:
        able = [row for row in range(len(nodes)) if scores[row] != NEVER]
        row = queue.best()
        assert row == min(able, key=key, default=None)
        if row is None:
            return
        tasks[wide[row]] += 1
        tasks[narrow[row]] += 1
        # A node that is filled up first gets a better score; one that is full, none.
        scores[row] = NEVER if step == 0 else scores[row] + step
        queue.placed(scores[row])
