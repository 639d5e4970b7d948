# SPDX-License-Identifier: Apache-2.0
"""Clusters are upgraded host by host, and back again, while clients send requests: none fails, and
no container is restarted. One has one manager and comes from release 0.1.0; one has three managers
and goes to the next release."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import PATIENCE, Cluster, eventually
from otherreleases import Release, build, build_next
from packagedhost import HELLO
from test_no_request_lost import NODES, ON_NODE2, asked, serve

from orchestrator import __version__

pytestmark = [pytest.mark.root, pytest.mark.e2e]

EARLIER = "0.1.0"


MANAGERS = ("manager1", "manager2", "manager3")
# A busy machine may need longer than five seconds to start an agent. The setting is stored.
PATIENT = ("--", "--node-timeout", "60")


class Upgrade:
    """A cluster whose hosts change between the present version and another release."""

    def __init__(self, cluster: Cluster, release: Release, version: str) -> None:
        """`version`: the release's."""
        self.cluster = cluster
        self._release = release
        self._version = version

    def start(self, host: str, version: str, *flags: str) -> None:
        """Start a host with a version."""
        if version == self._version:
            words = ("dev", "start", "--name", self.cluster.name, host, *flags)
            self._release.run(self.cluster.env, *words)
        else:
            self.cluster.dev("start", host, *flags)

    def serve(self) -> dict[str, Any]:
        """Start the service `web` on all nodes, and `client`, whose task is returned."""
        self.cluster.await_ready(*NODES)
        subprocess.run([HELLO / "prepare"], check=True)
        self.cluster.orc("build", "-t", "hello:1", str(HELLO))
        [client] = self.cluster.script("client", "hello:1", "sleep 86400", *ON_NODE2)
        serve(self.cluster, "hello:1", "--replicas", "3")
        return client

    def change(self, host: str, version: str) -> None:
        """Restart a host's daemon with a version. Then all nodes are ready, and run containers."""
        self.cluster.stop(host)
        self.start(host, version)
        eventually(lambda: self._versions()[host] == version)
        self.cluster.await_ready(*NODES)
        where = ("--constraint", f"node.hostname=={host if host in NODES else NODES[0]}")
        run = ("run", "--rm", *where, "--entrypoint", "/bin/busybox", "hello:1", "true")
        if (host, version) == ("manager1", EARLIER):
            # That release gives up a write that etcd does not answer within two seconds, as on a
            # busy disk; the present one has it repeated.
            eventually(lambda: self.cluster.orc(*run, ok=False).returncode == 0)
        else:
            self.cluster.orc(*run)

    def _versions(self) -> dict[str, str]:
        """Of each host that is in touch with the cluster."""
        found = {name: row["version"] for name, row in self.cluster.nodes().items()}
        if self._version == EARLIER:
            found["manager1"] = self.cluster.json("cluster", "info")["version"]
        else:
            rows = self.cluster.json("manager", "ls")
            found |= {row["hostname"]: row["version"] for row in rows if row["state"] == "ready"}
        return found

    def containers(self) -> dict[str, int]:
        """Process id of each container that serves requests or sends them."""
        tasks = [*self.cluster.running("web"), *self.cluster.running("client")]
        return {task["id"]: task["pid"] for task in tasks}


@pytest.fixture
def only_cluster(
    spare_cluster: Callable[[str], Cluster],
) -> Iterator[Callable[[str], Cluster]]:
    """A spare cluster that is removed after the test: one that serves clients is load enough."""
    made: list[Cluster] = []

    def make(suffix: str) -> Cluster:
        made.append(spare_cluster(suffix))
        return made[-1]

    yield make
    for cluster in made:
        cluster.dev("down")


@pytest.mark.timeout(12 * PATIENCE)
def test_a_cluster_is_upgraded_host_by_host_and_back(
    only_cluster: Callable[[str], Cluster], tmp_path: Path
) -> None:
    cluster, release = only_cluster("up"), build(tmp_path)
    upgrade = Upgrade(cluster, release, EARLIER)
    release.run(cluster.env, "dev", "up", "--name", cluster.name)
    cluster.stop("manager1")
    upgrade.start("manager1", EARLIER, *PATIENT)
    client = upgrade.serve()
    checked = cluster.json("cluster", "upgrade", "--check")
    assert (checked["ok"], checked["managers"][0]["version"]) == (True, EARLIER)
    before = upgrade.containers()
    with asked(cluster, client):
        for host in ("manager1", *NODES):
            upgrade.change(host, __version__)
            assert upgrade.containers() == before
        checked = cluster.json("cluster", "upgrade", "--check")
        assert [each["version"] for each in checked["nodes"]] == [__version__] * len(NODES)
        for host in (*NODES, "manager1"):
            upgrade.change(host, EARLIER)
            assert upgrade.containers() == before


@pytest.mark.timeout(12 * PATIENCE)
def test_three_managers_are_upgraded_host_by_host_and_back(
    only_cluster: Callable[[str], Cluster], tmp_path: Path
) -> None:
    cluster, (release, version) = only_cluster("ha"), build_next(tmp_path)
    upgrade = Upgrade(cluster, release, version)
    cluster.dev("up", "--managers", "3")
    for manager in MANAGERS:
        cluster.stop(manager)
        upgrade.start(manager, __version__, *PATIENT)
    client = upgrade.serve()
    before = upgrade.containers()
    with asked(cluster, client):
        for host in (*MANAGERS, *NODES):
            upgrade.change(host, version)
            assert upgrade.containers() == before
        checked = cluster.json("cluster", "upgrade", "--check")
        assert checked["ok"], checked
        hosts = [*checked["managers"], *checked["nodes"]]
        assert [each["version"] for each in hosts] == [version] * 6
        for host in (*NODES, *MANAGERS):
            upgrade.change(host, __version__)
            assert upgrade.containers() == before
