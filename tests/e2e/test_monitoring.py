"""The monitoring chart in a cluster: a real Prometheus there, every dashboard's query, an alert."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(300)]

CHART = Path(__file__).parents[2] / "charts" / "monitoring"
FILES = ("-c", str(CHART / "compose.yaml"), "-c", str(CHART / "debian.yaml"))
NAME = "watch"


class Monitoring:
    """What answers at the ports of any node."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def get(self, port: int, path: str, **query: str) -> Any:
        node = self.cluster.nodes()["node1"]["address"]
        url = f"http://{node}:{port}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)

    def values(self, query: str) -> list[float]:
        """Of an instant query."""
        result = self.get(9090, "/api/v1/query", query=query)["data"]["result"]
        return [float(each["value"][1]) for each in result]

    def firing(self) -> set[tuple[str, str]]:
        """(name, node) of the alerts that Alertmanager has."""
        alerts = self.get(9093, "/api/v2/alerts", active="true")
        return {
            (each["labels"]["alertname"], each["labels"].get("node", ""))
            for each in alerts
            if each["status"]["state"] == "active"
        }


@pytest.fixture
def monitoring(cluster: Cluster) -> Iterator[Monitoring]:
    subprocess.run([CHART / "prepare"], check=True)
    # Both where the test does not kill.
    values = ("--set", "INTERVAL=1s", "--quiet", "--timeout", "2m")
    cluster.orc("node", "update", "--availability", "pause", "node3")
    cluster.orc("stack", "deploy", *FILES, *values, NAME, within=200.0)
    cluster.orc("node", "update", "--availability", "active", "node3")
    yield Monitoring(cluster)
    cluster.orc("stack", "rm", NAME)
    cluster.orc("volume", "rm", f"{NAME}_prometheus", f"{NAME}_alertmanager")


def _queries() -> Iterator[tuple[str, str]]:
    """(dashboard and panel, query) of every panel, its variables at "all"."""
    for path in sorted((CHART / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", re.sub(r"\$\w+", ".*", target["expr"])


def test_all_is_seen_and_a_dead_node_is_told(
    cluster: Cluster, hello: str, monitoring: Monitoring
) -> None:
    cluster.orc("service", "create", "--name", "observed", "--replicas", "3", hello)
    eventually(lambda: monitoring.values('sum(up{job="orc-agents"})') == [3.0], within=20)
    eventually(lambda: monitoring.values('up{service="watch_alertmanager"}') == [1.0], within=20)

    def heard() -> bool:
        silent = [
            f"{where}: {asked}" for where, asked in _queries() if not monitoring.values(asked)
        ]
        assert not silent, "these queries find nothing:\n" + "\n".join(silent)
        return True

    eventually(heard, within=60, every=2)
    cluster.power_off("node3")
    eventually(lambda: ("NodeDown", "node3") in monitoring.firing(), within=90, every=1)
    cluster.start("node3")
    eventually(lambda: ("NodeDown", "node3") not in monitoring.firing(), within=90, every=1)
