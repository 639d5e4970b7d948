# SPDX-License-Identifier: Apache-2.0
"""A manager with many nodes and tasks loses none of them."""

from __future__ import annotations

import pytest

from tests.scale.scenario import Scenario, run


@pytest.mark.root
@pytest.mark.timeout(600)
async def test_many_nodes_and_tasks_converge_and_nothing_is_lost() -> None:
    outcome = await run(Scenario(nodes=50, tasks=1000, seconds=250))
    assert outcome.converged is not None, outcome
    assert (outcome.running, outcome.sessions) == (1000, 50)
    assert (outcome.lost, outcome.down, outcome.elections) == (0, 0, 1), outcome
    assert (outcome.replaced, outcome.stopped) == (0, 0)
