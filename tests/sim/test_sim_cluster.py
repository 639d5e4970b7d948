# SPDX-License-Identifier: Apache-2.0
"""Seeded runs of a simulated cluster: invariants hold at every tick, and it comes to rest."""

from __future__ import annotations

import pytest
from simseeds import live


@pytest.mark.parametrize("seed", range(200))
def test_survives_faults_and_converges(seed: int) -> None:
    live(seed)
