# SPDX-License-Identifier: Apache-2.0
"""Builders of clusters for tests, and a world in which plans are applied."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from orchestrator.manager.planning.pipeline import EVERYTHING, Dirty, Pass, dirty_of, plan
from orchestrator.manager.planning.plan import Change, Plan, earliest
from orchestrator.manager.planning.reports.claims import accept_reports
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Availability, Node, NodeDescription, NodeState
from orchestrator.model.objects import Object
from orchestrator.model.services import Service
from orchestrator.model.specs import (
    ContainerSpec,
    PortSpec,
    PublishMode,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

MIB = 1 << 20
GIB = 1 << 30
NOW = 1_000.0

ANY, ON_FAILURE, NONE = (
    RestartCondition.ANY,
    RestartCondition.ON_FAILURE,
    RestartCondition.NONE,
)


def node(
    id: str = "n1",
    *,
    shares: int = 4096,
    memory: int = 8 * GIB,
    state: NodeState = NodeState.READY,
    availability: Availability = Availability.ACTIVE,
    labels: dict[str, str] | None = None,
    **fields: Any,
) -> Node:
    return Node(
        id=id,
        state=state,
        availability=availability,
        labels=labels or {},
        description=NodeDescription(
            hostname=f"host-{id}", resources=Resources(shares, memory), os="linux", arch="x86_64"
        ),
        **fields,
    )


def task_spec(
    *,
    image: str = "web:1",
    shares: int = 0,
    memory: int = 0,
    ports: Iterable[int] = (),
    restart: RestartPolicy | None = None,
    **fields: Any,
) -> TaskSpec:
    return TaskSpec(
        container=ContainerSpec(image=image),
        reservation=Resources(shares, memory),
        ports=tuple(PortSpec(port, 80, mode=PublishMode.HOST) for port in ports),
        restart=restart or RestartPolicy(delay=5.0),
        **fields,
    )


def service(
    name: str = "web",
    replicas: int = 1,
    *,
    spec: TaskSpec | None = None,
    update: UpdatePolicy | None = None,
    constraints: Iterable[str] = (),
    mode: ServiceMode = ServiceMode.REPLICATED,
    **fields: Any,
) -> Service:
    return Service(
        id=f"{name}-id",
        spec=ServiceSpec(
            name=name,
            mode=mode,
            replicas=replicas,
            task=spec or task_spec(),
            update=update or UpdatePolicy(),
            constraints=tuple(constraints),
        ),
        **fields,
    )


def task(
    id: str,
    state: TaskState = TaskState.RUNNING,
    *,
    node_id: str = "",
    slot: int = 1,
    of: Service | None = None,
    spec: TaskSpec | None = None,
    message: str = "",
    **fields: Any,
) -> Task:
    of = of or service()
    return Task(
        id=id,
        service_id=of.id,
        service_name=of.spec.name,
        slot=slot,
        spec=spec or of.spec.task,
        node_id=node_id,
        status=TaskStatus(state, message=message),
        **fields,
    )


def _decided(plans: Iterable[Plan]) -> list[Change]:
    """What plans change, apart from the reason of a task that is pending before and after."""

    def waits(item: Object | None) -> bool:
        return isinstance(item, Task) and item.status.state is TaskState.PENDING

    changes = (change for each in plans for change in each.changes)
    return [each for each in changes if not (waits(each.before) and waits(each.after))]


class World:
    """A cluster whose plans are written as they are made; time stands until it is moved."""

    def __init__(self, *objects: Object) -> None:
        self.now = NOW
        self.view = ClusterView.of(objects)
        self.dirty: Dirty = EVERYTHING
        self.at_rest: frozenset[str] = frozenset()
        self._every_change: Dirty = EVERYTHING
        """As `dirty`, as if no service were at rest."""
        self.requeue_at: float | None = None
        self.limit = sys.maxsize
        """Of a pass."""
        self._ids = 0

    def new_id(self) -> str:
        self._ids += 1
        return f"t{self._ids:03}"

    def write(self, *changes: Change) -> None:
        self.view = self.view.evolve(changes)
        self.dirty |= dirty_of(changes, self.at_rest)
        self._every_change |= dirty_of(changes)

    def put(self, item: Object) -> None:
        """Create or change an object, as a user or an operator does."""
        self.write(Change(self._stored(item.id), item))

    def drop(self, item: Object) -> None:
        self.write(Change(item, None))

    def _stored(self, id: str) -> Object | None:
        view = self.view
        tables = (view.nodes, view.services, view.images, view.documents)
        return next((table[id] for table in tables if id in table), None)

    def plan(self) -> list[Plan]:
        """One pass over what is dirty, written; the earliest time asked for is kept."""
        dirty, self.dirty = self.dirty, Dirty()
        first = self._ids
        made = plan(self.view, dirty, self.now, self.new_id, limit=self.limit, at_rest=self.at_rest)
        last, self._ids = self._ids, first
        every, self._every_change = dirty | self._every_change, Dirty()
        whole = plan(self.view, every, self.now, self.new_id, limit=self.limit)
        if _decided(made.plans) != _decided(whole.plans):
            self._check_next_passes(made)
        self._ids = last
        self._take(made)
        return made.plans

    def _take(self, made: Pass) -> None:
        """Write what a pass has made."""
        self.requeue_at = earliest(self.requeue_at, made.requeue_at)
        self.at_rest = made.now_at_rest(self.at_rest)
        for each in made.plans:
            self.write(*each.changes)
        self.dirty |= made.rest

    def _check_next_passes(self, made: Pass) -> None:
        """A pass that gives up a nominated node frees room that it does not offer to the pending
        tasks of services at rest: the next pass does, as dirty capacity demands. After that, there
        is nothing left to do for any service, at rest or not."""
        branch = copy.copy(self)
        branch._take(made)
        assert branch.dirty.capacity_freed, "a service at rest was not done"
        for _ in range(20):
            dirty, branch.dirty = branch.dirty, Dirty()
            rest = branch.at_rest
            made = plan(branch.view, dirty, self.now, self.new_id, limit=self.limit, at_rest=rest)
            branch._take(made)
            if not made.plans:
                break
        left = plan(branch.view, EVERYTHING, self.now, self.new_id, limit=self.limit)
        assert not _decided(left.plans), "a service at rest was not done in the next passes either"

    def settle(self) -> None:
        """Plan until nothing is left to do."""
        for _ in range(20):
            if not self.plan():
                return
        raise AssertionError("planning never comes to rest")

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and plan if that was asked for."""
        self.now += seconds
        if self.requeue_at is not None and self.requeue_at <= self.now:
            self.dirty |= Dirty(timer=True)
            self.requeue_at = None
        self.settle()

    def report(self, item: Task, state: TaskState, **fields: Any) -> None:
        """Its agent reports a state of the task."""
        status = TaskStatus(state, at=self.now, run=item.status.run, **fields)
        if state is TaskState.RUNNING:
            status = replace(status, started_at=self.now)
        elif item.status.started_at:
            status = replace(status, started_at=item.status.started_at, finished_at=self.now)
        changes = accept_reports(self.view, item.node_id, {item.id: status}, self.now)
        assert changes, f"the report of {state.name} was not taken"
        self.write(*changes)

    def obey(self) -> None:
        """All agents carry out their orders at once; planning continues until nothing changes."""
        for _ in range(50):
            self.settle()
            busy = False
            for item in list(self.view.tasks.values()):
                if not TaskState.ASSIGNED <= item.status.state <= TaskState.RUNNING:
                    continue
                if item.desired_state > TaskState.RUNNING:
                    self.report(item, TaskState.SHUTDOWN)
                    busy = True
                elif item.status.state < TaskState.RUNNING:
                    self.report(item, TaskState.RUNNING)
                    busy = True
            if not busy:
                return
        raise AssertionError("agents and planner never come to rest")

    def stay_up(self, seconds: float = 5.0) -> None:
        """All agents do as they are told, and what runs stays up for so long."""
        self.obey()
        self.pass_time(seconds)
        self.obey()

    def tasks(self, state: TaskState | None = None) -> list[Task]:
        """Tasks (in this state), by slot and age."""
        found = (t for t in self.view.tasks.values() if state is None or t.status.state is state)
        return sorted(found, key=lambda t: (t.service_name, t.slot, t.created_at, t.id))

    def task(self, slot: int = 1) -> Task:
        """The newest task of a slot."""
        return [item for item in self.tasks() if item.slot == slot][-1]

    def slots_on(self) -> dict[str, list[int]]:
        """Node → slots of the tasks that live on it."""
        found: dict[str, list[int]] = {}
        for item in self.tasks():
            if TaskState.ASSIGNED <= item.status.state <= TaskState.RUNNING:
                found.setdefault(item.node_id, []).append(item.slot)
        return found
