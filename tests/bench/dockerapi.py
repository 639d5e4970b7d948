# SPDX-License-Identifier: Apache-2.0
"""Docker's Engine API: the docker CLI and plain clients at the gateway, beside dockerd.

The gateway is that of the dev cluster. Commands alternate between the two; what a client waits for
includes the CLI's own start.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import image, processes
from tests.bench.cluster import BenchError, Cluster, Control
from tests.bench.docker import Docker, UnixConnection
from tests.bench.processes import Memory, Process
from tests.bench.tables import MIB, Table, at_least, at_most, mebibytes, median, seconds, spread

ROUNDS = 21
LOG_ROUNDS = 3
LINES, LINE = 1_000_000, 100
"""Of the log that is read; bytes, with the newline."""
CONTAINERS = 1000
CLIENTS, CALLS = 200, 5
"""Connections at once, and calls of each."""
PS_TARGET = 0.3
MEMORY_TARGET = 60 * MIB
_WITHIN = 300.0
_CLI = "docker"
_NETWORK = "bench-more"


@dataclass(slots=True)
class Engine:
    """What one side took; seconds."""

    run: list[float] = field(default_factory=list)
    logs: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    """Each call of the concurrent clients."""
    elapsed: float = 0.0
    """All of these calls."""


@dataclass(slots=True)
class Result:
    """Both sides; what only the gateway is asked."""

    gateway: Engine = field(default_factory=Engine)
    dockerd: Engine = field(default_factory=Engine)
    ps: list[float] = field(default_factory=list)
    idle: Memory = field(default_factory=Memory)
    after: Memory = field(default_factory=Memory)


def measure(cluster: Cluster, docker: Docker | None) -> Result:
    """Measure by turns. Raises BenchError when something does not run."""
    if shutil.which(_CLI) is None:
        raise BenchError("the docker CLI is not installed: apt install docker-cli")
    result = Result()
    process = _gateway(cluster)
    result.idle = processes.memory([process])
    socket = f"/var/lib/orc-dev/{cluster.name}/docker.sock"
    sides = [(f"unix://{socket}", result.gateway)]
    if docker is not None:
        sides.append((docker.host, result.dockerd))
    for host, _ in sides:
        _docker(host, "run", "--rm", image.NAME, *_TRUE)
    for _ in range(ROUNDS):
        for host, engine in sides:
            engine.run.append(_docker(host, "run", "--rm", image.NAME, *_TRUE))
    for host, engine in sides:
        _measure_logs(host, engine)
    for host, engine in sides:
        _measure_clients(host.removeprefix("unix://"), engine)
    result.after = processes.memory([process])
    return result


async def measure_ps(cluster: Cluster, result: Result) -> None:
    """`docker ps` with many containers, which are removed again. On two networks: each has 253
    addresses on a node."""
    host = f"unix:///var/lib/orc-dev/{cluster.name}/docker.sock"
    cluster.orc("network", "create", _NETWORK)
    half = CONTAINERS // 2
    async with (
        Control() as control,
        control.service("many", half, _WITHIN, small=True),
        control.service("more", half, _WITHIN, small=True, network=_NETWORK),
    ):
        if (listed := _listed(host)) != CONTAINERS:
            raise BenchError(f"docker ps lists {listed} of {CONTAINERS} containers")
        result.ps += [_docker(host, "ps") for _ in range(ROUNDS)]


_TRUE = ("/bin/busybox", "true")


def _gateway(cluster: Cluster) -> Process:
    found = [
        each for group in cluster.hosts().values() for each in group if "docker-api" in each.argv
    ]
    if not found:
        raise BenchError("the dev cluster has no gateway")
    return found[0]


def _listed(host: str) -> int:
    argv = [_CLI, "-H", host, "ps", "-q"]
    return len(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


def _docker(host: str, *words: str) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        [_CLI, "-H", host, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    took = time.perf_counter() - began
    if done.returncode != 0:
        raise BenchError(f"docker {words[0]}: {done.stderr.strip()}")
    return took


def _measure_logs(host: str, engine: Engine) -> None:
    line = "x" * (LINE - 1)
    script = f"/bin/busybox yes {line} | /bin/busybox head -n {LINES}"
    flags = ("--name", "talker", "--log-opt", "max-size=1g")
    _docker(host, "run", *flags, image.NAME, "/bin/busybox", "sh", "-c", script)
    try:
        for _ in range(LOG_ROUNDS):
            engine.logs.append(_read_logs(host))
    finally:
        _docker(host, "rm", "-f", "talker")


def _read_logs(host: str) -> float:
    began = time.perf_counter()
    size = 0
    with subprocess.Popen(
        [_CLI, "-H", host, "logs", "talker"], stdout=subprocess.PIPE, bufsize=0
    ) as reader:
        assert reader.stdout is not None
        while data := os.read(reader.stdout.fileno(), 1 << 20):
            size += len(data)
    if size != LINES * LINE:
        raise BenchError(f"the log has {size} bytes, not {LINES * LINE}")
    return time.perf_counter() - began


def _measure_clients(socket: str, engine: Engine) -> None:
    failures: list[str] = []
    start = threading.Barrier(CLIENTS + 1)

    def client() -> None:
        connection = UnixConnection(Path(socket))
        start.wait()
        try:
            for _ in range(CALLS):
                began = time.perf_counter()
                connection.request("GET", "/containers/json")
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    failures.append(f"status {response.status}")
                engine.calls.append(time.perf_counter() - began)
        except (OSError, http.client.HTTPException) as error:
            failures.append(str(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for each in threads:
        each.start()
    start.wait()
    began = time.perf_counter()
    for each in threads:
        each.join()
    engine.elapsed = time.perf_counter() - began
    if failures:
        raise BenchError(f"{len(failures)} calls of concurrent clients failed: {failures[0]}")


def report(result: Result, absent: str) -> Table:
    """`absent`: why there is nothing of Docker, or empty. Pure."""
    ours, theirs = result.gateway, result.dockerd
    rows = [
        *_compared(
            "`docker run --rm IMAGE true`",
            ours.run,
            theirs.run,
            lambda: at_most(median(ours.run), median(theirs.run), "dockerd's"),
        ),
        *_compared(
            f"`docker logs`, {LINES * LINE // 10**6} MB",
            ours.logs,
            theirs.logs,
            lambda: at_least(
                median(theirs.logs) / median(ours.logs), 0.5, "half of dockerd's rate"
            ),
        ),
        *_compared(f"{CLIENTS} clients, a call", ours.calls, theirs.calls, lambda: ""),
        (
            f"`docker ps`, {CONTAINERS} containers",
            *_figures(result.ps),
            at_most(median(result.ps), PS_TARGET, "300 ms"),
        ),
    ]
    return Table(
        "Docker's API",
        ("what", "rounds", "median", "least to most, ms", "target"),
        tuple(rows),
        (
            f"Memory of the gateway (PSS): {mebibytes(result.idle.pss)} idle "
            f"({at_most(result.idle.pss, MEMORY_TARGET, '60 MiB')}), "
            f"{mebibytes(result.after.pss)} after that.",
            f"{CLIENTS} clients with {CALLS} calls each (`GET /containers/json`): "
            f"{CLIENTS * CALLS / ours.elapsed:.0f} a second at the gateway"
            + (f", {CLIENTS * CALLS / theirs.elapsed:.0f} at dockerd." if theirs.elapsed else "."),
            *([absent + "."] if absent else []),
        ),
    )


def _compared(
    what: str, ours: Sequence[float], theirs: Sequence[float], target: Callable[[], str]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(what, *_figures(ours), target() if theirs else "")]
    if theirs:
        rows.append((f"{what}: dockerd", *_figures(theirs), ""))
    return rows


def _figures(took: Sequence[float]) -> tuple[str, str, str]:
    return str(len(took)), seconds(median(took)), spread(took)
