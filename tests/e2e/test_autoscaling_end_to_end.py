# SPDX-License-Identifier: Apache-2.0
"""Autoscaling on real CPU time, and by queries to a real Prometheus."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

BUSY = "until [ -e /idle ]; do :; done; exec sleep 1000"


@pytest.mark.timeout(8 * PATIENCE)
def test_a_service_under_load_grows_and_shrinks_again(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "auto", "--reserve-cpu", "0.05", "--limit-cpu",
                "0.1", "--autoscale-min", "1", "--autoscale-max", "2", "--autoscale-cpu", "50",
                "--autoscale-down-window", "0s", "--stop-signal", "KILL",
                "--entrypoint", "sh", hello, "-c", BUSY)  # fmt: skip
    assert "1/1 (1-2)" in cluster.orc("service", "ls").stdout
    tasks = cluster.await_running("auto", 2, within=2 * PATIENCE)
    assert "2/2 (1-2)" in cluster.orc("service", "ls").stdout
    for task in tasks:
        cluster.orc("exec", task["id"], "touch", "/idle")
    cluster.await_running("auto", 1, within=2 * PATIENCE)
    flags = ("--since", "10m", "--until", "0s", "--filter", "event=autoscale")
    events = cluster.orc("events", *flags, "--filter", "service=auto").stdout.splitlines()
    assert len(events) == 2
    assert "of 50%, replicas.new=2, replicas.old=1" in events[0]
    assert "of 50%, replicas.new=1, replicas.old=2" in events[1]
    assert "has 1 to 2 replicas by autoscaling, 3 is outside" in cluster.refused(
        "service", "scale", "auto=3"
    )
    # Beyond its bounds it is not scaled by hand either.
    cluster.orc("service", "update", "-d", "--autoscale-min", "2", "auto")
    cluster.await_running("auto", 2)
    assert eventually(lambda: "2/2 (2-2)" in cluster.orc("service", "ls").stdout)


@pytest.fixture
def prometheus(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """The URL of a Prometheus on a node's host."""
    address = cluster.nodes()["node1"]["address"]
    config = tmp_path / "prometheus.yml"
    config.write_text("{}\n")
    command = (ORC, "dev", "exec", "--name", cluster.name, "node1", "prometheus")
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [
                *(*command, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"),
                f"--web.listen-address={address}:9095",
            ],
            env=dict(cluster.env),
            stdin=subprocess.DEVNULL,
            stderr=log,
        ) as process,
    ):
        url = f"http://{address}:9095"
        try:
            eventually(lambda: urllib.request.urlopen(f"{url}/-/ready", timeout=5).status == 200)
            yield url
        finally:
            cluster.exec("node1", "pkill", "-f", str(config), ok=False)
            process.wait(PATIENCE)
            cluster.orc("cluster", "update", "--prometheus", "none")


@pytest.mark.timeout(8 * PATIENCE)
def test_a_service_follows_a_query(cluster: Cluster, hello: str, prometheus: str) -> None:
    create = ("service", "create", "--name", "auto", "--stop-signal", "KILL")
    scale = ("--autoscale-min", "1", "--autoscale-max", "4", "--autoscale-down-window", "0s")
    query = ("--autoscale-query", "vector(25)", "--autoscale-per-replica", "10")
    line = cluster.refused(*create, *scale, *query, hello)
    assert "orc cluster update --prometheus URL" in line
    assert "is not the URL of a Prometheus" in cluster.refused(
        "cluster", "update", "--prometheus", "10.0.0.5:9090"
    )
    cluster.orc("cluster", "update", "--prometheus", prometheus)
    assert prometheus in cluster.orc("cluster", "info").stdout
    cluster.orc(*create, *scale, *query, hello)
    cluster.await_running("auto", 3, within=2 * PATIENCE)
    shown = cluster.orc("service", "inspect", "--pretty", "auto").stdout
    assert "1 to 4 replicas, 10 of vector(25); last changed: query at 25, 10 per replica" in shown
    # A query that Prometheus refuses removes none.
    cluster.orc("service", "update", "-d", "--autoscale-query", "nonsense(", "auto")
    log = cluster.data("manager1").parent / "log"
    eventually(lambda: "an autoscaling query failed" in _all(log) and "parse error" in _all(log))
    assert len(cluster.running("auto")) == 3
    cluster.orc("service", "update", "-d", "--autoscale-query", "vector(0)", "auto")
    cluster.await_running("auto", 1, within=2 * PATIENCE)


def _all(folder: Path) -> str:
    return "".join(each.read_text() for each in folder.iterdir() if each.is_file())
