# SPDX-License-Identifier: Apache-2.0
"""The real docker CLI, compose and SDK, in front of a gateway to a dev cluster."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually

from tests.bench.docker import missing

CLI = "/usr/bin/docker"

BOTH = pytest.mark.parametrize(
    "engine", ["orc"] if missing() else ["orc", "dockerd"], indirect=True
)
"""Mark of tests that run against dockerd, too, where that is installed."""


Run = Callable[..., str]
"""Starts a container in the background: `run(name, command, *flags)`; its id."""


@dataclass(frozen=True, slots=True)
class Docker:
    """Docker's clients with the gateway as their engine."""

    url: str
    """As in DOCKER_HOST."""
    env: Mapping[str, str] = field(repr=False)

    def run(
        self, *arguments: str, ok: bool = True, stdin: str = "", folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker`. It must succeed, unless `ok` is False."""
        done = subprocess.run(
            [CLI, *arguments],
            env=dict(self.env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            cwd=folder,
            check=False,
        )
        if ok:
            assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done

    def __call__(self, *arguments: str, stdin: str = "", folder: Path | None = None) -> str:
        """Run `docker`, which must succeed; its output without the last newline."""
        return self.run(*arguments, stdin=stdin, folder=folder).stdout.rstrip("\n")

    def lines(self, *arguments: str) -> list[str]:
        """The lines that `docker` prints."""
        return self(*arguments).splitlines()

    def inspect(self, name: str, *words: str) -> dict[str, Any]:
        """What `docker inspect` shows of one object; `words`: `network` and so on before it."""
        [found] = json.loads(self(*words, "inspect", name))
        assert isinstance(found, dict)
        return found

    def refused(self, *arguments: str, status: int = 1) -> str:
        """Run `docker`, which must fail with this exit status; what it says on stderr."""
        done = self.run(*arguments, ok=False)
        assert done.returncode == status, f"docker {' '.join(arguments)}: {done}"
        assert "Traceback" not in done.stderr
        return done.stderr.strip()

    @contextmanager
    def following(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run `docker` beside the body, with its output in a pipe; it is killed at the end if it
        runs on."""
        with subprocess.Popen(
            [CLI, *arguments],
            env=dict(self.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def sdk(self, url: str = "", **options: Any) -> Iterator[docker.DockerClient]:
        """docker-py."""
        client = docker.DockerClient(url or self.url, timeout=int(PATIENCE), **options)
        try:
            yield client
        finally:
            client.close()


@contextmanager
def gateway(cluster: Cluster, folder: Path, *arguments: str) -> Iterator[Docker]:
    """A gateway of a cluster, with a socket in a folder, which also has the clients' files."""
    socket = folder / "docker.sock"
    log = folder / "gateway.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [ORC, "docker-api", "--socket", str(socket), *arguments],
            env=dict(cluster.env),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        ) as process,
    ):
        try:
            eventually(lambda: process.poll() is not None or socket.exists())
            assert process.poll() is None, log.read_text()
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER", "COMPOSE"))}
            own = {
                "DOCKER_HOST": f"unix://{socket}",
                "DOCKER_CONFIG": str(folder / "config"),
                "DOCKER_BUILDKIT": "0",
                "HOME": str(folder),
            }
            yield Docker(own["DOCKER_HOST"], {**kept, **own})
        finally:
            process.terminate()
            process.wait(PATIENCE)
    # Nothing that a client does may surprise the gateway.
    assert "Traceback" not in log.read_text(), log.read_text()
    assert not socket.exists()
