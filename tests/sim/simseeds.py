# SPDX-License-Identifier: Apache-2.0
"""One seed's life: a while with faults, then none, and all must come to rest in time."""

from __future__ import annotations

from simcluster import SimCluster
from simcontainers import ContainerCluster


def live(seed: int) -> None:
    """Services and jobs. Raises AssertionError, whose text tells how to see it again."""
    _live(SimCluster(seed), seed, ticks=160, limit=240.0)


def live_of_containers(seed: int) -> None:
    """Containers of their own."""
    _live(ContainerCluster(seed), seed, ticks=240, limit=300.0)


def live_through(cluster: SimCluster, seed: int) -> None:
    """As `live`, in another cluster of that seed."""
    _live(cluster, seed, ticks=160, limit=240.0)


def _live(cluster: SimCluster, seed: int, ticks: int, limit: float) -> None:
    try:
        for _ in range(4):
            cluster.create()
        for _ in range(ticks):
            cluster.tick()
        cluster.heal()
        assert cluster.settle(limit), f"not at rest {limit:g} s after the faults stopped"
    except AssertionError as error:
        raise AssertionError(
            f"seed {seed} at {cluster.now}: {error}\n{cluster.picture()}"
        ) from error
