# SPDX-License-Identifier: Apache-2.0
"""docker compose on a cluster: a project of two services."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from dockerclient import Docker

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture
def project(docker: Docker, box: str, hello: str, tmp_path: Path) -> Iterator[Path]:
    """The folder of a project: a web page that is built, and its storage."""
    folder = tmp_path / "shop"
    (folder / "web").mkdir(parents=True)
    (folder / "web" / "Dockerfile").write_text(f"FROM {hello}\n")
    (folder / "compose.yaml").write_text(
        f"""
services:
  web:
    build: ./web
    depends_on:
      storage: {{condition: service_healthy}}
    ports: ["18093:80"]
  storage:
    image: {box}
    command: ["sh", "-c", "echo began; echo kept > /data/file; exec httpd -f -h /data"]
    healthcheck: {{test: ["CMD", "wget", "-qO-", "http://127.0.0.1/file"], interval: 1s}}
    stop_grace_period: 1s
    environment: {{WORD: set}}
    volumes: ["data:/data"]
volumes:
  data: {{}}
"""
    )
    yield folder
    docker("compose", "down", "-v", "-t", "0", "--rmi", "local", folder=folder)
    assert docker("ps", "-aq") == ""


def test_project_is_built_and_its_services_find_each_other(docker: Docker, project: Path) -> None:
    docker("compose", "up", "-d", "--build", folder=project)
    rows = docker("compose", "ps", "--format", "json", folder=project).splitlines()
    found = {row["Service"]: row for row in map(json.loads, rows)}
    assert (found["web"]["State"], found["storage"]["Health"]) == ("running", "healthy")
    assert found["web"]["Publishers"][0]["PublishedPort"] == 18093
    words = ("compose", "exec", "-T", "web", "wget", "-qO-", "http://storage/file")
    assert docker(*words, folder=project) == "kept"
    words = ("compose", "exec", "-T", "storage", "sh", "-c", "echo $WORD; exit 0")
    assert docker(*words, folder=project) == "set"
    assert "storage-1  | began" in docker("compose", "logs", "storage", folder=project)
    assert "httpd" in docker("compose", "top", "storage", folder=project)


def test_unchanged_services_are_kept_and_changed_ones_replaced(
    docker: Docker, project: Path
) -> None:
    docker("compose", "up", "-d", "storage", folder=project)
    first = docker("compose", "ps", "-q", "storage", folder=project)
    docker("compose", "up", "-d", "storage", folder=project)
    assert docker("compose", "ps", "-q", "storage", folder=project) == first
    file = project / "compose.yaml"
    file.write_text(file.read_text().replace("WORD: set", "WORD: changed"))
    docker("compose", "up", "-d", "storage", folder=project)
    assert docker("compose", "ps", "-q", "storage", folder=project) != first
    words = ("compose", "exec", "-T", "storage", "sh", "-c", "echo $WORD; cat /data/file")
    assert docker(*words, folder=project) == "changed\nkept"


def test_run_and_stop_and_scale(docker: Docker, project: Path) -> None:
    words = ("compose", "run", "--rm", "--no-deps", "-T", "storage", "sh", "-c", "exit 3")
    assert docker.run(*words, ok=False, folder=project).returncode == 3
    docker("compose", "up", "-d", "--scale", "storage=2", "storage", folder=project)
    rows = docker("compose", "ps", "-q", "storage", folder=project).splitlines()
    assert len(rows) == 2
    docker("compose", "stop", folder=project)
    assert docker("compose", "ps", "-q", folder=project) == ""
    assert len(docker("compose", "ps", "-aq", folder=project).splitlines()) == 2
