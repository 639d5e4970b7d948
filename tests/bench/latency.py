# SPDX-License-Identifier: Apache-2.0
"""One container: from the API call until it is seen running, and as a whole command."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field

from tests.bench import image
from tests.bench.cluster import BenchError, Cluster, Control
from tests.bench.docker import Docker
from tests.bench.tables import Table, at_most, median, seconds, spread, times

ROUNDS = 21
COMMANDS = 7
TARGET = 0.080
_WITHIN = 10.0
# A first process that has no handler for SIGTERM would sit out its grace period after each round.
_CREATE = ("service", "create", "--stop-signal", "SIGKILL")


@dataclass(slots=True)
class Latency:
    """Seconds of each round."""

    orc: list[float] = field(default_factory=list)
    docker: list[float] = field(default_factory=list)
    """`create` and `start` of Docker's API."""
    orc_command: list[float] = field(default_factory=list)
    """`orc service create`, which waits until it runs."""
    docker_command: list[float] = field(default_factory=list)
    """`docker run -d`, which does too."""


async def measure(cluster: Cluster, docker: Docker | None) -> Latency:
    """Measure by turns. Raises BenchError when something does not run."""
    result = Latency()
    async with Control() as control:
        async with control.service("warm-up", 3, _WITHIN):
            pass
        for number in range(ROUNDS):
            async with control.service(f"one{number}", 1, _WITHIN) as timed:
                result.orc.append(timed.seconds)
            if docker is not None:
                result.docker.append(docker.run())
        for number in range(COMMANDS):
            began = time.monotonic()
            cluster.orc(*_CREATE, "--name", f"command{number}", image.NAME)
            result.orc_command.append(time.monotonic() - began)
            await control.remove(f"command{number}")
            if docker is not None and shutil.which("docker") is not None:
                result.docker_command.append(_docker_run(docker))
    return result


def _docker_run(docker: Docker) -> float:
    environment = {**os.environ, "DOCKER_HOST": docker.host}
    began = time.monotonic()
    done = subprocess.run(
        ["docker", "run", "-d", image.NAME],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.monotonic() - began
    if done.returncode != 0:
        raise BenchError(f"docker run: {done.stderr.strip()}")
    docker.call("DELETE", f"/containers/{done.stdout.strip()}?force=1")
    return took


def report(result: Latency, absent: str) -> Table:
    """`absent`: why there is nothing of Docker, or empty. Pure."""
    ours, command = median(result.orc), median(result.orc_command)
    rows = [
        ("Orc, API call to RUNNING", *_figures(result.orc), "", at_most(ours, TARGET, "80 ms")),
        ("`orc service create`", *_figures(result.orc_command), "", ""),
    ]
    if result.docker:
        ratio = times(median(result.docker) / ours)
        rows.insert(1, ("Docker, API create and start", *_figures(result.docker), ratio, ""))
    if result.docker_command:
        ratio = times(median(result.docker_command) / command)
        rows.append(("`docker run -d`", *_figures(result.docker_command), ratio, ""))
    return Table(
        "One container",
        ("what", "rounds", "median", "least to most, ms", "Orc is faster by", "target"),
        tuple(rows),
        (
            "Orc's way is through the manager, etcd and a node that the scheduler chose; Docker's "
            "is that of one machine by itself.",
            *([absent + "."] if absent else []),
        ),
    )


def _figures(took: list[float]) -> tuple[str, str, str]:
    return str(len(took)), seconds(median(took)), spread(took)
