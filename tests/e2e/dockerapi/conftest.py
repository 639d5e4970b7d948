# SPDX-License-Identifier: Apache-2.0
"""A gateway for the run's cluster, with Docker's clients, and a dockerd beside it.

Tests of a module with the mark `BOTH` run against dockerd, too, where that is installed: so they
are known to ask for what Docker does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from devcluster import Cluster
from dockerclient import Docker, Run, gateway

from tests.bench import image
from tests.bench.docker import daemon


@pytest.fixture(scope="session")
def session_docker(
    session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Docker]:
    """Docker's clients in front of the run's cluster."""
    with gateway(session_cluster, tmp_path_factory.mktemp("docker")) as found:
        yield found


@pytest.fixture(scope="session")
def dockerd(
    session_docker: Docker, box: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Docker]:
    """Docker's clients in front of a dockerd of our own, which has the image `box`."""
    folder = tmp_path_factory.mktemp("dockerd")
    image.write(folder / "bench.tar")
    session_docker("save", "-o", str(folder / "box.tar"), box)
    with daemon(folder, f"orc-e2e-{os.getpid()}", folder / "bench.tar") as found:
        engine = replace(
            session_docker, url=found.host, env={**session_docker.env, "DOCKER_HOST": found.host}
        )
        engine("load", "-i", str(folder / "box.tar"))
        yield engine


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """What serves Docker's API: `orc`, or `dockerd` if the test asks for it."""
    return str(getattr(request, "param", "orc"))


@pytest.fixture
def docker(engine: str, request: pytest.FixtureRequest) -> Iterator[Docker]:
    """Docker's clients; what tests leave is removed."""
    if engine == "orc":
        yield from _of_orc(
            request.getfixturevalue("cluster"), request.getfixturevalue("session_docker")
        )
        return
    found: Docker = request.getfixturevalue("dockerd")
    yield found
    if left := found.lines("ps", "-aq"):
        found("rm", "-f", "-v", *left)
    if names := found.lines("volume", "ls", "-q"):
        found("volume", "rm", "-f", *names)


def _of_orc(cluster: Cluster, session_docker: Docker) -> Iterator[Docker]:
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
