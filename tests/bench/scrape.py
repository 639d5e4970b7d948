# SPDX-License-Identifier: Apache-2.0
"""What it takes a node to tell Prometheus of two hundred containers.

Read over HTTPS on one connection, as Prometheus does. The agent's CPU time is counted over all
readings, and is a fraction of a core at the interval that the monitoring chart has.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from dataclasses import dataclass

from orchestrator.cli.app.contexts import load_context
from tests.bench import memory, processes
from tests.bench.cluster import Cluster, Control, orc
from tests.bench.tables import Table, at_most, median, spread

CONTAINERS = 200
ROUNDS = 30
INTERVAL = 15.0
"""Seconds between two readings of the monitoring chart's Prometheus."""
NODE, PORT = "node1", 7424
_WITHIN = 300.0


@dataclass(frozen=True, slots=True)
class Scrapes:
    """Readings of one node."""

    seconds: list[float]
    """Of each reading."""
    cpu: float
    """The agent's CPU seconds for each, in the mean."""
    size: int
    """Bytes of the last answer."""
    containers: int
    """Of which it told."""


async def measure(cluster: Cluster) -> Scrapes:
    """Fill one node, and read it."""
    async with Control() as control, control.service("scrape", CONTAINERS, _WITHIN, NODE):
        agent = memory.sort({NODE: cluster.hosts()[NODE]}).agents
        connection = _connection()
        headers = {"Authorization": f"Bearer {orc('cluster', 'token', 'scrape').strip()}"}
        _read(connection, headers)  # the first one finds out where everything is
        before, seconds = processes.cpu_seconds(agent), []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            body = _read(connection, headers)
            seconds.append(time.perf_counter() - began)
        cpu = (processes.cpu_seconds(agent) - before) / ROUNDS
        connection.close()
        return Scrapes(seconds, cpu, len(body), body.count(b"\ncontainer_last_seen{"))


def _connection() -> http.client.HTTPSConnection:
    rows = json.loads(orc("node", "ls", "--format", "json"))
    address = next(row["address"] for row in rows if row["hostname"] == NODE)
    tls = ssl.create_default_context(cadata=load_context(None).ca)
    tls.check_hostname = False  # certificates have a role's name, not an address
    return http.client.HTTPSConnection(address, PORT, context=tls, timeout=30)


def _read(connection: http.client.HTTPSConnection, headers: dict[str, str]) -> bytes:
    connection.request("GET", "/metrics", headers=headers)
    return connection.getresponse().read()


def report(result: Scrapes) -> Table:
    """Pure."""
    took, share = median(result.seconds), result.cpu / INTERVAL
    return Table(
        f"A scrape of {result.containers} containers",
        ("what", "median", "target"),
        (
            ("time of an answer", f"{took * 1e3:.0f} ms", at_most(took, 0.1, "100 ms")),
            ("least to most", spread(result.seconds), ""),
            ("the agent's CPU for each", f"{result.cpu * 1e3:.0f} ms", ""),
            (
                f"of a core, at one in {INTERVAL:.0f} s",
                f"{share * 100:.2f}%",
                at_most(share, 0.01, "1%"),
            ),
            ("size", f"{result.size / 1024:.0f} KiB", ""),
        ),
        (f"{ROUNDS} readings, one after the other, of one node over HTTPS.",),
    )
