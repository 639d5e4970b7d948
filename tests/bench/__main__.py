# SPDX-License-Identifier: Apache-2.0
"""The run: what is measured, in which order, and that nothing of it stays."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# First of all: it sets what gRPC's core reads when it is imported.
import orchestrator  # noqa: F401
from tests.bench import (
    backups,
    balance,
    byhand,
    cluster,
    cni,
    commands,
    docker,
    dockerapi,
    encoding,
    endurance,
    failover,
    latency,
    machine,
    managers,
    memory,
    names,
    page,
    planner,
    pull,
    rollout,
    scrape,
    sources,
    store,
    swarm,
    throughput,
)
from tests.bench.cluster import BenchError, Cluster
from tests.bench.docker import Docker
from tests.bench.processes import RUN, say
from tests.bench.tables import Table, render
from tests.bench.workplace import SIGNALS, run_enclosed, workplace

PARTS = (
    "rollout",
    "latency",
    "byhand",
    "docker-api",
    "memory",
    "throughput",
    "planner",
    "store",
    "backups",
    "cni",
    "encoding",
    "pull",
    "balance",
    "names",
    "page",
    "endurance",
    "commands",
    "scrape",
    "sources",
    "sources-start",
    "managers",
    "failover",
)
ON_CLUSTER = frozenset(
    {
        "endurance",
        "rollout",
        "latency",
        "byhand",
        "docker-api",
        "memory",
        "throughput",
        "commands",
        "scrape",
        "sources-start",
    }
)
BESIDE_DOCKER = frozenset({"rollout", "latency", "byhand", "docker-api"})


@dataclass(slots=True)
class Run:
    """One run: the parts that were asked for, and what they gave so far."""

    parts: frozenset[str]
    folder: Path
    docker_wanted: bool
    rounds: int
    """Of the losses of a leader."""
    tables: dict[str, Table] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def part(self, name: str, act: Callable[[], Table]) -> None:
        """Do one part, if it was asked for. One that fails does not keep the others from it."""
        if name not in self.parts:
            return
        say(f"{name} …")
        began = time.monotonic()
        try:
            self.tables[name] = act()
        except (BenchError, OSError, TimeoutError) as error:
            self.failures[name] = str(error) or type(error).__name__
            say(f"{name} failed: {self.failures[name]}")
        else:
            say(f"{name}: {time.monotonic() - began:.0f} s")

    def all(self) -> None:
        """Everything that was asked for. First what needs a quiet machine."""
        self.part("planner", lambda: planner.report(planner.measure()))
        self.part("store", lambda: store.report(asyncio.run(store.measure(self.folder))))
        self.part("backups", lambda: backups.report(backups.measure(self.folder)))
        self.part("cni", lambda: cni.report(asyncio.run(cni.measure(self.folder))))
        self.part("encoding", lambda: encoding.report(encoding.measure()))
        self.part("pull", lambda: pull.report(pull.measure(self.folder)))
        self.part("balance", lambda: balance.report(asyncio.run(balance.measure(self.folder))))
        self.part("names", lambda: names.report(asyncio.run(names.measure(self.folder))))
        self.part("sources", lambda: sources.report(asyncio.run(sources.measure(self.folder))))
        self.part("page", lambda: page.report(asyncio.run(page.measure(self.folder))))
        self._on_several()
        if not self.parts & ON_CLUSTER:
            return
        say("a dev cluster …")
        with cluster.dev_cluster(self.folder) as up:
            self._on(up)

    def _on_several(self) -> None:
        if not self.parts & {"failover", "managers"}:
            return
        say("a dev cluster of several managers …")
        with cluster.dev_cluster(self.folder, cluster.MANAGERS) as up:
            if "managers" in self.parts:
                self._beside_one(up)
            self.part("failover", lambda: self._failover(up))

    def _failover(self, up: Cluster) -> Table:
        result = asyncio.run(failover.measure(up, self.rounds))
        absent = docker.missing() if self.docker_wanted else "Docker was not measured, as was asked"
        beside: list[float] = []
        if not absent:
            say("a Docker Swarm of three managers …")
            try:
                archive = self.folder / "image.tar"
                beside = swarm.measure(self.folder, self.folder.name, archive)
            except BenchError as error:
                absent = f"Swarm was not measured: {error}"
        return failover.report(result, beside, absent)

    def _beside_one(self, several: Cluster) -> None:
        say("a dev cluster of one manager …")
        with cluster.dev_cluster(self.folder) as one:
            self.part(
                "managers",
                lambda: managers.report(asyncio.run(managers.measure(one, several))),
            )

    def _on(self, up: Cluster) -> None:
        idle = None
        if "memory" in self.parts:
            say(f"an idle cluster, for {memory.IDLE:.0f} s …")
            idle = memory.measure_idle(up)
        self.part("commands", lambda: commands.report(commands.measure(up)))
        with ExitStack() as stack:
            absent, beside = self._docker(stack)
            self.part(
                "rollout",
                lambda: rollout.report(asyncio.run(rollout.measure(up, beside)), absent),
            )
            self.part(
                "latency",
                lambda: latency.report(asyncio.run(latency.measure(up, beside)), absent),
            )
            self.part("byhand", lambda: byhand.report(byhand.measure(up, beside), absent))
            self.part("docker-api", lambda: self._docker_api(up, beside, absent))
        if idle is not None:
            idle_cluster = idle
            self.part(
                "memory",
                lambda: memory.report(idle_cluster, asyncio.run(memory.measure_containers(up))),
            )
        self.part("endurance", lambda: endurance.report(asyncio.run(endurance.measure(up))))
        self.part("scrape", lambda: scrape.report(asyncio.run(scrape.measure(up))))
        self.part(
            "sources-start",
            lambda: sources.report_start(asyncio.run(sources.measure_start(up))),
        )
        self.part("throughput", lambda: throughput.report(asyncio.run(throughput.measure(up))))

    def _docker_api(self, up: Cluster, beside: Docker | None, absent: str) -> Table:
        result = dockerapi.measure(up, beside)
        asyncio.run(dockerapi.measure_ps(up, result))
        return dockerapi.report(result, absent)

    def _docker(self, stack: ExitStack) -> tuple[str, Docker | None]:
        """Docker to measure beside, or the reason why there is none."""
        if not self.parts & BESIDE_DOCKER:
            return "", None
        if not self.docker_wanted:
            return "Docker was not measured, as was asked", None
        if reason := docker.missing():
            return reason, None
        say("a Docker daemon …")
        beside = docker.daemon(self.folder, self.folder.name, self.folder / "image.tar")
        try:
            return "", stack.enter_context(beside)
        except BenchError as error:
            return f"Docker was not measured: {error}", None


@contextmanager
def interruptible() -> Iterator[None]:
    """Any way of asking to end unwinds the run once; it is not interrupted again meanwhile."""

    def unwind(number: int, frame: object) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        say("interrupted: removing everything")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, unwind) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    """Exit status 0, 1 when a part could not be measured, 2 for wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure Orc on this machine.")
    parser.add_argument("--out", type=Path, help="write the tables to this file, too")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only this part")
    parser.add_argument("--no-docker", action="store_true", help="do not measure Docker beside")
    parser.add_argument(
        "--rounds", type=int, default=failover.ROUNDS, help="losses of the leader, of each kind"
    )
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        say("it needs root: run it with sudo")
        return 2
    if RUN not in os.environ:
        return run_enclosed(arguments)
    # Where it is set, an interpreter compiles anew what has changed, each time that it starts.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    before = machine.load()
    try:
        with interruptible(), workplace() as folder:
            run = Run(
                frozenset(options.only or PARTS), folder, not options.no_docker, options.rounds
            )
            run.all()
    except KeyboardInterrupt:
        return 130
    parts = [machine.report(machine.describe(), before, machine.load())]
    parts += [run.tables[name] for name in PARTS if name in run.tables]
    text = "\n".join(render(table) for table in parts)
    text += "".join(f"\n**{name} was not measured:** {why}\n" for name, why in run.failures.items())
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
