# SPDX-License-Identifier: Apache-2.0
"""Updates that fail, are taken back, or go on when somebody says so."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def create(cluster: Cluster, image: str, *flags: str, replicas: int = 3) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", str(replicas),
                "--restart-delay", "100ms", "--health-tcp", "80", *flags, image)  # fmt: skip


def broken(cluster: Cluster) -> Any:
    """An update to something that cannot work, waited for."""
    return cluster.orc("service", "update", "--entrypoint", "/no/such/program", "web", ok=False)


def inspected(cluster: Cluster) -> dict[str, Any]:
    document: dict[str, Any] = cluster.json("service", "inspect", "web")[0]
    return document


def test_a_failing_update_is_paused_and_exits_with_3(cluster: Cluster, hello: str) -> None:
    create(cluster, hello)
    done = broken(cluster)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(
        "orc: the update of service 'web' is paused: 1 of 3 failed: web."
    )
    assert len(cluster.running("web")) == 2
    assert inspected(cluster)["update"]["state"] == "paused"
    cluster.orc("service", "rollback", "web")
    assert len(cluster.running("web")) == 3
    assert inspected(cluster)["update"]["state"] == "rolled-back"


def test_a_failing_update_is_rolled_back_and_exits_with_4(cluster: Cluster, hello: str) -> None:
    create(cluster, hello, "--update-failure-action", "rollback", "--update-order", "start-first")
    before = {task["id"] for task in cluster.running("web")}
    done = broken(cluster)
    assert done.returncode == 4, done.stderr
    assert "service 'web' was rolled back: 1 of 3 failed" in done.stderr
    assert {task["id"] for task in cluster.running("web")} == before, "none of them was touched"
    cluster.orc("service", "scale", "web=2")  # is no update, and succeeds


def test_a_manager_killed_in_the_middle_goes_on_with_the_rollback(
    cluster: Cluster, hello: str
) -> None:
    create(cluster, hello, "--update-failure-action", "rollback", "--update-monitor", "3s")
    cluster.orc("service", "update", "-d", "--entrypoint", "/no/such/program", "web")
    cluster.kill9("manager1", "daemon")
    eventually(lambda: inspected(cluster)["update"]["state"] == "rolled-back")
    cluster.await_running("web", 3)


def test_canaries_wait_for_a_word(cluster: Cluster, hello: str) -> None:
    create(cluster, hello, "--update-canary", "1")
    done = cluster.orc("service", "update", "--env-add", "A=1", "web")
    assert "1 of 3 replicas are updated; 'orc service promote web'" in done.stderr
    old = {task["id"] for task in cluster.running("web")}
    cluster.orc("service", "promote", "web")
    new = {task["id"] for task in cluster.running("web")}
    assert len(new) == 3
    assert len(new & old) == 1, "the canary stays"
    assert "no update at its canaries" in cluster.refused("service", "promote", "web")


def test_back_to_one_of_several_versions(cluster: Cluster, hello: str) -> None:
    create(cluster, hello, replicas=1)
    assert "no previous spec to roll back to" in cluster.refused("service", "rollback", "web")
    for value in ("1", "2"):
        cluster.orc("service", "update", "--env-add", f"A={value}", "web")
    cluster.orc("service", "scale", "web=2")
    assert [past["version"] for past in inspected(cluster)["history"]] == [2, 1]
    assert "has no version 9 in its history; it has 2, 1" in cluster.refused(
        "service", "rollback", "--to", "9", "web"
    )
    cluster.orc("service", "rollback", "--to", "1", "web")
    spec = inspected(cluster)["spec"]
    assert (spec["task"]["container"]["env"], spec["replicas"]) == ([], 2)


def test_events_show_the_course_of_an_update(cluster: Cluster, hello: str) -> None:
    began = time.time()
    create(cluster, hello, "--update-failure-action", "rollback", replicas=1)
    assert broken(cluster).returncode == 4
    cluster.orc("node", "update", "--availability", "pause", "node3")
    cluster.orc("node", "update", "--availability", "active", "node3")
    told = [json.loads(line) for line in cluster.orc(
        "events", "--since", str(began), "--until", "0s", "--format", "json",
        "--filter", "event=update",
    ).stdout.splitlines()]  # fmt: skip
    actions = [event["action"] for event in told if event["type"] == "service"]
    assert actions == [
        *("update", "update: started"),
        *("update", "update: rolling back", "update: rolled back"),
    ]
    [back] = [event for event in told if event["action"] == "update: rolled back"]
    assert back["attributes"]["reason"].startswith("1 of 1 failed: web.1")
    changes = [event["attributes"].get("availability.new") for event in told]
    assert [each for each in changes if each] == ["pause", "active"]


def test_concurrent_update_conflicts_name_the_other_change(cluster: Cluster, hello: str) -> None:
    """Whoever is second reads again: nothing of anybody is lost, or its user is told."""
    create(cluster, hello, replicas=1)
    flags = [("--env-add", f"A{number}=1", "--label-add", f"l{number}=1") for number in range(6)]
    running = [
        subprocess.Popen(
            [ORC, "service", "update", "-d", *each, "web"],
            env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for each in flags
    ]  # fmt: skip
    ended = [(*process.communicate(timeout=PATIENCE), process.returncode) for process in running]
    labels = inspected(cluster)["spec"]["labels"]
    done = [number for number, (_, _, status) in enumerate(ended) if status == 0]
    assert set(labels) == {f"l{number}" for number in done}
    for _, words, status in ended:
        assert status == 0 or "conflict: service 'web' was modified concurrently: " in words, words
