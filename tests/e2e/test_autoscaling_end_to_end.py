# SPDX-License-Identifier: Apache-2.0
"""Autoscaling on real CPU time."""

from __future__ import annotations

import pytest
from devcluster import PATIENCE, Cluster, eventually

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
