"""Seeded runs of containers of their own: orders, deaths, reboots; each comes to what was asked."""

from __future__ import annotations

import pytest
from simcontainers import ContainerCluster

SEEDS = range(60)
FAULTY_TICKS = 240
"""A minute of the cluster's life."""


@pytest.mark.parametrize("seed", SEEDS)
def test_every_order_comes_to_its_end(seed: int) -> None:
    cluster = ContainerCluster(seed)
    try:
        for _ in range(4):
            cluster.create_container()
        for _ in range(FAULTY_TICKS):
            cluster.tick()
        cluster.heal()
        assert cluster.settle(limit=300.0), "did not come to rest after the faults stopped"
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed} at {cluster.now}: {error}\n{cluster.picture()}"
        ) from error
