"""Seeded runs of a simulated cluster: invariants hold at every tick, and it comes to rest."""

from __future__ import annotations

import pytest
from simcluster import SimCluster

SEEDS = range(50)
FAULTY_TICKS = 160
"""40 s of the cluster's life."""


@pytest.mark.parametrize("seed", SEEDS)
def test_survives_faults_and_converges(seed: int) -> None:
    cluster = SimCluster(seed)
    try:
        for _ in range(3):
            cluster.create_service()
        for _ in range(FAULTY_TICKS):
            cluster.tick()
        cluster.heal()
        assert cluster.settle(limit=120.0), "did not converge after the faults stopped"
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed} at {cluster.now}: {error}\n{cluster.picture()}"
        ) from error
