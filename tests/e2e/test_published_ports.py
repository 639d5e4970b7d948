# SPDX-License-Identifier: Apache-2.0
"""Published ports: every node answers, and the container sees who asks."""

from __future__ import annotations

import pytest
from devcluster import Cluster, eventually
from test_network import WHO, asker, fetch, get, machine

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def seen(host: str) -> str:
    """Whom the container sees when this machine asks a host; empty while nobody answers."""
    try:
        return asker(get(host, 18080))
    except OSError:
        return ""


def test_every_node_answers_and_the_container_sees_the_client(cluster: Cluster, hello: str) -> None:
    cluster.script("who", hello, WHO, "-p", "18080:80", "--constraint", "node.hostname==node2")
    addresses = {name: row["address"] for name, row in cluster.nodes().items()}
    here = machine(cluster)
    for address in addresses.values():
        eventually(lambda address=address: seen(address) == here)  # type: ignore[misc]
    # From another node, from the node that is asked, from the one where the task runs.
    asked = f"http://{addresses['node3']}:18080/"
    assert asker(cluster.exec("node1", *fetch(asked)).stdout) == addresses["node1"]
    for node in ("node3", "node2"):
        assert cluster.exec(node, *fetch(asked)).stdout.strip()
    for node in addresses:
        assert cluster.exec(node, *fetch("http://127.0.0.1:18080/")).stdout.strip()
    # An agent that is killed changes no packet's way, where it is asked or where the task runs.
    for node in ("node2", "node3"):
        cluster.kill9(node, "daemon")
    for address in addresses.values():
        assert asker(get(address, 18080)) == here


def test_a_published_port_has_one_owner(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "-p", "18080-18082:80-82", hello)
    line = cluster.refused("service", "create", "--name", "other", "-p", "18081:80", hello)
    assert "port 18081/tcp is published by service 'web'" in line
    line = cluster.refused("run", "-d", "-p", "mode=host,published=18082,target=80", hello)
    assert "port 18082/tcp is published by service 'web'" in line
    cluster.orc("service", "update", "web", "--publish-rm", "81")
    cluster.orc("run", "-d", "--name", "one", "-p", "18081:80", hello)
    line = cluster.refused("service", "update", "web", "--publish-add", "18081:81")
    assert "port 18081/tcp is published by container 'one'" in line
    # Stopped, it holds nothing; started, it must find it free.
    cluster.orc("stop", "one")
    cluster.orc("service", "update", "web", "--publish-add", "18081:81")
    assert "published by service 'web'" in cluster.refused("start", "one")
    cluster.orc("rm", "one")
