# SPDX-License-Identifier: Apache-2.0
"""Seeded runs of a cluster of several managers; see `simmanagers`."""

from __future__ import annotations

import pytest
from simmanagers import live_of_managers


@pytest.mark.parametrize("seed", range(8))
def test_the_loss_of_a_manager_stops_nothing(seed: int) -> None:
    live_of_managers(seed)
