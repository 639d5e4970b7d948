# SPDX-License-Identifier: Apache-2.0
"""Dev clusters in several root file systems that share a network, as chroots and containers do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from orchestrator.dev import underlay
from orchestrator.dev.devcluster import DevCluster
from orchestrator.dev.devplan import DevError, link_name
from tests.enclosure import enclosed

pytestmark = pytest.mark.root

OTHER_ROOT = Path(__file__).with_name("otherroot.py")


def quiet(_: str) -> None: ...


@contextmanager
def up_in_another_root(name: str, config: Path) -> Iterator[IPv4Network]:
    """A cluster of that name that is up in another root, and its subnet."""
    process = subprocess.Popen(
        enclosed([sys.executable, str(OTHER_ROOT), name]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(config)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        yield IPv4Network(process.stdout.readline().strip())
        process.stdin.close()
        assert process.stdout.read() == "True\n"


def answers(cluster: DevCluster) -> bool:
    """Whether the machine reaches the cluster's manager."""
    address = cluster.status()[0].address
    command = ["/bin/busybox", "nc", "-w", "10", address, "7420"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0


def test_clusters_of_one_name_in_two_roots_are_separate(
    cluster: DevCluster, tmp_path: Path
) -> None:
    ours = cluster.up(1, 1, quiet).subnet
    before = cluster.status()
    with up_in_another_root(cluster.name, tmp_path / "other") as theirs:
        assert not theirs.overlaps(ours)
        assert answers(cluster)
        cluster.kill("node1")
        cluster.start("node1")
        assert cluster.up(1, 1, quiet).subnet == ours
    assert Path("/sys/class/net", link_name(cluster.tag)).exists()
    assert answers(cluster)
    assert cluster.status()[0] == before[0]


def test_subnet_taken_concurrently_is_an_error(
    cluster: DevCluster, make_cluster: Callable[[], DevCluster]
) -> None:
    plan = cluster.up(1, 1, quiet)
    for host in plan.hosts:
        cluster.kill(host.name)
    # The machine reboots: all links are gone. In another root, a cluster chooses the same subnet.
    underlay.remove_switch(cluster.name, cluster.tag)
    link = f"taken{os.getpid()}"
    subprocess.run(["ip", "link", "add", link, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "link", "set", link, "alias", "cluster x of y", "up"], check=True)
        subprocess.run(["ip", "addr", "add", f"{plan.gateway}/24", "dev", link], check=True)
        for attempt in (lambda: cluster.up(1, 1, quiet), lambda: cluster.start("node1")):
            with pytest.raises(DevError, match=r"is in use by cluster x of y.*orc dev down"):
                attempt()
    finally:
        subprocess.run(["ip", "link", "del", link], check=True)
    assert cluster.up(1, 1, quiet) == plan
