# SPDX-License-Identifier: Apache-2.0
"""Three managers beside one: the same service on two clusters that take turns.

Both are up all the time, so that what a cluster at rest costs is in both figures. With three
managers each write is stored by two members of etcd at least before it counts; here all of them and
the nodes share one machine, which charges the three for what three machines would do at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.bench.cluster import MANAGERS, Cluster, Control
from tests.bench.tables import Table, at_least, median, seconds

REPLICAS = 60
ROUNDS = 6
TARGET = 0.8
_WITHIN = 120.0


@dataclass(slots=True)
class Managers:
    """Seconds of each round, from the API call to all running."""

    one: list[float] = field(default_factory=list)
    several: list[float] = field(default_factory=list)


async def measure(one: Cluster, several: Cluster) -> Managers:
    """Measure by turns. Raises BenchError when a cluster does not get there."""
    result = Managers()
    async with Control(one.name) as first, Control(several.name) as second:
        for number in range(-1, ROUNDS):
            for control, rounds in ((first, result.one), (second, result.several)):
                async with control.service(f"web{number + 1}", REPLICAS, _WITHIN) as timed:
                    if number >= 0:  # in the one before, nodes fetch the image
                        rounds.append(timed.seconds)
    return result


def report(result: Managers) -> Table:
    """Pure."""
    ratio = median(
        alone / together for alone, together in zip(result.one, result.several, strict=True)
    )
    return Table(
        f"{REPLICAS} replicas with one manager and with {MANAGERS}",
        ("what", "rounds", "median", "containers per s", "of one manager's", "target"),
        (
            ("1 manager", *_figures(result.one), "", ""),
            (
                f"{MANAGERS} managers",
                *_figures(result.several),
                f"{ratio:.2f}",
                at_least(ratio, TARGET, "0.8"),
            ),
        ),
        ("Three nodes each. The ratio is the median of the rounds' ratios.",),
    )


def _figures(took: list[float]) -> tuple[str, str, str]:
    middle = median(took)
    return str(len(took)), seconds(middle), f"{REPLICAS / middle:.1f}"
