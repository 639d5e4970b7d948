# SPDX-License-Identifier: Apache-2.0
"""Health: what is probed serves when it is healthy, and is replaced when it is not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture
def box(cluster: Cluster) -> Iterator[str]:
    yield "box"
    cluster.orc("rm", "-f", "box", ok=False)


def container(cluster: Cluster, name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(cluster.orc("inspect", name).stdout)[0]
    return row


def test_a_service_has_converged_when_it_is_healthy(cluster: Cluster, hello: str) -> None:
    # The first probe does not wait for the interval.
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", "--health-interval", "1h",
                "--health-http", "80/cgi-bin/index.cgi", hello)  # fmt: skip
    assert [task["health"] for task in cluster.running("web")] == ["healthy"] * 3
    assert "(healthy)" in cluster.orc("service", "ps", "web").stdout
    assert cluster.orc("ps", "--filter", "health=healthy", "-q").stdout.count("\n") == 3


def test_unhealthy_tasks_are_replaced_with_a_reason(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "-d", "--name", "web", "--restart-delay", "100ms",
                "--health-tcp", "81", "--health-interval", "200ms", "--health-retries", "2",
                hello)  # fmt: skip
    eventually(lambda: len(cluster.tasks("web")) > 2)
    failed = [task for task in cluster.tasks("web") if task["state"] == "failed"]
    assert failed[0]["error"].startswith("unhealthy: ")
    assert "connect" in failed[0]["error"]


def test_an_update_stops_at_the_first_task_that_does_not_get_healthy(
    cluster: Cluster, hello: str
) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3",
                "--health-tcp", "80", hello)  # fmt: skip
    cluster.orc("service", "update", "-d", "--health-tcp", "81", "web")
    cluster.await_reason("web", "probe failed")
    # It stays as it is, and who waits for it is told.
    done = cluster.orc("service", "scale", "--timeout", "500ms", "web=3", ok=False)
    assert done.returncode == 3
    assert "2 of 3 running" in done.stderr
    assert "probe failed" in done.stderr
    healthy = [task for task in cluster.running("web") if task["health"] == "healthy"]
    assert len(healthy) == 2
    cluster.orc("service", "update", "--health-tcp", "80", "web")
    assert len(cluster.running("web")) == 3


def test_unhealthy_container_is_reported_and_keeps_running(
    cluster: Cluster, hello: str, box: str
) -> None:
    since = str(time.time())
    cluster.orc("run", "-d", "--name", box, "--health-cmd", "test -e /ready", "--health-interval",
                "100ms", "--health-retries", "2", "--health-start-period", "1m", hello)  # fmt: skip
    assert "(health: starting)" in cluster.orc("ps").stdout
    cluster.orc("exec", box, "/bin/busybox", "touch", "/ready")
    eventually(lambda: "(healthy)" in cluster.orc("ps").stdout)
    cluster.orc("exec", box, "/bin/busybox", "rm", "/ready")
    eventually(lambda: "(unhealthy)" in cluster.orc("ps").stdout)
    row = container(cluster, box)
    assert (row["state"], row["health"]) == ("running", "unhealthy")
    assert row["error"] == "probe failed: exit status 1"
    events = cluster.orc("events", "--since", since, "--until", "0s", "--filter", "container=box")
    assert events.stdout.index("health_status: healthy") < events.stdout.index("unhealthy")


def test_a_probe_that_takes_too_long_is_killed(cluster: Cluster, hello: str, box: str) -> None:
    cluster.orc("run", "-d", "--name", box, "--health-cmd", "exec /bin/busybox sleep 1000",
                "--health-timeout", "300ms", "--health-interval", "100ms", hello)  # fmt: skip
    eventually(lambda: container(cluster, box)["health"] == "unhealthy")
    assert container(cluster, box)["error"] == "probe failed: no answer within 0.3 s"

    def sleeping() -> int:
        return cluster.orc("top", box).stdout.count("sleep 1000")

    # Only the probe that is being made.
    eventually(lambda: sleeping() <= 1)


def test_start_first_never_makes_less_of_a_service(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "2", "--update-order",
                "start-first", "--health-tcp", "80", hello)  # fmt: skip
    before = {task["id"] for task in cluster.running("web")}
    cluster.orc("service", "update", "-d", "--health-tcp", "81", "web")
    cluster.await_reason("web", "probe failed")
    working = [task for task in cluster.running("web") if task["health"] == "healthy"]
    assert {task["id"] for task in working} == before
    cluster.orc("service", "update", "--health-tcp", "80", "--env-add", "A=1", "web")
    assert len(cluster.running("web")) == 2
    assert not before & {task["id"] for task in cluster.running("web")}
