# SPDX-License-Identifier: Apache-2.0
"""A container's whole life, once for each step of it at which the agent may die of kill -9.

A way is a standalone container's, that of one that is restarted, or that of a service's task. First
it is gone with no death, which tells all steps there are. Then for each step the way is gone again;
the agent dies just before it, the next agent gets the same order, and the container must end in a
state that the order wants. In the end nothing may be left of it: files, mounts, processes, cgroups,
user ids, namespaces, addresses.

Arguments: a folder, the name of the way, and which of how many parts of the steps to try, such as 0
and 3. It prints all steps as JSON; a failed assertion names the step.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from nodeworld import CGROUP, NETWORK, World, run

from orchestrator.agent.runtime.resources.cgroups import Cgroups, detect
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.specs import ContainerSpec, RestartCondition, RestartPolicy, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import dispatch_pb2

S = TaskState
PROGRAM = Path(__file__).with_name("mortalagent.py")
LIMIT = 60.0
"""Seconds for one order, or for all to be gone."""

Order = tuple[Task | None, tuple[TaskState, ...]]
"""A task's order, None when it is assigned no more, and the states in which it may end."""


def container(task_id: str) -> list[Order]:
    """Created, started, stopped, started again, removed while it runs."""
    spec = TaskSpec(
        # SIGKILL, since a `sleep` that is process 1 does not heed SIGTERM.
        container=ContainerSpec(image="box:1", command=("sleep", "1000"), stop_signal="SIGKILL"),
        restart=RestartPolicy(RestartCondition.NONE),
    )
    first = Task(id=task_id, container_name=task_id, spec=spec, node_id="node1", run=1)
    first = replace(first, status=TaskStatus(S.ASSIGNED, run=1))
    second = replace(first, run=2, status=TaskStatus(S.ASSIGNED, run=2))
    return [
        (replace(first, desired_state=S.READY), (S.READY,)),
        (replace(first, desired_state=S.RUNNING), (S.RUNNING,)),
        (replace(first, desired_state=S.SHUTDOWN), (S.SHUTDOWN,)),
        (replace(second, desired_state=S.RUNNING), (S.RUNNING,)),
        (replace(second, desired_state=S.REMOVE), (S.SHUTDOWN,)),
        (None, ()),
    ]


def restarted(task_id: str) -> list[Order]:
    """Run, restarted in one order, stopped, removed."""
    (_, (made, _), (_, _), (again, _), *_) = container(task_id)
    assert made is not None
    assert again is not None
    # The next run is wanted, and is given once the one before has ended.
    wanted = replace(made, run=2, status=TaskStatus(S.RUNNING, run=1), stop_signal="SIGKILL")
    ended = replace(again, status=TaskStatus(S.SHUTDOWN, run=2))
    return [
        (made, (S.RUNNING,)),
        (wanted, (S.SHUTDOWN,)),
        (again, (S.RUNNING,)),
        (replace(again, desired_state=S.SHUTDOWN), (S.SHUTDOWN,)),
        (replace(ended, desired_state=S.REMOVE), (S.SHUTDOWN,)),
        (None, ()),
    ]


def replica(task_id: str) -> list[Order]:
    """Run, stopped, forgotten. What may have been started is not started twice: it has failed, and
    a manager replaces it."""
    (_, (made, _), *_) = container(task_id)
    assert made is not None
    task = replace(made, service_id="web-id", service_name="web", slot=1, container_name="", run=0)
    task = replace(task, status=TaskStatus(S.ASSIGNED))
    return [
        (replace(task, desired_state=S.RUNNING), (S.RUNNING, S.FAILED)),
        (replace(task, desired_state=S.SHUTDOWN), (S.SHUTDOWN, S.FAILED)),
        (None, ()),
    ]


class MortalWorld(World):
    """A node whose agent dies at a given step."""

    _mother: asyncio.subprocess.Process | None = None
    _end: asyncio.Future[bytes]
    pid = 0
    """The agent's."""
    _deaths = itertools.count()
    own: frozenset[str] = frozenset()
    """The interfaces that this node has with no container, once that is known."""

    async def start_agent(self) -> None:
        if self._mother is None:
            self._mother = await asyncio.create_subprocess_exec(
                *(sys.executable, PROGRAM, self.root, *self.arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        assert self._mother.stdin is not None
        assert self._mother.stdout is not None
        if self.pid:
            assert int(await self._end) == -signal.SIGKILL, "the agent ended by itself"
            self.session.over.set()
        self._mother.stdin.write(b"\n")
        self.pid = int(await self._mother.stdout.readline())
        self._end = asyncio.ensure_future(self._mother.stdout.readline())
        self.session = await self.manager.session()
        await self.session.welcome(period=1.0)

    async def close(self) -> None:
        if self._mother is not None:
            if not self.dead:
                os.kill(self.pid, signal.SIGKILL)
                await self._end
            self._mother.kill()
            await self._mother.wait()

    @property
    def dead(self) -> bool:
        """Whether the agent has ended."""
        return self._end.done()

    def dies_before(self, step: str) -> None:
        """An agent that gets its first order from now on dies before this step; empty: never."""
        (self.root / "death").write_text(f"{step}\n{next(self._deaths)}")
        (self.root / "steps").write_text("")

    def steps(self) -> list[str]:
        """What the agents have done since, each once."""
        return list(dict.fromkeys((self.root / "steps").read_text().splitlines()))

    def order(self, task: Task) -> dispatch_pb2.AssignedTask:
        """A task as a manager assigns it."""
        return dispatch_pb2.AssignedTask(task=to_proto(replace(task, image_digest=self.digest)))

    def reported(self, task_id: str) -> TaskStatus:
        """The newest status of a task from the current agent."""
        for report in reversed(self.session.statuses):
            if task_id in report.statuses:
                status: TaskStatus = from_proto(report.statuses[task_id])
                return status
        return TaskStatus()

    def left(self, task_id: str) -> list[str]:
        """What there is of a task on this node."""
        root = self.root
        try:
            mounts = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        except OSError:
            return ["who knows: the agent has just died"]
        ids = [name for name in map(_target, (root / "a" / "ids").iterdir()) if name]
        folders = ("a/containers", "a/logs", "run/containers", "run/crun", "run/netns")
        with closing(sqlite3.connect(root / "a" / "network" / "ipam.db")) as db:
            rows = db.execute("SELECT container FROM lease UNION SELECT container FROM port")
            leases = [name for (name,) in rows]
        lines = [
            *(str(path) for folder in folders for path in (root / folder).glob("*")),
            *(f"user ids of {name}" for name in ids),
            *(f"address of {name}" for name in leases),
            *(f"cgroup {name}" for name in Cgroups(detect(), CGROUP).ids()),
            *mounts,
            *(line for line in map(cmdline, processes()) if str(root) in line),
        ]
        extra = interfaces() - self.own if self.own else ()
        return [*(line for line in lines if task_id in line), *extra]


def _target(link: Path) -> str:
    """Where a symbolic link leads; empty once it is removed."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def cmdline(pid: int | str) -> str:
    """The command of a process; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processes() -> list[str]:
    """Every process of this host, by id."""
    return [pid for pid in os.listdir("/proc") if pid.isdecimal()]


def interfaces() -> frozenset[str]:
    """The network interfaces of this host."""
    return frozenset(name for _, name in socket.if_nameindex())


async def go(world: MortalWorld, way: list[Order], step: str) -> None:
    """Go a way, with a death before `step`; in the end nothing may be left."""
    (first, _), *_ = way
    assert first is not None
    world.dies_before(step)
    pids: set[int] = set()
    for order, ends in way:
        tasks = [] if order is None else [world.order(order)]
        await world.diff(*tasks, removed=() if tasks else (first.id,))
        try:
            async with asyncio.timeout(LIMIT):
                while world.dead or not at_end(world, first.id, order, ends):
                    if world.dead:
                        world.dies_before("")
                        await world.start_agent()
                        await world.session.full(*tasks, networks=[NETWORK])
                        world.version = 1
                    await asyncio.sleep(0.002)
        except TimeoutError:
            status, left = world.reported(first.id), world.left(first.id)
            raise AssertionError(
                f"death before {step!r}: {ends} not reached: {status}, {left}"
            ) from None
        status = world.reported(first.id)
        if status.state is S.RUNNING:
            pids.add(status.pid)
            assert cmdline(status.pid).endswith("sleep 1000"), (step, cmdline(status.pid))
    assert not [pid for pid in pids if cmdline(pid)], step


def at_end(
    world: MortalWorld, task_id: str, order: Task | None, ends: tuple[TaskState, ...]
) -> bool:
    """Whether what was reported is an end of the order."""
    if order is None:
        return not world.left(task_id)
    status = world.reported(task_id)
    return status.run == order.status.run and status.state in ends


WAYS = {make.__name__: make for make in (container, restarted, replica)}


async def scenario(world: MortalWorld, way: str, part: int, parts: int) -> None:
    await world.start_agent()
    await world.session.full(networks=[NETWORK])
    await world.load_image()
    numbers = itertools.count()
    # It makes the node's own interfaces, and unpacks the image.
    await go(world, replica(f"walk-{next(numbers):03}"), "")
    world.own = interfaces()
    steps: list[str] = []
    for make in dict.fromkeys((container, WAYS[way])):
        # What is done to files is the same for all, and is a step of the first.
        done = steps
        await go(world, make(f"walk-{next(numbers):03}"), "")
        steps = [step for step in world.steps() if step not in done or step[-1].isdigit()]
    if way == "restarted":
        # The kernel's part of it is as before; what differs is what the agent remembers.
        steps = [step for step in steps if step.startswith("put_")]
    for step in steps[part::parts]:
        await go(world, WAYS[way](f"walk-{next(numbers):03}"), step)
    print(json.dumps(steps))


if __name__ == "__main__":
    world = MortalWorld(Path(sys.argv[1]))
    run(world, partial(scenario, world, sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
