# SPDX-License-Identifier: Apache-2.0
"""What does not wear out: a thousand execs, the figures of a hundred containers, and two hundred
containers on one node that come and go ten times."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.pb import containers_pb2, containers_pb2_grpc, interact_pb2, interact_pb2_grpc
from tests.bench import cluster, processes
from tests.bench.cluster import BenchError, Cluster
from tests.bench.processes import Process
from tests.bench.tables import Table, at_most, mebibytes

NODE = "node1"
EXECS, AT_ONCE = 1000, 8
FIGURES, FIGURES_FOR = 100, 10.0
CROWD, ROUNDS = 200, 10
STATS_TARGET = 0.02
"""Of a core."""
_CALL = 120.0
_SETTLE = 60.0
"""Seconds in which what has ended must be given back."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a node's agent and host hold at one moment."""

    memory: int
    """Bytes of the agent and its helpers (PSS)."""
    descriptors: int
    """Of the same processes."""
    mounts: int
    cgroups: int
    processes: int
    """Of the host, containers included."""


@dataclass(frozen=True, slots=True)
class Endurance:
    """What was seen."""

    execs: tuple[Held, Held]
    """Before and after."""
    execs_seconds: float
    figures_cpu: float
    """Share of a core that the figures of FIGURES containers took of their node's agent."""
    rounds: tuple[Held, ...]
    """After each round, the first of which is to fill caches."""
    rounds_seconds: tuple[float, ...]


async def measure(up: Cluster) -> Endurance:
    """Raises BenchError when something does not run."""
    async with cluster.channel() as channel:
        bench = _Bench(up, channel)
        async with bench.containers(1, "box") as (box,):
            await bench.execs(box, AT_ONCE)  # once, to fill caches
            before = bench.held()
            began = time.monotonic()
            await bench.execs(box, EXECS)
            took = time.monotonic() - began
            execs = before, await bench.settled(before)
        async with bench.containers(FIGURES, "figures"):
            share = await bench.figures()
        rounds, seconds = [], []
        empty = bench.held()
        for number in range(ROUNDS):
            began = time.monotonic()
            async with bench.containers(CROWD, f"crowd{number}"):
                pass
            seconds.append(time.monotonic() - began)
            rounds.append(await bench.settled(empty))
    return Endurance(execs, took, share, tuple(rounds), tuple(seconds))


class _Bench:
    def __init__(self, up: Cluster, channel: Any) -> None:
        self._up = up
        self._containers = containers_pb2_grpc.ContainersStub(channel)
        self._interact = interact_pb2_grpc.InteractStub(channel)

    @asynccontextmanager
    async def containers(self, count: int, name: str) -> AsyncIterator[list[str]]:
        """So many containers that run on the node: their ids. Gone with the block."""
        ids: list[str] = []

        async def run(number: int) -> None:
            spec = cluster.service_spec(name, 1).task
            spec.reservation.shares = 4  # so that all of them fit on a node of two cores
            request = containers_pb2.CreateContainerRequest(
                name=f"{name}-{number}", spec=spec, node=NODE, start=True
            )
            task = await self._containers.CreateContainer(request, timeout=_CALL)
            ids.append(task.id)
            await self._until(task.id, lambda row: row.task.status.started_at > 0)

        async def remove(task_id: str) -> None:
            request = containers_pb2.RemoveContainerRequest(container=task_id, force=True)
            gone = asyncio.create_task(self._until(task_id, lambda row: row.removed))
            await self._containers.RemoveContainer(request, timeout=_CALL)
            await gone

        try:
            await _each(range(count), run, 32)
            yield ids
        finally:
            await _each(list(ids), remove, 32)

    async def execs(self, container: str, count: int) -> None:
        """Run `true` in a container so often."""

        async def one(_: int) -> None:
            request = interact_pb2.ExecRequest(
                container=container, command=("/bin/busybox", "true")
            )
            first = interact_pb2.SessionInput(exec=request)
            async for message in self._interact.Session(iter((first,)), timeout=_CALL):
                if message.HasField("exited") and message.exited.code:
                    raise BenchError(f"exec: {message.exited.error or message.exited.code}")

        await _each(range(count), one, AT_ONCE)

    async def figures(self) -> float:
        """The CPU that the node's agent takes while its figures are asked for, less what it takes
        anyway, as a share of a core."""
        idle = await self._agent_cpu(FIGURES_FOR)
        call = self._interact.Stats(interact_pb2.StatsRequest())
        try:
            async for picture in call:
                if len(picture.containers) >= FIGURES:
                    break
            reading = asyncio.create_task(_read_all(call))
            busy = await self._agent_cpu(FIGURES_FOR)
            reading.cancel()
        finally:
            call.cancel()
        return max(0.0, busy - idle) / FIGURES_FOR

    async def _agent_cpu(self, within: float) -> float:
        agent = _agent(self._up.hosts()[NODE])
        before = processes.cpu_seconds(agent)
        await asyncio.sleep(within)
        return processes.cpu_seconds(agent) - before

    async def settled(self, wanted: Held) -> Held:
        """What is held once what has ended is given back, or does not seem to come back."""
        deadline = time.monotonic() + _SETTLE
        while True:
            held = self.held()
            pairs = (
                (held.mounts, wanted.mounts),
                (held.cgroups, wanted.cgroups),
                (held.processes, wanted.processes),
            )
            if all(now <= then for now, then in pairs) or time.monotonic() > deadline:
                return held
            await asyncio.sleep(0.5)

    def held(self) -> Held:
        everything = self._up.hosts()[NODE]
        agent = _agent(everything)
        # Containers' mounts are in the agent's own mount namespace.
        mounts = Path(f"/proc/{agent[0].pid}/mountinfo").read_text().count("\n")
        return Held(
            memory=processes.memory(agent).pss,
            descriptors=sum(len(list(Path(f"/proc/{p.pid}/fd").iterdir())) for p in agent),
            mounts=mounts,
            cgroups=_folders(Path("/sys/fs/cgroup"), f"orc-{self._up.name}-{NODE}"),
            processes=len(everything),
        )

    async def _until(self, container: str, true: Callable[[Any], bool]) -> None:
        call = self._containers.WatchContainer(
            containers_pb2.ContainerRequest(container=container), timeout=_CALL
        )
        try:
            async for row in call:
                if true(row):
                    return
        finally:
            call.cancel()
        raise BenchError(f"container {container} went away")


async def _read_all(call: Any) -> None:
    async for _ in call:
        pass


async def _each(items: Iterable[Any], act: Callable[[Any], Awaitable[None]], at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)

    async def one(item: Any) -> None:
        async with gate:
            await act(item)

    async with asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(one(item))


def _agent(everything: Iterable[Process]) -> list[Process]:
    """The agent, first, and its helpers."""
    found = [p for p in everything if "agent" in p.argv[:3] or "orchestrator" in " ".join(p.argv)]
    return sorted(found, key=lambda p: "agent" not in p.argv[:3])


def _folders(root: Path, name: str) -> int:
    """How many cgroups there are below those of this name, in all hierarchies."""
    found = subprocess.run(
        ["find", *(str(path) for path in root.glob(f"*/{name}")), "-type", "d"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.count("\n")


def report(result: Endurance) -> Table:
    """Pure."""
    before, after = result.execs
    first, last = result.rounds[0], result.rounds[-1]
    rows = [
        (f"{EXECS:,} execs, {AT_ONCE} at a time", f"{EXECS / result.execs_seconds:.0f} a second",
         _drift(before, after), ""),
        (f"figures of {FIGURES} containers, each second", f"{result.figures_cpu:.1%} of a core",
         "", at_most(result.figures_cpu, STATS_TARGET, "2%")),
        (f"{CROWD} containers run and removed", f"{CROWD / result.rounds_seconds[-1]:.0f} a second",
         "", ""),
        (f"the same {ROUNDS} times: from the first to the last", "", _drift(first, last), ""),
    ]  # fmt: skip
    return Table(
        "Endurance",
        ("what", "rate", "drift", "target"),
        tuple(rows),
        (
            "All on one node. Drift: memory (proportional) and descriptors of the agent and its "
            "helpers, then mounts, cgroups and processes of the host.",
        ),
    )


def _drift(before: Held, after: Held) -> str:
    memory = after.memory - before.memory
    counts = (
        after.descriptors - before.descriptors,
        after.mounts - before.mounts,
        after.cgroups - before.cgroups,
        after.processes - before.processes,
    )
    sign = "-" if memory < 0 else "+"
    return ", ".join([f"{sign}{mebibytes(abs(memory))}", *(f"{count:+d}" for count in counts)])
