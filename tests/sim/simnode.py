# SPDX-License-Identifier: Apache-2.0
"""A node of the simulated cluster: its agent by script, its containers, and the wire to the leader.

On the wire a report may be lost, late, doubled or overtaken by the next one; orders come late, but
in their order, since they are a session's. What was reported is said again until the leader has
acknowledged it, which may be lost as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Health, Task, TaskStatus

STOPPING = 1.0
"""Seconds that a container takes to stop."""
LATE = 1.0
"""Most seconds that a message takes."""

_STEPS = (
    TaskState.ASSIGNED,
    TaskState.ACCEPTED,
    TaskState.PREPARING,
    TaskState.READY,
    TaskState.STARTING,
    TaskState.RUNNING,
)

Statuses = Mapping[str, TaskStatus]
Orders = Mapping[str, Task]


class World(Protocol):
    """What a node sees of the simulation."""

    random: Random
    now: float
    faults: bool


@dataclass
class Container:
    """One task as its node knows it."""

    task: Task
    state: TaskState
    next_at: float
    started_at: float = 0.0
    stop_at: float | None = None
    health: Health = Health.NONE
    lost: bool = False
    said_at: float = 0.0
    """The time of what was last said of it, which grows though the clock may go back."""


@dataclass
class Agent:
    """A node's agent and its containers; `skew` is how wrong its clock is."""

    node_id: str
    skew: float
    connected: bool = True
    greeted: bool = False
    containers: dict[str, Container] = field(default_factory=dict)
    unreported: dict[str, TaskStatus] = field(default_factory=dict)
    """What the leader has not acknowledged."""
    orders: Orders = field(default_factory=dict)
    coming: list[tuple[float, Orders]] = field(default_factory=list)
    """Orders on their way, and when each arrives."""
    frozen_until: float = 0.0
    """Nothing of the host moves until then."""
    dead_until: float = 0.0
    """The agent's process is away; containers run on."""

    def leave(self) -> None:
        """Its session ends."""
        self.greeted = False
        self.coming.clear()


class Wire:
    """Reports on their way to the leader."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reports: list[tuple[float, int, str, Statuses]] = []
        self._sent = 0

    def report(self, agent: Agent) -> None:
        """An agent says what has not been acknowledged."""
        world = self._world
        if not agent.unreported or (world.faults and world.random.random() < 0.15):
            return
        for _ in range(2 if world.faults and world.random.random() < 0.1 else 1):
            self._sent += 1
            message = (world.now + self._delay(), self._sent, agent.node_id, dict(agent.unreported))
            self._reports.append(message)

    def arrived(self) -> list[tuple[str, Statuses]]:
        """Node id and statuses of the reports that the leader gets now."""
        now = self._world.now
        due = sorted(each for each in self._reports if each[0] <= now) if self._reports else []
        if due:
            self._reports = [each for each in self._reports if each[0] > now]
        return [(node_id, statuses) for _, _, node_id, statuses in due]

    def acknowledge(self, agent: Agent, statuses: Statuses) -> None:
        """The leader has written a report down."""
        if self._world.faults and self._world.random.random() < 0.1:
            return
        for id, status in statuses.items():
            if agent.unreported.get(id) is status:
                del agent.unreported[id]

    def order(self, agent: Agent, orders: Orders) -> None:
        """The leader sends a node what it must have now, unless it was sent that."""
        newest = agent.coming[-1][1] if agent.coming else agent.orders
        if orders != newest:
            at = self._world.now + self._delay()
            agent.coming.append((max([at, *(each[0] for each in agent.coming)]), orders))

    def _delay(self) -> float:
        world = self._world
        if not world.faults or world.random.random() < 0.6:
            return 0.0
        return world.random.uniform(0.0, LATE)


def obey(world: World, agent: Agent) -> None:
    """Do what the newest orders say that have arrived."""
    while agent.coming and agent.coming[0][0] <= world.now:
        agent.orders = agent.coming.pop(0)[1]
    orders = agent.orders
    for id, container in agent.containers.items():
        ordered = orders.get(id)
        if container.stop_at is None and (
            ordered is None or ordered.desired_state > TaskState.RUNNING
        ):
            container.stop_at = world.now + STOPPING
    for id, task in orders.items():
        if id not in agent.containers and not is_terminal(task.status.state):
            container = Container(task, TaskState.ASSIGNED, world.now)
            if task.desired_state > TaskState.RUNNING:
                container.stop_at = world.now
            agent.containers[id] = container
    agent.containers = {
        id: item
        for id, item in agent.containers.items()
        if id in orders or not is_terminal(item.state)
    }


def advance(world: World, agent: Agent) -> None:
    """Its containers live on for a moment."""
    alive = agent.dead_until <= world.now
    for container in list(agent.containers.values()):
        before = (container.state, container.health)
        _advance(world, container, alive)
        if (container.state, container.health) != before:
            if container.state is TaskState.RUNNING and not container.started_at:
                container.started_at = world.now + agent.skew
            if alive:
                report(world, agent, container)


def reboot(world: World, agent: Agent) -> None:
    """The host goes down and comes up: what ran has ended, and nobody saw how."""
    for container in agent.containers.values():
        if not is_terminal(container.state):
            stopped = container.stop_at is not None
            container.state = TaskState.SHUTDOWN if stopped else TaskState.FAILED
            container.lost = not stopped
            report(world, agent, container)
    agent.connected = False
    agent.leave()


def report(world: World, agent: Agent, container: Container) -> None:
    """Note down what is to be said of a container."""
    at = max(world.now + agent.skew, math.nextafter(container.said_at, math.inf))
    container.said_at = at
    state = container.state
    agent.unreported[container.task.id] = TaskStatus(
        state,
        at=at,
        message="by chance" if state in (TaskState.FAILED, TaskState.REJECTED) else "",
        started_at=container.started_at,
        finished_at=at if is_terminal(state) else 0.0,
        health=container.health,
        lost=container.lost,
    )


def _advance(world: World, container: Container, alive: bool) -> None:
    if is_terminal(container.state):
        return
    chance, now = world.random.random, world.now
    if container.state is TaskState.RUNNING and container.stop_at is None:
        _live(world, container)
    elif not alive:
        return
    elif container.stop_at is not None:
        if container.stop_at <= now:
            container.state = TaskState.SHUTDOWN
    elif world.faults and chance() < 0.02:
        failed = container.state >= TaskState.READY
        container.state = TaskState.FAILED if failed else TaskState.REJECTED
    elif container.next_at <= now:
        container.state = _STEPS[_STEPS.index(container.state) + 1]
        container.next_at = now + world.random.choice((0.0, 0.25))
        if container.state is TaskState.RUNNING:
            _start(world, container)


def _start(world: World, container: Container) -> None:
    if container.task.job_run:
        container.next_at = world.now + world.random.choice((0.0, 0.25, 1.0, 4.0))
    elif container.task.spec.container.health.test:
        container.health = Health.STARTING
        container.next_at = world.now + 0.5


def _live(world: World, container: Container) -> None:
    """What runs ends by itself, or is found healthy, or not."""
    chance = world.random.random() if world.faults else 1.0
    if container.task.job_run:
        if container.next_at <= world.now:
            container.state = TaskState.FAILED if chance < 0.2 else TaskState.COMPLETE
        elif chance < 0.02:
            container.state = TaskState.FAILED
    elif chance < 0.01:
        container.state = TaskState.FAILED
    elif chance < 0.02:
        container.state = TaskState.COMPLETE
    elif container.health is not Health.NONE and chance < 0.025:
        container.state, container.health = TaskState.FAILED, Health.UNHEALTHY
    elif container.health is Health.STARTING and container.next_at <= world.now:
        container.health = Health.HEALTHY
