# SPDX-License-Identifier: Apache-2.0
"""Jobs in queues: quotas, shares of the cluster, and tasks that start together or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture
def queues(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster whose jobs and queues are removed afterwards."""
    yield cluster
    for job in cluster.json("job", "ls"):
        cluster.orc("job", "rm", job["name"])
    for queue in cluster.json("queue", "ls"):
        cluster.orc("queue", "rm", queue["name"])


def queue(cluster: Cluster, name: str) -> dict[str, Any]:
    return next(row for row in cluster.json("queue", "ls") if row["name"] == name)


def states(cluster: Cluster, job: str) -> Counter[str]:
    return Counter(task["state"] for task in cluster.json("job", "ps", job))


def cores(cluster: Cluster, part: float) -> str:
    """That part of a node's cores, for `--reserve-cpu`."""
    return str(min(node["shares_total"] for node in cluster.nodes().values()) * part / 1024)


class Gate:
    """Tasks of jobs that run until they are told to end."""

    def __init__(self, cluster: Cluster, image: str) -> None:
        self._cluster = cluster
        self._image = image

    def run(self, name: str, completions: int, part: float, *flags: str) -> None:
        """Start a job whose tasks reserve a part of a node's cores each."""
        self._cluster.orc("job", "run", "-d", "--name", name, "--completions", str(completions),
                          "--reserve-cpu", cores(self._cluster, part), *flags,
                          "--stop-signal", "KILL", "--entrypoint", "sh", self._image,
                          "-c", "until [ -e /done ]; do sleep 0.1; done")  # fmt: skip

    def end(self, task: str) -> None:
        """Let a task complete."""
        self._cluster.orc("exec", task, "touch", "/done")


def test_a_quota_holds_back_what_exceeds_it(queues: Cluster, hello: str) -> None:
    gate = Gate(queues, hello)
    half = cores(queues, 0.5)
    queues.orc("queue", "create", "--quota-cpu", half, "small")
    gate.run("sums", 4, 0.25, "--queue", "small")
    eventually(lambda: states(queues, "sums") == {"running": 2, "pending": 2})
    waiting = [task for task in queues.json("job", "ps", "sums") if task["state"] == "pending"]
    assert all(
        task["error"].startswith("queue small has reached its quota of ") for task in waiting
    )
    row = queue(queues, "small")
    assert (row["jobs"], row["running"], row["waiting"]) == (1, 2, 2)
    assert row["shares"] == row["quota_shares"] == float(half) * 1024
    # One ends, the next one starts; a larger quota admits the last one.
    gate.end("sums.1")
    eventually(lambda: states(queues, "sums") == {"complete": 1, "running": 2, "pending": 1})
    queues.orc("queue", "update", "--quota-cpu", "0", "small")
    eventually(lambda: states(queues, "sums") == {"complete": 1, "running": 3})
    refusal = queues.refused("queue", "rm", "small")
    assert "in use by sums" in refusal


def test_queues_share_the_cluster_by_their_weights(queues: Cluster, hello: str) -> None:
    """Six of nine places go to the queue of weight 2, although the other one's job came first."""
    gate = Gate(queues, hello)
    for node in queues.nodes():
        queues.orc("node", "update", "--availability", "pause", node)
    try:
        queues.orc("queue", "create", "light")
        queues.orc("queue", "create", "--weight", "2", "heavy")
        gate.run("first", 9, 0.3, "--queue", "light")
        gate.run("second", 9, 0.3, "--queue", "heavy")
        eventually(lambda: states(queues, "first") == {"pending": 9})
        eventually(lambda: states(queues, "second") == {"pending": 9})
    finally:
        for node in queues.nodes():
            queues.orc("node", "update", "--availability", "active", node)
    eventually(lambda: queue(queues, "light")["running"] + queue(queues, "heavy")["running"] == 9)
    eventually(lambda: states(queues, "first")["running"] == 3)
    eventually(lambda: states(queues, "second")["running"] == 6)


def test_all_or_nothing(queues: Cluster, hello: str) -> None:
    """A gang waits while only some of its tasks fit, and starts when all do. A job beside it that
    fits is not held up."""
    gate = Gate(queues, hello)
    queues.orc("queue", "create", "research")
    gate.run("single", 1, 0.7, "--queue", "research")
    eventually(lambda: states(queues, "single") == {"running": 1})
    gate.run("gang", 3, 0.6, "--queue", "research", "--all-or-nothing")
    reason = "all or nothing: 2 of 3 tasks fit; no suitable node (3 nodes: insufficient shares)"

    def waits() -> bool:
        tasks = queues.json("job", "ps", "gang")
        return [(task["state"], task["error"]) for task in tasks] == [("pending", reason)] * 3

    eventually(waits)
    gate.run("other", 1, 0.3, "--queue", "research")
    eventually(lambda: states(queues, "other") == {"running": 1})
    assert states(queues, "gang") == {"pending": 3}
    gate.end("single.1")
    eventually(lambda: states(queues, "gang") == {"running": 3})
    refusal = queues.refused("job", "run", "-d", "--name", "bad", "--all-or-nothing", hello)
    assert refusal == "orc: all-or-nothing is for jobs in a queue; give --queue as well"
    refusal = queues.refused("job", "run", "-d", "--name", "bad", "--queue", "none", hello)
    assert refusal == "orc: no queue 'none'; create it with 'orc queue create none'"
