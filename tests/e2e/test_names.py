"""Names: what a container is told when it asks."""

from __future__ import annotations

from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

SMALL = ("--reserve-cpu", "0.05", "--reserve-memory", "16m")


def looked_up(cluster: Cluster, task: dict[str, Any], name: str, kind: str = "a") -> list[str]:
    """What `nslookup` in a container finds under a name, sorted; nothing if there is no such."""
    asked = cluster.in_task(task, "/bin/busybox", "nslookup", f"-type={kind}", name, ok=False)
    answer = asked.stdout.partition("\n\n")[2]
    return sorted(
        line.partition("Address:")[2].strip()
        for line in answer.splitlines()
        if line.startswith("Address:")
    )


def addresses(tasks: list[dict[str, Any]]) -> list[str]:
    return sorted(task["addresses"]["default"] for task in tasks)


def test_a_service_is_known_by_its_name_and_by_its_tasks(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", *SMALL, hello)
    tasks = cluster.running("web")
    (client,) = cluster.script("client", hello, "sleep 1000", *SMALL)
    (vip,) = looked_up(cluster, client, "web")
    assert vip not in addresses(tasks)
    eventually(lambda: looked_up(cluster, client, "tasks.web") == addresses(tasks), within=5)
    for task in tasks:
        own = [task["addresses"]["default"]]
        for name in (f"{task['slot']}.web", task["name"], task["id"], "WEB." + str(task["slot"])):
            assert looked_up(cluster, client, name) == own, name
    page = cluster.in_task(
        client, "/bin/busybox", "wget", "-q", "-T", "5", "-O", "-", "http://web/"
    )
    assert "Hello" in page.stdout
