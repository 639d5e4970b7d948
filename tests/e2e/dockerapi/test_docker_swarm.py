# SPDX-License-Identifier: Apache-2.0
"""The Swarm half by the docker CLI: nodes, services, secrets, configs and stacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import Cluster, eventually
from dockerclient import Docker

pytestmark = [pytest.mark.root, pytest.mark.e2e]

FAST = ("--stop-grace-period", "100ms", "--update-monitor", "100ms")
"""Neither its start nor its end is waited for longer than needed."""


def test_nodes_are_listed_inspected_labelled_and_drained(docker: Docker, cluster: Cluster) -> None:
    rows = {
        row["Hostname"]: row
        for row in map(json.loads, docker.lines("node", "ls", "--format", "json"))
    }
    assert set(rows) == {"manager1", "node1", "node2", "node3"}
    assert (rows["manager1"]["ManagerStatus"], rows["node1"]["ManagerStatus"]) == ("Leader", "")
    assert {rows[name]["Status"] for name in rows} == {"Ready"}
    found = docker.inspect("node1", "node")
    assert found["Status"]["Addr"] == cluster.nodes()["node1"]["address"]
    assert found["Spec"]["Role"] == "worker"
    docker("node", "update", "--label-add", "disk=ssd", "--availability", "drain", "node1")
    spec = docker.inspect("node1", "node")["Spec"]
    assert (spec["Labels"], spec["Availability"]) == ({"disk": "ssd"}, "drain")
    docker("node", "update", "--label-rm", "disk", "--availability", "active", "node1")
    assert docker.inspect("node1", "node")["Spec"]["Labels"] == {}
    assert "node nosuch not found" in docker.refused("node", "inspect", "nosuch")


def test_info_and_swarm_show_the_cluster(docker: Docker, cluster: Cluster) -> None:
    found = json.loads(docker("info", "--format", "json"))
    assert found["Swarm"]["LocalNodeState"] == "active"
    assert (found["Swarm"]["Nodes"], found["Swarm"]["Managers"]) == (3, 1)
    assert found["NCPU"] > 0
    token = docker("swarm", "join-token", "-q", "worker")
    assert token == cluster.orc("cluster", "token", "worker", "-q").stdout.strip()
    assert "orc cluster leave" in docker.refused("swarm", "leave")
    version = json.loads(docker("version", "--format", "json"))
    assert version["Server"]["ApiVersion"] == "1.45"


def test_service_is_created_scaled_updated_rolled_back_and_removed(
    docker: Docker, hello: str, box: str
) -> None:
    docker(
        *("service", "create", "--name", "web", "--replicas", "2", "-p", "18092:80", *FAST),
        *("-e", "A=1", "-l", "tier=web", "--container-label", "inner=yes"),
        *("--update-delay", "0s", "--rollback-monitor", "100ms"),
        hello,
    )
    [row] = map(json.loads, docker.lines("service", "ls", "--format", "json"))
    assert (row["Name"], row["Mode"], row["Replicas"]) == ("web", "replicated", "2/2")
    assert row["Ports"] == "*:18092->80/tcp"
    docker("service", "scale", "web=3")
    tasks = [json.loads(row) for row in docker.lines("service", "ps", "web", "--format", "json")]
    assert {task["Name"] for task in tasks} == {"web.1", "web.2", "web.3"}
    assert {task["CurrentState"].split()[0] for task in tasks} == {"Running"}
    assert {task["Node"] for task in tasks} <= {"node1", "node2", "node3"}
    docker("service", "update", "--env-add", "B=2", "--replicas", "1", "web")
    spec = docker.inspect("web", "service")["Spec"]
    assert set(spec["TaskTemplate"]["ContainerSpec"]["Env"]) == {"A=1", "B=2"}
    assert (spec["Name"], spec["Labels"]) == ("web", {"tier": "web"})
    docker("service", "rollback", "web")
    spec = docker.inspect("web", "service")["Spec"]
    assert spec["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=1"]
    labels = docker.lines("ps", "--filter", "label=com.docker.swarm.service.name=web", "-q")
    assert len(labels) == spec["Mode"]["Replicated"]["Replicas"]
    assert docker("service", "rm", "web") == "web"
    assert docker("service", "ls", "-q") == ""
    assert "no such service: web" in docker.refused("service", "inspect", "web")


def test_logs_of_a_service_name_their_tasks(docker: Docker, box: str) -> None:
    docker(
        *("service", "create", "--name", "talker", "--replicas", "2", *FAST, box),
        *("sh", "-c", "echo spoken; sleep 1000"),
    )
    rows = eventually(lambda: _two(docker.lines("service", "logs", "talker")))
    assert {row.split("@")[0].split(".")[1] for row in rows} == {"1", "2"}
    assert all(row.endswith("| spoken") for row in rows)


def _two(rows: list[str]) -> list[str]:
    assert len(rows) == 2, rows
    return rows


def test_global_service_runs_on_each_node(docker: Docker, box: str) -> None:
    docker("service", "create", "--name", "each", "--mode", "global", *FAST, box, "sleep", "1000")
    assert docker("service", "ls", "--format", "{{.Mode}} {{.Replicas}}") == "global 3/3"
    docker("service", "rm", "each")


def test_secret_and_config_are_files_of_a_service(docker: Docker, box: str, tmp_path: Path) -> None:
    docker("secret", "create", "-l", "of=me", "password", "-", stdin="hidden")
    docker("config", "create", "site", "-", stdin="shown")
    assert "Data" not in docker.inspect("password", "secret")["Spec"]
    assert docker("config", "inspect", "-f", '{{printf "%s" .Spec.Data}}', "site") == "shown"
    assert docker("secret", "ls", "--filter", "label=of", "--format", "{{.Name}}") == "password"
    docker(
        *("service", "create", "--name", "reader", *FAST, "--secret", "password"),
        *("--config", "source=site,target=/site", box),
        *("sh", "-c", "cat /run/secrets/password /site; echo; sleep 1000"),
    )
    logs = eventually(lambda: docker("service", "logs", "--raw", "reader"))
    assert logs == "hiddenshown"
    assert "is in use" in docker.refused("secret", "rm", "password")
    docker("service", "rm", "reader")
    docker("secret", "rm", "password")
    docker("config", "rm", "site")
    assert docker("secret", "ls", "-q") == docker("config", "ls", "-q") == ""


@pytest.fixture
def stack(docker: Docker, hello: str, box: str, tmp_path: Path) -> Iterator[str]:
    """Two services, deployed; the stack's name."""
    file = tmp_path / "stack.yml"
    file.write_text(
        f"""
services:
  web:
    image: {hello}
    deploy: {{replicas: 2}}
  client:
    image: {box}
    command:
      - sh
      - -c
      - until wget -qO- http://web/cgi-bin/index.cgi; do sleep 0.2; done; sleep 1000
    stop_grace_period: 100ms
"""
    )
    docker("stack", "deploy", "-c", str(file), "site")
    yield "site"
    docker("stack", "rm", "site")


def test_stack_is_deployed_listed_and_its_services_find_each_other(
    docker: Docker, stack: str
) -> None:
    assert docker("stack", "ls", "--format", "{{.Name}} {{.Services}}") == "site 2"

    def converged() -> bool:
        rows = docker.lines("stack", "services", stack, "--format", "{{.Name}} {{.Replicas}}")
        assert set(rows) == {"site_web 2/2", "site_client 1/1"}
        return True

    eventually(converged)
    names = docker.lines("stack", "ps", stack, "--format", "{{.Name}}")
    assert set(names) == {"site_web.1", "site_web.2", "site_client.1"}
    assert "Hello from" in eventually(lambda: docker("service", "logs", "--raw", "site_client"))
    docker("stack", "rm", stack)
    assert docker("service", "ls", "-q") == ""
    assert docker("network", "ls", "-q", "--filter", "label=com.docker.stack.namespace=site") == ""
