# SPDX-License-Identifier: Apache-2.0
"""The monitoring chart in a cluster: a real Prometheus there, every dashboard's query, an alert."""

from __future__ import annotations

import json
import math
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
        """Of an instant query, as far as they are numbers."""
        result = self.get(9090, "/api/v1/query", query=query)["data"]["result"]
        values = [float(each["value"][1]) for each in result]
        return [value for value in values if not math.isnan(value)]

    def choices(self, query: str) -> list[str]:
        """Of a dashboard's variable."""
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert asked, query
        found = self.get(9090, f"/api/v1/label/{asked[2]}/values", **{"match[]": asked[1]})
        return [str(value) for value in found["data"]]

    def account(self, query: str) -> str:
        """What Prometheus knows, to explain an alert that does not come: its alerts, the scrapes
        that failed, and what the query finds, with its age in seconds."""
        targets = self.get(9090, "/api/v1/targets", state="active")["data"]["activeTargets"]
        parts = {
            "alerts": self.get(9090, "/api/v1/alerts")["data"]["alerts"],
            "failed": {
                each["scrapeUrl"]: each["lastError"] for each in targets if each["lastError"]
            },
            "query": self.get(9090, "/api/v1/query", query=query)["data"]["result"],
            "age": self.values(f"time() - timestamp({query})"),
        }
        return json.dumps(parts, indent=1)

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
    cluster.orc("cluster", "update", "--container-access", "metrics")
    # Both where the test does not kill.
    values = ("--set", "INTERVAL=1s", "--quiet", "--timeout", "2m")
    cluster.orc("node", "update", "--availability", "pause", "node3")
    cluster.orc("stack", "deploy", *FILES, *values, NAME, within=200.0)
    cluster.orc("node", "update", "--availability", "active", "node3")
    yield Monitoring(cluster)
    cluster.orc("stack", "rm", NAME)
    cluster.orc("cluster", "update", "--container-access", "none")
    for volume in (f"{NAME}_prometheus", f"{NAME}_alertmanager"):
        eventually(lambda name=volume: cluster.orc("volume", "rm", name).returncode == 0)  # type: ignore[misc]


BOARDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((CHART / "grafana" / "dashboards").glob("*.json"))
}


def _queries() -> Iterator[tuple[str, str]]:
    """(dashboard and panel, query) of every panel, its variables at "all"."""
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}", re.sub(r"\$\w+", ".*", target["expr"])


def _bare(query: str) -> str:
    """A query without what makes it a number where there is no data, and without the question
    that nothing need answer while all is well."""
    return re.sub(r" (> 0|== 0)(?=\)|$)", "", query.removesuffix(" or vector(0)"))


def _variables(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in board.get("templating", {}).get("list", []) if each["type"] == "query"]


def test_all_targets_are_scraped_and_a_down_node_fires_an_alert(
    cluster: Cluster, hello: str, monitoring: Monitoring
) -> None:
    eventually(lambda: monitoring.values('sum(up{job="orc-managers"})') == [1.0])
    eventually(lambda: monitoring.values('sum(up{job="orc-agents"})') == [3.0])
    eventually(lambda: monitoring.values('up{service="watch_alertmanager"}') == [1.0])
    # Only now, so that what it takes to start is seen as it happens.
    cluster.orc("service", "create", "--name", "observed", "--replicas", "3", hello)

    # Prometheus' own, of alerts only: asked below, when there is one.
    queries = {(where, asked) for where, asked in _queries() if "ALERTS" not in asked}
    variables = [each["query"]["query"] for board in BOARDS.values() for each in _variables(board)]
    assert len(queries) > 50
    assert len(variables) == 3

    def heard() -> bool:
        silent = [
            f"{where}: {each}"
            for where, asked in sorted(queries)
            for each in {asked, _bare(asked)}
            if not monitoring.values(each)
        ]
        silent += [each for each in variables if not monitoring.choices(each)]
        assert not silent, "these queries find nothing:\n" + "\n".join(silent)
        return True

    eventually(heard, every=2)
    cluster.power_off("node3")

    def told() -> bool:
        assert ("NodeDown", "node3") in monitoring.firing(), monitoring.account("orc:node_up")
        return True

    eventually(told, within=90, every=1)
    (alerts,) = {_bare(asked) for _, asked in _queries() if "ALERTS" in asked}
    assert monitoring.values(alerts)
    cluster.start("node3")
    eventually(lambda: ("NodeDown", "node3") not in monitoring.firing(), within=90, every=1)
