# SPDX-License-Identifier: Apache-2.0
"""Seeded image pulls with nodes that die, freeze and hang: every waiting pull gets its image."""

from __future__ import annotations

import pytest
from simpulls import live_of_pulls


@pytest.mark.parametrize("seeds", [range(first, first + 50) for first in range(0, 200, 50)])
def test_every_node_that_waits_for_an_image_is_notified_and_served(seeds: range) -> None:
    for seed in seeds:
        live_of_pulls(seed)
