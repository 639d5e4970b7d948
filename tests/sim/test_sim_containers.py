# SPDX-License-Identifier: Apache-2.0
"""Seeded runs of standalone containers with failures and reboots: each reaches its goal."""

from __future__ import annotations

import pytest
from simseeds import live_of_containers


@pytest.mark.parametrize("seed", range(100))
def test_every_order_comes_to_its_end(seed: int) -> None:
    live_of_containers(seed)
