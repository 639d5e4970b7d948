# SPDX-License-Identifier: Apache-2.0
"""Prometheus' own discovery of containers, tasks, services and nodes by Docker's API."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from devcluster import Cluster, eventually
from dockerclient import Docker, Run
from localprometheus import local_prometheus

pytestmark = [pytest.mark.root, pytest.mark.e2e]

CONFIG = """
scrape_configs:
- job_name: containers
  docker_sd_configs: [{{host: "{url}", refresh_interval: 1s}}]
- job_name: tasks
  dockerswarm_sd_configs: [{{host: "{url}", role: tasks, refresh_interval: 1s}}]
- job_name: services
  dockerswarm_sd_configs: [{{host: "{url}", role: services, refresh_interval: 1s}}]
- job_name: nodes
  dockerswarm_sd_configs: [{{host: "{url}", role: nodes, refresh_interval: 1s}}]
"""

Discovered = Callable[[str, str], set[str]]
"""The values of a label, without `__meta_`, of the targets of a job."""


@pytest.fixture
def discovered(docker: Docker, tmp_path: Path) -> Iterator[Discovered]:
    with local_prometheus(CONFIG.format(url=docker.url), tmp_path) as port:
        yield partial(_labels, port)


def _labels(port: int, job: str, label: str) -> set[str]:
    url = f"http://127.0.0.1:{port}/api/v1/targets?state=active"
    with urllib.request.urlopen(url, timeout=5) as answer:
        targets = json.load(answer)["data"]["activeTargets"]
    found = [each["discoveredLabels"] for each in targets if each["scrapePool"] == job]
    return {each.get(f"__meta_{label}", "") for each in found}


def test_prometheus_discovers_what_docker_runs(
    docker: Docker, cluster: Cluster, run: Run, hello: str, discovered: Discovered
) -> None:
    run("main", "sleep 1000", "-p", "18093:80", "-l", "tier=db")
    create = ("service", "create", "--name", "web", "--replicas", "2", "-p", "18094:80")
    docker(*create, "--stop-grace-period", "100ms", "--label", "tier=web", hello)

    def found() -> bool:
        names = discovered("containers", "docker_container_name")
        assert "/main" in names, names
        assert "80" in discovered("containers", "docker_port_private")
        assert "db" in discovered("containers", "docker_container_label_tier")
        assert discovered("tasks", "dockerswarm_service_name") == {"web"}
        assert discovered("tasks", "dockerswarm_task_state") == {"running"}
        assert discovered("tasks", "dockerswarm_task_slot") == {"1", "2"}
        assert discovered("tasks", "dockerswarm_node_hostname") <= cluster.nodes().keys()
        assert discovered("services", "dockerswarm_service_name") == {"web"}
        assert discovered("services", "dockerswarm_service_label_tier") == {"web"}
        assert discovered("services", "dockerswarm_service_mode") == {"replicated"}
        hosts = {"manager1", *cluster.nodes()}
        assert discovered("nodes", "dockerswarm_node_hostname") == hosts
        return True

    eventually(found)
