# SPDX-License-Identifier: Apache-2.0
"""`orc dev …` with the real daemons: up, down, and what can be done to a host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def remains(name: str) -> list[str]:
    """Every trace of a dev cluster on this machine."""
    found = [str(p) for p in Path("/run/netns").glob(f"orcdev-{name}")]
    found += [str(p) for p in Path("/sys/fs/cgroup").glob(f"*/orc-{name}-*")]
    found += [str(p) for p in Path("/sys/fs/cgroup").glob(f"orc-{name}-*")]
    found += [str(p) for p in Path("/var/lib/orc-dev").glob(name)]
    for p in Path("/sys/class/net").glob("orcdev-*/ifalias"):
        with suppress(OSError):  # it went meanwhile
            if p.read_text().startswith(f"dev-cluster-{name}-of-"):
                found.append(str(p))
    found += [m for m in Path("/proc/self/mountinfo").read_text().splitlines() if name in m]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mounts = (process / "mountinfo").read_text()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if f"/orc-dev/{name}/" in mounts or f"/orc-dev/{name}/".encode() in command:
            found.append(f"process {process.name}: {command!r}")
    return found


def links() -> set[str]:
    """All of the machine's but those of dev clusters, of which others may come and go."""
    return {name for name in os.listdir("/sys/class/net") if not name.startswith("orcdev-")}


def test_cluster_starts_ready_and_is_removed_completely(
    spare_cluster: Callable[[str], Cluster],
) -> None:
    before = links()
    spare = spare_cluster("x")
    spare.dev("up", "--nodes", "1")
    assert spare.nodes()["node1"]["state"] == "ready"
    assert spare.orc("context", "ls").stdout.count(spare.name) == 1
    assert remains(spare.name)
    assert "1 node ready" in spare.dev("up", "--nodes", "1").stdout
    spare.dev("up", "--nodes", "2")
    assert spare.nodes().keys() == {"node1", "node2"}

    # The machine reboots: no host and no switch is there, only the disks.
    identity = spare.nodes()["node1"]["id"]
    for host in ("node1", "node2", "manager1"):
        spare.power_off(host)
    subprocess.run(["ip", "netns", "del", f"orcdev-{spare.name}"], check=True)
    spare.dev("up", "--nodes", "2")
    assert spare.nodes()["node1"]["id"] == identity

    # Whatever state it is in.
    spare.kill9("node1", "daemon")
    spare.kill9("manager1", "etcd")
    spare.power_off("node2")
    assert "removed" in spare.dev("down").stdout
    assert remains(spare.name) == []
    assert links() == before
    assert "is not up" in spare.dev("down").stdout
    assert "no cluster" in spare.refused("node", "ls")


def test_a_removed_node_leaves_the_cluster_and_its_host_joins_again(
    spare_cluster: Callable[[str], Cluster],
) -> None:
    spare = spare_cluster("r")
    spare.dev("up", "--nodes", "1")
    before = spare.nodes()["node1"]["id"]
    spare.orc("volume", "create", "--node", "node1", "data")
    volume = spare.data("node1") / "volumes" / "by-name" / "data"
    eventually(volume.exists)
    spare.orc("node", "rm", "--force", "node1")
    eventually((spare.data("node1") / "node.removed.json").exists)
    links = spare.exec("node1", "ip", "-o", "link").stdout
    assert [
        line for line in links.splitlines() if " lo:" not in line and " eth0@" not in line
    ] == []
    log = (spare.data("node1").parent / "log" / "agent.log").read_text()
    assert "(the node was removed from the cluster)" in log
    command = spare.orc("cluster", "token", "worker").stdout.split()[1:]
    spare.exec("node1", ORC, *command, "--data-dir", str(spare.data("node1")))
    eventually(lambda: spare.nodes()["node1"]["state"] == "ready")
    assert spare.nodes()["node1"]["id"] != before
    assert volume.exists()
    spare.dev("down")


def test_demo_shows_all_its_steps(spare_cluster: Callable[[str], Cluster]) -> None:
    spare = spare_cluster("d")
    path = f"{Path(ORC).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [Path(__file__).parents[2] / "scripts" / "demo"],
        env={**spare.env, "ORC_DEV_NAME": spare.name, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    commands = [line[2:] for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert commands[:2] == ["orc dev up", "orc node ls"]
    assert commands[-1] == "orc service ps hello_web"
    assert "Hello from" in done.stdout
    assert len(spare.running("hello_web")) == 12


def test_hosts_are_hosts(cluster: Cluster) -> None:
    assert cluster.exec("node1", "hostname").stdout.strip() == "node1"
    boot_ids = {
        cluster.exec(host, "cat", "/proc/sys/kernel/random/boot_id").stdout
        for host in ("manager1", "node1", "node2")
    }
    assert len(boot_ids) == 3
    assert "Show this message" in cluster.exec("node2", "orc", "--help").stdout
    assert cluster.exec("node2", "echo", "--name", "x").stdout == "--name x\n"
    assert cluster.exec("node2", "sh", "-c", "exit 7", ok=False).returncode == 7


def test_a_host_that_lost_power_is_down_and_comes_back(cluster: Cluster) -> None:
    cluster.power_off("node3")
    assert cluster.status()["node3"]["state"] == "off"
    eventually(lambda: cluster.nodes()["node3"]["state"] == "down")
    assert "is off: 'orc dev start node3'" in cluster.dev("exec", "node3", "true", ok=False).stderr
    cluster.start("node3")
    cluster.await_ready("node3")


def test_a_stopped_agent_is_down_and_a_killed_one_is_restarted(cluster: Cluster) -> None:
    first = cluster.status()["node1"]["daemon_pid"]
    cluster.kill9("node1", "daemon")

    def restarted() -> bool:
        row = cluster.status()["node1"]
        return row["daemon_state"] == "running" and row["daemon_pid"] != first

    eventually(restarted)
    cluster.stop("node1")
    assert cluster.status()["node1"]["daemon_state"] == "stopped"
    eventually(lambda: cluster.nodes()["node1"]["state"] == "down")
    cluster.start("node1")
    cluster.await_ready("node1")


def test_a_partitioned_node_is_down_until_it_is_healed(cluster: Cluster) -> None:
    cluster.partition("node2")
    assert cluster.status()["node2"]["partitioned"]
    eventually(lambda: cluster.nodes()["node2"]["state"] == "down")
    cluster.heal()
    assert not cluster.status()["node2"]["partitioned"]
    cluster.await_ready("node2")
