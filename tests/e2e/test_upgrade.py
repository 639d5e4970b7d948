# SPDX-License-Identifier: Apache-2.0
"""A cluster of release 0.1.0 is upgraded to the present version host by host, and back again, while
clients send requests: none fails, and no container is restarted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from devcluster import PATIENCE, Cluster, eventually
from earlierrelease import Release, build
from packagedhost import ROOT
from test_no_request_lost import NODES, ON_NODE2, asked, serve

from orchestrator import __version__

pytestmark = [pytest.mark.root, pytest.mark.e2e]

EARLIER = "0.1.0"
HELLO = ROOT / "charts" / "hello"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Release 0.1.0."""
    return build(tmp_path_factory.mktemp("release"))


class Upgrade:
    """A cluster whose hosts change between two versions."""

    def __init__(self, cluster: Cluster, release: Release) -> None:
        self.cluster = cluster
        self._release = release

    def _start(self, host: str, version: str) -> None:
        if version == EARLIER:
            self._release.run(self.cluster.env, "dev", "start", "--name", self.cluster.name, host)
        else:
            self.cluster.dev("start", host)

    def change(self, host: str, version: str) -> None:
        """Restart a host's daemon with a version. Then all nodes are ready, and run containers."""
        self.cluster.stop(host)
        self._start(host, version)

        def changed() -> bool:
            found = (
                self.cluster.json("cluster", "info")["version"]
                if host.startswith("manager")
                else self.cluster.nodes()[host]["version"]
            )
            assert found == version
            return True

        eventually(changed)
        self.cluster.await_ready(*NODES)
        where = ("--constraint", f"node.hostname=={host if host in NODES else NODES[0]}")
        self.cluster.orc("run", "--rm", *where, "--entrypoint", "/bin/busybox", "hello:1", "true")

    def containers(self) -> dict[str, int]:
        """Process id of each container that serves requests or sends them."""
        tasks = [*self.cluster.running("web"), *self.cluster.running("client")]
        return {task["id"]: task["pid"] for task in tasks}


@pytest.mark.timeout(12 * PATIENCE)
def test_a_cluster_is_upgraded_host_by_host_and_back(
    spare_cluster: Callable[[str], Cluster], release: Release
) -> None:
    cluster = spare_cluster("up")
    release.run(cluster.env, "dev", "up", "--name", cluster.name)
    # A busy machine may need longer than five seconds to start an agent. The setting is stored.
    cluster.stop("manager1")
    flags = ("--", "--node-timeout", "60")
    release.run(cluster.env, "dev", "start", "--name", cluster.name, "manager1", *flags)
    cluster.await_ready(*NODES)
    subprocess.run([HELLO / "prepare"], check=True)
    cluster.orc("build", "-t", "hello:1", str(HELLO))
    [client] = cluster.script("client", "hello:1", "sleep 86400", *ON_NODE2)
    serve(cluster, "hello:1", "--replicas", "3")
    upgrade = Upgrade(cluster, release)
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
