# SPDX-License-Identifier: Apache-2.0
"""What a real Prometheus finds in a cluster, and reads there."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, eventually
from localprometheus import local_prometheus

pytestmark = [pytest.mark.root, pytest.mark.e2e]

WEB, NODES = 7422, 7424

CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: orc-managers
  http_sd_configs: [&sd {{url: 'https://{manager}/sd?job=orc-managers', refresh_interval: 1s,
    authorization: &token {{credentials: {token}}},
    tls_config: &tls {{ca_file: {ca}, server_name: manager.orc}}}}]
  authorization: *token
  tls_config: *tls
- job_name: orc-agents
  http_sd_configs: [{{<<: *sd, url: 'https://{manager}/sd?job=orc-agents'}}]
  authorization: *token
  tls_config: {{ca_file: {ca}, server_name: node.orc}}
- job_name: orc-services
  http_sd_configs: [{{<<: *sd, url: 'https://{manager}/sd?job=orc-services'}}]
"""


@dataclass
class Prometheus:
    """A running one."""

    port: int

    def get(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        """The one value of an instant query; None when it has none (yet)."""
        try:
            result = self.get("query", query=query)["result"]
        except urllib.error.URLError:
            return None
        return float(result[0]["value"][1]) if result else None

    def targets(self, job: str) -> dict[str, dict[str, str]]:
        """Address of each active target of a job → its labels."""
        return {
            each["discoveredLabels"]["__address__"]: each["labels"]
            for each in self.get("targets")["activeTargets"]
            if each["labels"]["job"] == job
        }


@dataclass
class Scraper:
    """Reads what daemons serve, as Prometheus does."""

    cluster: Cluster
    ca: Path
    manager: str

    def curl(self, address: str, path: str, token: str = "") -> tuple[int, str]:
        host, port = address.rsplit(":", 1)
        name = "manager.orc" if int(port) == WEB else "node.orc"
        done = subprocess.run(
            [
                *("curl", "-sS", "--noproxy", "*", "--cacert", self.ca, "-w", "\n%{http_code}"),
                *("--connect-to", f"{name}:{port}:{host}:{port}"),
                *(("-H", f"Authorization: Bearer {token}") if token else ()),
                f"https://{name}:{port}{path}",
            ],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body


@pytest.fixture
def scraper(cluster: Cluster) -> Scraper:
    address = cluster.json("cluster", "info")["managers"][0]["address"].rpartition(":")[0]
    ca = next(cluster.data("manager1").rglob("ca.pem"))
    return Scraper(cluster, ca, f"{address}:{WEB}")


@pytest.fixture
def prometheus(scraper: Scraper, tmp_path: Path) -> Iterator[Callable[[], Prometheus]]:
    """Starts Prometheus on this machine, with the cluster's service discovery."""
    with ExitStack() as stack:

        def start() -> Prometheus:
            token = scraper.cluster.orc("cluster", "token", "scrape").stdout.strip()
            config = CONFIG.format(manager=scraper.manager, token=token, ca=scraper.ca)
            made = Prometheus(stack.enter_context(local_prometheus(config, tmp_path)))
            eventually(lambda: made.value("vector(1)"))
            return made

        yield start


def test_prometheus_finds_all_and_reads_it(
    cluster: Cluster, hello: str, scraper: Scraper, prometheus: Callable[[], Prometheus]
) -> None:
    server = prometheus()
    eventually(lambda: server.value("sum(up{job='orc-managers'})") == 1)
    eventually(lambda: server.value("sum(up{job='orc-agents'})") == 3)
    name = "measured"
    cluster.orc(
        *("service", "create", "--name", name, "--replicas", "3", "--limit-memory", "64m"),
        *("--label", "prometheus.port=8080", "--label", "prometheus.path=/figures", hello),
    )
    tasks = cluster.await_running(name, 3)
    found = eventually(lambda: len(t := server.targets("orc-services")) == 3 and t)
    assert set(found) == {f"{task['addresses']['default']}:8080" for task in tasks}
    assert {labels["service"] for labels in found.values()} == {name}
    assert {labels["__metrics_path__"] for labels in _discovered(server)} == {"/figures"}
    eventually(
        lambda: server.value(f"count(container_memory_working_set_bytes{{service='{name}'}})") == 3,
    )
    assert server.value(f"max(container_spec_memory_limit_bytes{{service='{name}'}})") == 64 << 20
    assert server.value(f"min(container_processes{{service='{name}'}})") >= 1  # type: ignore[operator]
    eventually(lambda: server.value(f"orc_service_tasks_running{{service='{name}'}}") == 3)
    assert server.value("sum(orc_nodes{state='ready'})") == 3
    assert server.value("orc_task_startup_duration_seconds_count") >= 3  # type: ignore[operator]
    cluster.orc("service", "rm", "-d", name)
    eventually(lambda: not server.targets("orc-services"))
    cluster.power_off("node3")
    eventually(lambda: server.value("sum(up{job='orc-agents'})") == 2)
    eventually(lambda: server.value("orc_node_up{node='node3'}") == 0)


def _discovered(server: Prometheus) -> list[dict[str, str]]:
    targets = server.get("targets")["activeTargets"]
    return [each["discoveredLabels"] for each in targets if each["labels"]["job"] == "orc-services"]


def test_served_metrics_are_valid_for_prometheus(
    cluster: Cluster, hello: str, scraper: Scraper
) -> None:
    token = cluster.orc("cluster", "token", "scrape").stdout.strip()
    cluster.script("busy", hello, "while :; do :; done", "--limit-cpu", "0.1")
    (task,) = cluster.await_running("busy", 1)
    node = cluster.nodes()[task["node"]]["address"]
    for address in (scraper.manager, f"{node}:{NODES}"):
        status, body = scraper.curl(address, "/metrics", token)
        assert status == 200
        # Some names of node_exporter, cAdvisor and etcd are against Prometheus' own rules.
        others = ("node_memory_", "container_memory_failcnt", "etcd_server_proposals_")
        lines = [line for line in body.splitlines() if not any(name in line for name in others)]
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
    throttled = eventually(
        lambda: [
            line
            for line in scraper.curl(f"{node}:{NODES}", "/metrics", token)[1].splitlines()
            if line.startswith("container_cpu_cfs_throttled_seconds_total")
            and 'service="busy"' in line
            and float(line.rpartition(" ")[2]) > 0
        ],
    )
    assert len(throttled) == 1


def test_a_new_token_replaces_the_old_one_everywhere(cluster: Cluster, scraper: Scraper) -> None:
    node = f"{cluster.nodes()['node1']['address']}:{NODES}"
    old = cluster.orc("cluster", "token", "scrape").stdout.strip()
    assert scraper.curl(node, "/metrics", old)[0] == 200
    new = cluster.orc("cluster", "token", "--rotate", "scrape").stdout.strip()
    assert new != old
    for address in (scraper.manager, node):
        eventually(lambda at=address: scraper.curl(at, "/metrics", old)[0] == 401)  # type: ignore[misc]
        eventually(lambda at=address: scraper.curl(at, "/metrics", new)[0] == 200)  # type: ignore[misc]
    status, said = scraper.curl(scraper.manager, "/sd")
    assert status == 401
    assert "orc cluster token scrape" in said
    assert scraper.curl(scraper.manager, "/sd?job=nodes", new)[0] == 400


def test_an_agent_without_a_manager_is_read_on(cluster: Cluster, scraper: Scraper) -> None:
    node = f"{cluster.nodes()['node1']['address']}:{NODES}"
    token = cluster.orc("cluster", "token", "scrape").stdout.strip()
    eventually(lambda: "orc_agent_connected 1.0" in scraper.curl(node, "/metrics", token)[1])
    cluster.stop("manager1")
    cluster.stop("node1")
    cluster.start("node1")

    def disconnected() -> bool:
        try:
            return "orc_agent_connected 0.0" in scraper.curl(node, "/metrics", token)[1]
        except subprocess.CalledProcessError:
            return False

    eventually(disconnected)
