# SPDX-License-Identifier: Apache-2.0
"""A gateway for the run's cluster, with Docker's clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import Cluster
from dockerclient import Docker, Run, gateway


@pytest.fixture(scope="session")
def session_docker(
    session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Docker]:
    """Docker's clients in front of the run's cluster."""
    with gateway(session_cluster, tmp_path_factory.mktemp("docker")) as found:
        yield found


@pytest.fixture
def docker(cluster: Cluster, session_docker: Docker) -> Iterator[Docker]:
    """Docker's clients; what tests leave of networks, volumes, secrets and configs is removed."""
    yield session_docker
    if services := [row["name"] for row in cluster.json("service", "ls")]:
        cluster.orc("service", "rm", *services)
    if own := [row["id"] for row in cluster.json("ps", "-a") if not row["service"]]:
        cluster.orc("rm", "-f", "-v", *own)
    for kind in ("secret", "config"):
        if names := session_docker.lines(kind, "ls", "-q"):
            session_docker(kind, "rm", *names)
    custom = session_docker.lines("network", "ls", "-q", "--filter", "type=custom")
    default = session_docker("network", "ls", "-q", "--filter", "name=default").splitlines()
    if names := [each for each in custom if each not in default]:
        session_docker("network", "rm", *names)
    if names := session_docker.lines("volume", "ls", "-q"):
        session_docker("volume", "rm", "-f", *names)


@pytest.fixture(scope="session")
def box(
    session_docker: Docker, hello: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """An image of busybox without an entrypoint, built by the docker CLI; its name."""
    folder: Path = tmp_path_factory.mktemp("box")
    (folder / "Dockerfile").write_text(f'FROM {hello}\nENTRYPOINT []\nCMD ["sh"]\n')
    session_docker("build", "-q", "-t", "box:1", str(folder))
    yield "box:1"
    session_docker("rmi", "-f", "box:1")


@pytest.fixture
def run(docker: Docker, box: str) -> Run:
    """Starts a container in the background: `run(name, command, *flags)`; its id."""

    def start(name: str, command: str, *flags: str) -> str:
        words = ("run", "-d", "--name", name, "--stop-timeout", "1", *flags)
        return docker(*words, box, "sh", "-c", command)

    return start
