# SPDX-License-Identifier: Apache-2.0
"""Sixty replicas, from the API call that creates the service until all of them are running.

Orc has three nodes, each container with an address that all of them reach. Swarm has one node,
which spares it the network between nodes, and is measured without any network of its own (its
containers use the host's), which is its fastest way, and with an overlay network, which is what
Orc gives. Rounds alternate: Swarm has one on the host's network, one on the overlay, and again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.bench.cluster import BenchError, Cluster, Control
from tests.bench.docker import Docker
from tests.bench.tables import Table, at_least, median, seconds, times

REPLICAS = 60
ROUNDS = 4
"""Of Orc; between two of them is one of Swarm."""
TARGET = 5.0
_WITHIN = 60.0


@dataclass(slots=True)
class Rollout:
    """Seconds of each round."""

    orc: list[float] = field(default_factory=list)
    first: float = 0.0
    """Orc's first round, in which two nodes fetch the image from the third."""
    host: list[float] = field(default_factory=list)
    """Swarm, containers in the host's network."""
    overlay: list[float] = field(default_factory=list)
    """Swarm, containers in an overlay network."""
    notes: list[str] = field(default_factory=list)


async def measure(cluster: Cluster, docker: Docker | None) -> Rollout:
    """Measure by turns. Raises BenchError when Orc does not get there."""
    result = Rollout()
    async with Control() as control:
        async with control.service("first", REPLICAS, _WITHIN) as first:
            result.first = first.seconds
        for number in range(ROUNDS):
            async with control.service(f"web{number}", REPLICAS, _WITHIN) as timed:
                result.orc.append(timed.seconds)
            if docker is not None and number < ROUNDS - 1:
                _swarm(docker, result, overlay=number % 2 == 1)
    return result


def _swarm(docker: Docker, result: Rollout, *, overlay: bool) -> None:
    try:
        if overlay:
            with docker.overlay() as network, docker.service(REPLICAS, network, _WITHIN) as took:
                result.overlay.append(took)
        else:
            with docker.service(REPLICAS, "host", _WITHIN) as took:
                result.host.append(took)
    except BenchError as error:
        result.notes.append(f"Swarm, {'overlay' if overlay else 'host'} network: {error}.")


def report(result: Rollout, absent: str) -> Table:
    """`absent`: why there is nothing of Docker, or empty. Pure."""
    ours = median(result.orc)
    rows = [("Orc, 3 nodes, overlay", *_figures(result.orc), "", "")]
    compared = (("Swarm, 1 node, host network", result.host),)
    for what, took in (*compared, ("Swarm, 1 node, overlay", result.overlay)):
        if took:
            ratio = median(took) / ours
            rows.append((what, *_figures(took), times(ratio), at_least(ratio, TARGET, "5x")))
    return Table(
        f"{REPLICAS} replicas, from the API call to all running",
        ("what", "rounds", "median", "containers per s", "Orc is faster by", "target"),
        tuple(rows),
        (
            f"The first round, in which two nodes fetched the image: {seconds(result.first)}.",
            *result.notes,
            *([absent + "."] if absent else []),
        ),
    )


def _figures(took: list[float]) -> tuple[str, str, str]:
    middle = median(took)
    return str(len(took)), seconds(middle), f"{REPLICAS / middle:.1f}"
