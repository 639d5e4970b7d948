# SPDX-License-Identifier: Apache-2.0
"""A whole agent process on a real kernel, against a scripted manager (see `nodeworld`).

It prints what it measured as JSON; a failed assertion is its exit status.
"""

from __future__ import annotations

import json
import os
import signal
import sys
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
    for number in range(10):
        await world.diff(world.assigned(f"one{number}", "sleep", "1000"))
        await world.reaches(f"one{number}", TaskState.RUNNING)
    await world.diff(*(world.assigned(f"m{n}", "sleep", "1000") for n in range(40)))
    for number in range(40):
        await world.reaches(f"m{number}", TaskState.RUNNING)
    addresses = {
        address
        for report in world.session.statuses
        for status in report.statuses.values()
        for address in status.addresses.values()
    }
    assert len(addresses) == 50
    await world.diff(removed=tuple(f"m{n}" for n in range(40)))
    state = world.root / "a" / "containers"
    await turn(lambda: not list(state.glob("m*")))

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
    await world.reaches("one0", TaskState.FAILED)
    assert world.status("one0").message == "killed by signal 9 (SIGKILL)"

    # kill -9 of the agent: running containers continue, ends in between are reported.
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
    # SIGTERM: the same.
    await world.end_agent(signal.SIGTERM)
    assert world.process.returncode == 0
    os.kill(kept, 0)

    await world.start_agent()
    await world.session.full(*tasks, networks=[NETWORK])
    assert world.process is not None
    family = [world.process.pid, *_children(world.process.pid)]
    memory = {name: _resident(pid) for pid, name in zip(family, ("agent", "helper"), strict=False)}

    # An order to stop; then everything goes.
    world.version = 1
    await world.diff(world.assigned("one1", "sleep", "1000", state=TaskState.SHUTDOWN))
    await world.reaches("one1", TaskState.SHUTDOWN)
    await world.diff(removed=tuple(f"one{n}" for n in range(1, 10)))
    await turn(lambda: not list(state.iterdir()))
    await turn(lambda: not list((world.root / "run" / "netns").iterdir()))
    await turn(lambda: not list((world.root / "a" / "logs").iterdir()))
    await world.end_agent(signal.SIGTERM)
    print(json.dumps(memory))


def _resident(pid: int) -> float:
    """MiB of memory that a process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Rss:"))
    return int(line.split()[1]) / 1024


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


if __name__ == "__main__":
    world = World(Path(sys.argv[1]))
    run(world, partial(scenario, world))
