# SPDX-License-Identifier: Apache-2.0
"""Whole commands, as a user waits for them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.cluster import ORC, Cluster
from tests.bench.tables import Table, median, seconds, spread

ROUNDS = 11
COMMANDS: dict[str, Sequence[str]] = {
    "a bare interpreter": (sys.executable, "-c", ""),
    "`orc --help`": (ORC, "--help"),
    "`orc node ls`": (ORC, "node", "ls"),
    "`orc service ls --format json`": (ORC, "service", "ls", "--format", "json"),
}


@dataclass(frozen=True, slots=True)
class Commands:
    """Seconds of each round."""

    took: dict[str, list[float]]
    dev_up: float


def measure(cluster: Cluster) -> Commands:
    """Run each command several times."""
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, argv in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True)
            took[name].append(time.perf_counter() - began)
    return Commands(took, cluster.up_seconds)


def report(result: Commands) -> Table:
    """Pure."""
    rows = [
        (name, str(len(took)), seconds(median(took)), spread(took))
        for name, took in result.took.items()
    ]
    rows.append(("`orc dev up --nodes 3`", "1", seconds(result.dev_up), ""))
    return Table("Whole commands", ("what", "rounds", "median", "least to most, ms"), tuple(rows))
