# ruff: noqa: ASYNC240 - nothing else runs meanwhile
"""A whole agent process on a real kernel, against a scripted manager (see `nodeworld`).

It prints what it measured as JSON; a failed assertion is its exit status.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from nodeworld import ADDRESS, NETWORK, World, run, turn

from orchestrator.model.specs import Resources
from orchestrator.model.states import TaskState


async def scenario(world: World) -> None:
    await world.start_agent()
    assert world.process is not None
    hello = world.session.hello.description
    assert hello.address == ADDRESS
    assert hello.labels["zone"] == "a"
    assert hello.runtime.startswith("crun ")
    assert hello.cgroup in ("v1", "v2", "hybrid")
    assert hello.resources.memory > 0
    assert hello.resources.shares == 1024 * len(os.sched_getaffinity(0))
    await world.session.full(networks=[NETWORK])
    await world.load_image()
    await turn(lambda: any(report.images for report in world.session.images))

    # One container after another, then many at once.
    latencies = []
    for number in range(10):
        began = time.monotonic()
        await world.diff(world.assigned(f"one{number}", "sleep", "1000"))
        await world.reaches(f"one{number}", TaskState.RUNNING)
        latencies.append(time.monotonic() - began)
    world.figures["start_median_ms"] = 1000 * statistics.median(latencies)
    began = time.monotonic()
    await world.diff(*(world.assigned(f"m{n}", "sleep", "1000") for n in range(40)))
    for number in range(40):
        await world.reaches(f"m{number}", TaskState.RUNNING)
    world.figures["starts_per_s"] = 40 / (time.monotonic() - began)
    addresses = {
        address
        for report in world.session.statuses
        for status in report.statuses.values()
        for address in status.addresses.values()
    }
    assert len(addresses) == 50
    began = time.monotonic()
    await world.diff(removed=tuple(f"m{n}" for n in range(40)))
    state = world.root / "a" / "containers"
    await turn(lambda: not list(state.glob("m*")))
    world.figures["removals_per_s"] = 40 / (time.monotonic() - began)

    # Ends of all kinds, each with its reason; logs stay.
    await world.diff(
        world.assigned("fails", "sh", "-c", "echo out; echo err >&2; exit 3"),
        world.assigned("done", "true"),
        world.assigned("nothing", "no-such-applet"),
        world.assigned(
            "greedy", "sh", "-c", "a=x; while :; do a=$a$a; done", limit=Resources(memory=16 << 20)
        ),
    )
    await world.reaches("fails", TaskState.FAILED)
    assert world.status("fails").message == "exit status 3"
    await world.reaches("done", TaskState.COMPLETE)
    await world.reaches("nothing", TaskState.FAILED)
    await world.reaches("greedy", TaskState.FAILED)
    assert world.status("greedy").message == "out of memory (limit 16MiB)"
    assert world.status("greedy").oom_killed
    assert sorted(await world.logs("fails")) == [b"err", b"out"]
    os.kill(world.status("one0").pid, signal.SIGKILL)
    began = time.monotonic()
    await world.reaches("one0", TaskState.FAILED)
    world.figures["death_seen_ms"] = 1000 * (time.monotonic() - began)
    assert world.status("one0").message == "killed by signal 9 (SIGKILL)"

    # kill -9 of the agent: what runs goes on, what ended meanwhile is told.
    kept, ended = world.status("one1").pid, world.status("one2").pid
    await world.end_agent(signal.SIGKILL)
    os.kill(ended, signal.SIGKILL)
    os.kill(kept, 0)
    await world.start_agent()
    tasks = [world.assigned(f"one{n}", "sleep", "1000") for n in range(1, 10)]
    world.version = 1
    await world.session.full(*tasks, networks=[NETWORK])
    await world.reaches("one2", TaskState.FAILED)
    assert world.status("one2").message == "killed by signal 9 (SIGKILL)"
    await world.reaches("one1", TaskState.RUNNING)
    assert world.status("one1").pid == kept
    # SIGTERM: the same, and quickly.
    await world.end_agent(signal.SIGTERM)
    assert world.process.returncode == 0
    assert world.figures["end_by_15_s"] < 1.0
    os.kill(kept, 0)

    await world.start_agent()
    await world.session.full(*tasks, networks=[NETWORK])
    assert world.process is not None
    stat = Path(f"/proc/{world.process.pid}/stat")
    ticks = sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13]))
    await asyncio.sleep(3)
    used = sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])) - ticks
    world.figures["idle_cpu_percent"] = 100 * used / os.sysconf("SC_CLK_TCK") / 3
    family = [world.process.pid, *_children(world.process.pid)]
    for pid, name in zip(family, ("agent", "helper"), strict=False):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Rss", "Pss:")):
                key = f"{name}_{line.split(':')[0].lower()}_mib"
                world.figures[key] = int(line.split()[1]) / 1024

    # An order to stop; then everything goes.
    world.version = 1
    await world.diff(world.assigned("one1", "sleep", "1000", state=TaskState.SHUTDOWN))
    await world.reaches("one1", TaskState.SHUTDOWN)
    await world.diff(removed=tuple(f"one{n}" for n in range(1, 10)))
    await turn(lambda: not list(state.iterdir()))
    await turn(lambda: not list((world.root / "run" / "netns").iterdir()))
    await turn(lambda: not list((world.root / "a" / "logs").iterdir()))
    await world.end_agent(signal.SIGTERM)
    print(json.dumps({key: round(value, 3) for key, value in world.figures.items()}))


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


if __name__ == "__main__":
    world = World(Path(sys.argv[1]))
    run(world, partial(scenario, world))
