# SPDX-License-Identifier: Apache-2.0
"""The dev cluster of a run, as an administrator has it and as a client of its API sees it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from orchestrator.cli.app.contexts import load_context
from orchestrator.cli.rpc.client import MANAGER_NAME
from orchestrator.pb import control_pb2, control_pb2_grpc, types_pb2
from tests.bench import image, processes
from tests.bench.processes import Process, run_number

ORC = str(Path(sys.executable).with_name("orc"))
NODES = 3
MANAGERS = 3
"""Of a cluster with several."""
PREFIX = "bench-"

_CALL = 30.0
"""Seconds that one call may take."""
_GONE = 60.0
"""Seconds in which a removed service must be gone."""


class BenchError(Exception):
    """Something cannot be measured; the text says why."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A dev cluster that is up. `orc` commands and contexts go by the environment of this
    process, which `dev_cluster` has set up."""

    name: str
    up_seconds: float
    """How long `orc dev up` took."""

    def orc(self, *arguments: str) -> str:
        """Run `orc`, return its stdout. Raises BenchError with what it said."""
        return orc(*arguments)

    def enter(self, host: str, *command: str) -> list[str]:
        """The argv that runs a command on a host, without the cost of an `orc dev exec`."""
        init = str(self.inits()[host])
        return ["nsenter", "-t", init, "-m", "-u", "-i", "-n", "-p", "--wdns=/", "--", *command]

    def inits(self) -> dict[str, int]:
        """Host → pid of its init, as this machine numbers it."""
        rows = json.loads(orc("dev", "status", "--name", self.name, "--format", "json"))
        return {row["host"]: row["pid"] for row in rows}

    def hosts(self) -> dict[str, list[Process]]:
        """Host → its processes."""
        return {host: processes.descendants(pid) for host, pid in self.inits().items()}


def orc(*arguments: str, within: float = 120) -> str:
    """Run an `orc` command, return its stdout. Raises BenchError with what it said."""
    done = subprocess.run(
        [ORC, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise BenchError(f"orc {' '.join(arguments[:2])}: {said}")
    return done.stdout


@contextmanager
def dev_cluster(folder: Path, managers: int = 1) -> Iterator[Cluster]:
    """A cluster of this process with the benchmark's image in it; contexts are kept in `folder`.
    There may be one of each number of managers at a time."""
    name = _name(run_number(), managers)
    os.environ.pop("ORC_CONTEXT", None)
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    archive = folder / "image.tar"
    image.write(archive)
    try:
        began = time.monotonic()
        sizes = ("--managers", str(managers), "--nodes", str(NODES))
        orc("dev", "up", "--name", name, *sizes, within=300)
        up = time.monotonic() - began
        orc("load", str(archive))
        yield Cluster(name, up)
    finally:
        orc("dev", "down", "--name", name)


def _name(run: int, managers: int) -> str:
    return f"{PREFIX}{run}" if managers == 1 else f"{PREFIX}{run}-{managers}"


def remove_leftovers(pid: int) -> None:
    """Take down the clusters of a run that was killed."""
    for managers in (1, MANAGERS):
        orc("dev", "down", "--name", _name(pid, managers))


@dataclass(frozen=True, slots=True)
class Timed:
    """What was reached, and the seconds it took since the call began."""

    seconds: float
    progress: Any
    """The ServiceProgress at that moment."""


def channel(cluster: str = "", endpoint: str = "") -> grpc.aio.Channel:
    """A connection to a manager of the cluster that was brought up last, or of the one named
    `cluster`: to its first one, or to that at `endpoint`. An async context manager."""
    context = load_context(cluster or None)
    return grpc.aio.secure_channel(
        endpoint or context.endpoints[0],
        grpc.ssl_channel_credentials(
            context.ca.encode(), context.key.encode(), context.certificate.encode()
        ),
        options=[
            ("grpc.ssl_target_name_override", MANAGER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
        ],
    )


class Control:
    """The cluster's API over one connection that stays."""

    def __init__(self, cluster: str = "") -> None:
        self._channel = channel(cluster)
        self._stub = control_pb2_grpc.ControlStub(self._channel)

    async def __aenter__(self) -> Self:
        await self._stub.GetCluster(control_pb2.GetClusterRequest(), timeout=_CALL)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    @asynccontextmanager
    async def service(
        self,
        name: str,
        replicas: int,
        within: float,
        node: str = "",
        network: str = "",
        *,
        small: bool = False,
    ) -> AsyncIterator[Timed]:
        """A service, timed from the call that creates it until all of its tasks are seen running;
        removed, and gone, when the block is left. All on one `node`, if one is named; on
        `network` instead of the default one. `small`: they reserve so little that many fit.

        Raises BenchError if it takes longer than `within` seconds.
        """
        spec = service_spec(name, replicas)
        if node:
            spec.constraints.append(f"node.hostname=={node}")
        if node or small:
            spec.task.reservation.shares = 2
            spec.task.reservation.memory = 8 << 20
        if network:
            spec.task.networks.add(network=network)
        began = time.monotonic()
        await self._stub.CreateService(control_pb2.CreateServiceRequest(spec=spec), timeout=_CALL)
        try:
            yield await self.running(name, replicas, began, within)
        finally:
            await self.remove(name)

    async def running(self, name: str, replicas: int, began: float, within: float) -> Timed:
        """Wait until so many tasks run; `began` is when the clock started."""
        running = 0
        try:
            async with asyncio.timeout(within):
                async for progress in self._watch(name):
                    running = sum(
                        task.status.state == types_pb2.TASK_RUNNING for task in progress.tasks
                    )
                    if running == replicas:
                        return Timed(time.monotonic() - began, progress)
        except TimeoutError:
            pass
        raise BenchError(f"only {running} of {replicas} containers ran within {within:.0f} s")

    async def remove(self, name: str) -> None:
        """Remove a service, and wait until nothing is left of it."""
        asked = False
        async with asyncio.timeout(_GONE):
            async for progress in self._watch(name):
                if progress.removed:
                    return
                if not asked:
                    request = control_pb2.RemoveServiceRequest(service=name)
                    await self._stub.RemoveService(request, timeout=_CALL)
                    asked = True

    async def _watch(self, name: str) -> AsyncIterator[Any]:
        request = control_pb2.WatchServiceRequest(service=name, monitor=0.0)
        call = self._stub.WatchService(request)
        try:
            async for progress in call:
                yield progress
        finally:
            call.cancel()


def service_spec(name: str, replicas: int) -> types_pb2.ServiceSpec:
    """A service of containers that sleep, and that end at once when told to."""
    return types_pb2.ServiceSpec(
        name=name,
        mode=types_pb2.MODE_REPLICATED,
        replicas=replicas,
        task=types_pb2.TaskSpec(
            container=types_pb2.ContainerSpec(
                image=image.NAME,
                # The first process of a namespace ignores a SIGTERM that it has no handler for.
                stop_signal="SIGKILL",
                stop_grace=10.0,
            ),
            reservation=types_pb2.Resources(shares=16, memory=16 << 20),
            restart=types_pb2.RestartPolicy(delay=5.0),
        ),
        update=types_pb2.UpdatePolicy(parallelism=1),
    )
