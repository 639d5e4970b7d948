# SPDX-License-Identifier: Apache-2.0
"""Services as their user sees them: created, scaled, updated, restarted, removed."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def ids(tasks: list[dict[str, object]]) -> set[object]:
    return {task["id"] for task in tasks}


def test_create_waits_and_shows_a_line_a_task(cluster: Cluster, hello: str) -> None:
    done = cluster.orc("service", "create", "--name", "web", "--replicas", "6", hello)
    for slot in range(1, 7):
        assert f"web.{slot}  running on node" in done.stderr
    assert "web: 6 of 6 running, converged" in done.stderr
    (service,) = cluster.json("service", "ls")
    assert (service["mode"], service["replicas"], service["running"]) == ("replicated", 6, 6)
    # Spread: as many on each of the three nodes.
    assert Counter(task["node"] for task in cluster.running("web")) == {
        "node1": 2,
        "node2": 2,
        "node3": 2,
    }
    addresses = [task["addresses"]["default"] for task in cluster.running("web")]
    assert len(set(addresses)) == 6


def test_detached_create_returns_at_once(cluster: Cluster, hello: str) -> None:
    done = cluster.orc("service", "create", "-d", "--name", "later", hello)
    assert len(done.stdout.split()) == 1
    cluster.await_running("later", 1)


def test_scaling_down_keeps_the_remaining_tasks(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", hello)
    three = ids(cluster.running("web"))
    cluster.orc("service", "scale", "web=6")
    six = ids(cluster.running("web"))
    assert three < six
    assert len(six) == 6
    # The newest of the fullest nodes go first, so the first three stay.
    cluster.orc("service", "scale", "web=3")
    assert ids(cluster.running("web")) == three
    cluster.orc("service", "scale", "web=0")
    assert cluster.running("web") == []


def test_an_update_replaces_each_task_and_labels_restart_nothing(
    cluster: Cluster, hello: str
) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", hello)
    before = cluster.running("web")
    cluster.orc("service", "update", "web", "--label-add", "team=blue")
    assert ids(cluster.running("web")) == ids(before)
    cluster.orc("service", "update", "web", "--env-add", "COLOUR=blue")
    after = cluster.running("web")
    assert not ids(after) & ids(before)
    assert {task["slot"] for task in after} == {1, 2, 3}
    environment = cluster.exec(after[0]["node"], "cat", f"/proc/{after[0]['pid']}/environ").stdout
    assert "COLOUR=blue" in environment.split("\0")
    inspected = cluster.json("service", "inspect", "web")
    assert inspected[0]["spec"]["labels"] == {"team": "blue"}


def test_an_update_goes_one_task_at_a_time(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "4", hello)
    old = ids(cluster.running("web"))
    cluster.orc("service", "update", "-d", "web", "--env-add", "A=1")
    lowest = 4

    def updated() -> bool:
        nonlocal lowest
        running = cluster.running("web")
        lowest = min(lowest, len(running))
        return len(running) == 4 and not ids(running) & old

    eventually(updated, every=0.0)
    # Never more than one of the four was away at a time.
    assert lowest >= 3


@pytest.mark.parametrize(
    ("condition", "status", "replaced"),
    [
        ("none", 3, False),
        ("on-failure", 0, False),
        ("on-failure", 3, True),
        ("any", 0, True),
    ],
)
def test_restart_conditions(
    cluster: Cluster, hello: str, condition: str, status: int, replaced: bool
) -> None:
    cluster.orc(
        "service", "create", "-d", "--name", "job", "--restart-condition", condition,
        "--restart-delay", "100ms", "--entrypoint", "/bin/busybox", hello,
        "sh", "-c", f"exit {status}",
    )  # fmt: skip

    def ended() -> list[dict[str, object]]:
        return [t for t in cluster.tasks("job") if t["state"] in ("failed", "complete")]

    first = eventually(ended)[-1]
    assert first["exit_code"] == status
    if status:
        assert "exit status 3" in str(first["error"])
    if replaced:
        eventually(lambda: len(cluster.tasks("job")) > 1)
    else:
        # A task of another service, started after it, shows that the reconciler has been by.
        cluster.orc("service", "create", "--name", "other", hello)
        assert len(cluster.tasks("job")) == 1


def test_a_crash_loop_backs_off(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "-d", "--name", "loop", "--restart-delay", "200ms",
        "--entrypoint", "/bin/busybox", hello, "false",
    )  # fmt: skip

    def waits_long() -> bool:
        waiting = [t for t in cluster.tasks("loop") if t["state"] == "pending"]
        return any(re.search(r"attempt [4-9]", str(task["error"])) for task in waiting)

    eventually(waits_long)
    starts = sorted(task["started_at"] for task in cluster.tasks("loop") if task["started_at"])
    assert len(starts) >= 3


def test_max_attempts_end_a_crash_loop(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "-d", "--name", "loop", "--restart-delay", "50ms",
        "--restart-max-attempts", "2", "--entrypoint", "/bin/busybox", hello, "false",
    )  # fmt: skip
    eventually(lambda: len(cluster.tasks("loop")) == 3)
    eventually(lambda: all(task["state"] == "failed" for task in cluster.tasks("loop")))
    cluster.orc("service", "create", "--name", "other", hello)
    assert len(cluster.tasks("loop")) == 3


def test_logs_of_all_tasks_and_of_ended_ones(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "-d", "--name", "talk", "--replicas", "3",
        "--restart-condition", "none", "--entrypoint", "/bin/busybox", hello,
        "sh", "-c", "echo out $0; echo err >&2",
    )  # fmt: skip
    eventually(lambda: [t["state"] for t in cluster.tasks("talk")] == ["complete"] * 3)
    done = cluster.orc("service", "logs", "talk")
    assert done.stdout.count("| out") == 3
    assert done.stderr.count("| err") == 3
    for slot in (1, 2, 3):
        assert f"talk.{slot}@node" in done.stdout


def test_remove_leaves_nothing_on_any_node(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "6", hello)
    cluster.orc("service", "rm", "-d", "web")
    assert cluster.json("service", "ls") == []

    def clean() -> bool:
        for host in ("node1", "node2", "node3"):
            left = cluster.exec(
                host, "sh", "-c",
                "ls /run/orc/containers /run/orc/netns | grep -v : ; pgrep -x conmon; "
                "ip -o link show type veth | grep orcv; grep overlay /proc/mounts; "
                "find /sys/fs/cgroup -path '*orc-*' -mindepth 3 -type d -name '*'$(hostname)'/*'",
                ok=False,
            )  # fmt: skip
            assert left.stdout.strip() == "", left.stdout
        return True

    eventually(clean)
    # The name is free at once.
    cluster.orc("service", "create", "--name", "web", hello)


def test_json_keys_are_those_promised(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "-p", "18080:80", hello)
    promised = {
        ("node", "ls"): "id hostname role availability state address shares_total shares_reserved "
        "memory_total memory_reserved tasks version labels",
        ("service", "ls"): "id name mode replicas running image ports",
        ("service", "ps", "web"): "id name service slot node state desired_state error exit_code "
        "image addresses started_at",
        ("node", "ps", "node1"): "id name service slot node state desired_state error exit_code "
        "image addresses started_at",
        ("network", "ls"): "id name driver subnet vni internal encrypted",
        ("images",): "id repository tag digest size nodes layers",
    }
    for command, keys in promised.items():
        rows = cluster.json(*command)
        assert isinstance(rows, list)
        for row in rows:
            assert set(keys.split()) <= row.keys(), command
    (node, *_) = [n for n in cluster.json("node", "ls") if n["tasks"]]
    assert node["shares_total"] == 1024 * 2 or node["shares_total"] % 1024 == 0
    assert (node["shares_reserved"], node["memory_reserved"]) == (128, 64 << 20)
    assert json.dumps(cluster.json("cluster", "info"))


def test_templates_give_a_container_facts_of_its_task_and_node(
    cluster: Cluster, hello: str
) -> None:
    cluster.orc("node", "update", "--label-add", "zone=a", "node1")
    cluster.orc("service", "create", "--name", "web", "--constraint", "node.labels.zone==a",
                "--label", "tier=front", "--hostname", "{{.Service.Name}}-{{.Task.Slot}}",
                "--env", "AT={{.Node.Hostname}} {{.Node.Labels.zone}} {{.Service.Labels.tier}}",
                hello)  # fmt: skip
    told = cluster.orc("exec", "web.1", "/bin/busybox", "sh", "-c", "hostname; echo $AT").stdout
    assert told.splitlines() == ["web-1", "node1 a front"]
    cluster.orc("node", "update", "--label-rm", "zone", "node1")
    refused = cluster.refused("service", "update", "--env-add", "A={{.Node.Nmae}}", "web")
    assert "template {{.Node.Nmae}} is not known" in refused
