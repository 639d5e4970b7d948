# SPDX-License-Identifier: Apache-2.0
"""Services that wait for others, as a user sees them."""

from __future__ import annotations

import json
import time

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

RUNS = ("--entrypoint", "/bin/busybox sleep 1000", "--stop-grace-period", "100ms")


def test_service_starts_after_its_healthy_dependency_and_stops_before_it(
    cluster: Cluster, hello: str
) -> None:
    began = time.time()
    cluster.orc("service", "create", "-d", "--name", "db", "--health-tcp", "80",
                "--health-start-period", "5m", "--health-start-interval", "200ms",
                "--entrypoint", "/bin/busybox sh -c", "--stop-grace-period", "100ms", hello,
                "while [ ! -e /go ]; do sleep 0.1; done; exec httpd -f -p 80")  # fmt: skip
    cluster.orc("service", "create", "-d", "--name", "web", "--depends-on", "db:healthy",
                *RUNS, hello)  # fmt: skip
    waits = "waits for service db: no task is healthy yet"
    eventually(lambda: cluster.task("web")["error"] == waits)
    go = ("exec", "db.1", "/bin/busybox", "touch", "/go")
    eventually(lambda: cluster.orc(*go).returncode == 0)
    cluster.await_running("web", 1)
    assert cluster.running("db")[0]["health"] == "healthy"
    cluster.orc("service", "rm", "-d", "db", "web")

    def ended() -> list[str]:
        told = [json.loads(line) for line in cluster.orc(
            "events", "--since", str(began), "--until", "0s", "--format", "json"
        ).stdout.splitlines()]  # fmt: skip
        return [e["name"] for e in told if e["type"] == "container" and e["action"] == "die"]

    eventually(lambda: len(ended()) == 2)
    assert ended() == ["web.1", "db.1"]


def test_service_starts_when_its_dependency_has_completed(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "-d", "--name", "migrate", "--restart-condition", "none",
                "--entrypoint", "/bin/busybox sh -c", hello, "sleep 1; exit 3")  # fmt: skip
    cluster.orc("service", "create", "-d", "--name", "web", "--depends-on", "migrate:completed",
                *RUNS, hello)  # fmt: skip
    failed = "waits for service migrate: it has not completed; migrate.1 failed: exit status 3"
    eventually(lambda: cluster.task("web")["error"] == failed)
    cluster.orc("service", "update", "-d", "--args", "true", "migrate")
    cluster.await_running("web", 1)


def test_impossible_dependencies_are_refused(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "db", *RUNS, hello)
    cluster.orc("service", "create", "--name", "web", "--depends-on", "db", *RUNS, hello)
    assert "dependency cycle: db -> web -> db" in cluster.refused(
        "service", "update", "--depends-on-add", "web", "db"
    )
    assert "no service 'dbb' to depend on; did you mean 'db'?" in cluster.refused(
        "service", "create", "--depends-on", "dbb", hello
    )
    assert "so it never completes" in cluster.refused(
        "service", "create", "--depends-on", "db:completed", hello
    )
    assert "service 'db' is needed by 'web'" in cluster.refused("service", "rm", "-d", "db")
    assert len(cluster.running("db")) == len(cluster.running("web")) == 1
