# SPDX-License-Identifier: Apache-2.0
"""testcontainers-python against a gateway."""

from __future__ import annotations

import urllib.request

import pytest
from devcluster import Cluster, eventually
from dockerclient import Docker
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.waiting_utils import wait_for_logs

pytestmark = [pytest.mark.root, pytest.mark.e2e]

SERVE = "mkdir /www; echo hello > /www/hello; echo ready; exec busybox httpd -f -p 80 -h /www"


def test_containers_of_a_test_reach_each_other_and_are_reached(
    docker: Docker, cluster: Cluster, box: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, docker.env[name])
    # As TESTCONTAINERS_RYUK_DISABLED and TC_HOST do.
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    monkeypatch.setattr(
        testcontainers_config, "tc_host_override", cluster.nodes()["node1"]["address"]
    )
    with Network() as network:
        server = DockerContainer(box).with_command(["sh", "-c", SERVE]).with_exposed_ports(80)
        with server.with_network(network).with_network_aliases("web") as web:
            wait_for_logs(web, "ready")
            url = f"http://{web.get_container_host_ip()}:{web.get_exposed_port(80)}/hello"
            eventually(lambda: urllib.request.urlopen(url, timeout=5).read() == b"hello\n")
            client = DockerContainer(box).with_command(["sleep", "600"]).with_network(network)
            with client as other:
                done = other.exec(["busybox", "wget", "-q", "-O", "-", "http://web/hello"])
                assert (done.exit_code, done.output) == (0, b"hello\n")
                web.copy_into_container(b"new\n", "/www/new")
                done = other.exec(["busybox", "wget", "-q", "-O", "-", "http://web/new"])
                assert done.output == b"new\n"
    assert docker.lines("ps", "-aq") == []
