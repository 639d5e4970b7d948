# SPDX-License-Identifier: Apache-2.0
"""Jobs on a real cluster: counted once though a manager dies, failing, late, everywhere, timed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

SHELL = ("--entrypoint", "/bin/busybox")


def job(cluster: Cluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in cluster.json("job", "ls") if row["name"] == name)
    return found


def run(cluster: Cluster, *words: str, ok: bool = True) -> Any:
    return cluster.orc("job", "run", *words[:-1], "hello:1", "sh", "-c", words[-1], ok=ok)


def test_each_index_is_done_once_though_the_manager_is_killed(cluster: Cluster, hello: str) -> None:
    run(cluster, "-d", "--name", "sums", "--completions", "10", "--parallelism", "3", *SHELL,
        "echo index $ORC_JOB_INDEX of $ORC_JOB_COMPLETIONS; sleep 0.4")  # fmt: skip
    eventually(lambda: job(cluster, "sums")["completed"] >= 2)
    cluster.kill9("manager1", "daemon")
    most = 0

    def done() -> bool:
        nonlocal most
        tasks = cluster.json("job", "ps", "sums")
        most = max(most, sum(task["state"] == "running" for task in tasks))
        return bool(job(cluster, "sums")["state"] == "complete")

    def answered() -> bool:
        try:
            return done()
        except StopIteration:
            return False

    eventually(answered)
    assert most <= 3
    found = job(cluster, "sums")
    assert (found["completed"], found["run"]) == (10, 1)
    complete = [task for task in cluster.json("job", "ps", "sums") if task["state"] == "complete"]
    assert sorted(task["slot"] for task in complete) == list(range(1, 11))
    lines = cluster.orc("job", "logs", "--raw", "sums").stdout.splitlines()
    assert sorted(lines) == sorted(f"index {number} of 10" for number in range(1, 11))


def test_a_job_that_always_fails_ends_with_its_last_error(cluster: Cluster, hello: str) -> None:
    done = run(cluster, "--name", "bad", "--retries", "2", "--restart-delay", "100ms", *SHELL,
               "exit 3", ok=False)  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        "orc: job 'bad' failed: bad.1 failed 3 times: exit status 3; see 'orc job logs bad'"
    )
    assert "retrying in 1 s (retry 2 of 2)" in done.stderr
    assert [task["exit_code"] for task in cluster.json("job", "ps", "bad")] == [3, 3, 3]


def test_deadline_ends_a_drain_and_a_timeout_only_the_waiting(cluster: Cluster, hello: str) -> None:
    late = run(cluster, "--name", "late", "--deadline", "2s", "--stop-grace-period", "100ms",
               *SHELL, "sleep 100", ok=False)  # fmt: skip
    assert late.returncode == 3
    assert "job 'late' failed: not done within its deadline of 2s" in late.stderr
    eventually(lambda: job(cluster, "late")["running"] == 0)
    patient = run(cluster, "--name", "slow", "--timeout", "500ms", "--stop-grace-period", "100ms",
                  *SHELL, "sleep 100", ok=False)  # fmt: skip
    assert patient.returncode == 3
    assert job(cluster, "slow")["state"] == "running"
    cluster.orc("job", "stop", "slow")
    assert job(cluster, "slow")["error"] == "stopped by its user"
    eventually(lambda: [t["state"] for t in cluster.json("job", "ps", "slow")] == ["shutdown"])
    assert "no run of job 'slow' is in progress" in cluster.refused("job", "stop", "slow")


def test_a_node_that_is_lost_costs_no_retry(cluster: Cluster, hello: str) -> None:
    run(cluster, "--name", "spread", "--global", *SHELL, "true")  # each node has the image
    # Where the node's /run has this file, it ends at once.
    run(cluster, "-d", "--name", "long", "--retries", "0", "-v", "/run:/host:ro",
        *SHELL, "test -e /host/ends || exec sleep 1000")  # fmt: skip
    [task] = eventually(
        lambda: [t for t in cluster.json("job", "ps", "long") if t["state"] == "running"]
    )
    others = cluster.nodes().keys() - {task["node"]}
    for node in others:
        cluster.exec(node, "touch", "/run/ends")
    cluster.power_off(task["node"])
    eventually(lambda: job(cluster, "long")["state"] == "complete")
    states = {t["state"]: t["node"] for t in cluster.json("job", "ps", "long")}
    assert states.keys() == {"orphaned", "complete"}
    assert states["complete"] != task["node"] == states["orphaned"]
    for node in others:
        cluster.exec(node, "rm", "/run/ends")


def test_global_job_also_runs_on_a_node_that_joins_later(cluster: Cluster, hello: str) -> None:
    cluster.orc("node", "update", "--availability", "drain", "node3")
    try:
        run(cluster, "--name", "all", "--global", *SHELL, "true")
        assert (job(cluster, "all")["completed"], job(cluster, "all")["completions"]) == (2, 2)
    finally:
        cluster.orc("node", "update", "--availability", "active", "node3")
    eventually(lambda: job(cluster, "all")["completed"] == 3)
    assert job(cluster, "all")["state"] == "complete"
    nodes = sorted(task["node"] for task in cluster.json("job", "ps", "all"))
    assert nodes == ["node1", "node2", "node3"]


def test_a_schedule_runs_it_and_a_user_does(cluster: Cluster, hello: str) -> None:
    done = run(cluster, "--name", "tick", "--schedule", "* * * * *", *SHELL, "true")
    assert "tick: runs next at 20" in done.stderr
    # The minute may be over at any time, also just now.
    eventually(lambda: cluster.orc("job", "start", "tick").returncode == 0)

    def runs() -> list[str]:
        """When each was due; one that its user began never was."""
        found = cluster.json("job", "inspect", "tick")[0]["job"]["runs"]
        return sorted(run["due_at"] or "" for run in found)

    eventually(lambda: any(runs()), within=120, every=1.0)
    by_hand, *due = runs()
    assert by_hand == ""
    assert all(each.endswith(":00.000Z") for each in due)
    cluster.orc("job", "suspend", "tick")
    assert job(cluster, "tick")["next_run_at"] is None
    eventually(lambda: job(cluster, "tick")["state"] == "complete")


def test_docker_s_words_for_a_job(cluster: Cluster, hello: str) -> None:
    words = ("service", "create", "--mode", "replicated-job", "--replicas", "4",
             "--max-concurrent", "2", "--name", "batch", "-e", "SLOT={{.Task.Slot}}")  # fmt: skip
    plan = json.loads(cluster.orc("plan", "--format", "json", *words, hello).stdout)
    assert [step["action"] for step in plan] == ["start", "start", "wait"]
    cluster.orc(*words, *SHELL, hello, "sh", "-c", "echo $SLOT")
    row = next(row for row in cluster.json("service", "ls") if row["name"] == "batch")
    assert (row["mode"], row["running"]) == ("replicated-job", 0)
    assert sorted(cluster.orc("job", "logs", "--raw", "batch").stdout.split()) == list("1234")
    cluster.orc("service", "update", "--force", "batch")
    assert (job(cluster, "batch")["run"], job(cluster, "batch")["completed"]) == (2, 4)
    assert "'batch' is a job" in cluster.refused("service", "scale", "batch=2")
