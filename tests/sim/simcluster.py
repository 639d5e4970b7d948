"""A cluster in virtual time: the real planner, scripted agents, and faults from one seed.

Nothing here waits or does input or output. Each tick is a fraction of a second of the cluster's
life: faults happen, agents obey and report, the leader plans and writes, and every invariant is
checked. A seed replays exactly.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from random import Random

from simchecks import check_nodes

from orchestrator.manager.planning.assignments import assigned_tasks
from orchestrator.manager.planning.dependencies import unmet
from orchestrator.manager.planning.history import rolled_back, with_spec
from orchestrator.manager.planning.liveness import expire, node_up
from orchestrator.manager.planning.pipeline import EVERYTHING, Dirty, dirty_of, plan
from orchestrator.manager.planning.plan import Change, earliest
from orchestrator.manager.planning.progress import progress
from orchestrator.manager.planning.scheduler import Placement, schedule
from orchestrator.manager.planning.statuses import ingest
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.affinities import Affinity
from orchestrator.model.dependencies import Dependency, DependencyCondition
from orchestrator.model.objects import (
    Availability,
    Cluster,
    Network,
    Node,
    NodeDescription,
    Service,
    Task,
    TaskStatus,
    UpdateState,
)
from orchestrator.model.placement import GenericResource
from orchestrator.model.specs import (
    ContainerSpec,
    FailureAction,
    PortSpec,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateOrder,
    UpdatePolicy,
)
from orchestrator.model.states import TaskState, is_terminal

TICK = 0.25
MIB = 1 << 20
STOPPING = 1.0
"""Seconds that a container takes to stop."""


@dataclass
class Container:
    """One task as its node knows it."""

    task: Task
    state: TaskState
    next_at: float
    started_at: float = 0.0
    stop_at: float | None = None


@dataclass
class Agent:
    """A node's agent and its containers; `skew` is how wrong its clock is."""

    node_id: str
    skew: float
    connected: bool = True
    greeted: bool = False
    containers: dict[str, Container] = field(default_factory=dict)
    unreported: dict[str, TaskStatus] = field(default_factory=dict)


_STEPS = (
    TaskState.ACCEPTED,
    TaskState.PREPARING,
    TaskState.READY,
    TaskState.STARTING,
    TaskState.RUNNING,
)


_SCARCE = ("/tcp in use", "anti-affinity", "insufficient gpu")
"""What a task may wait for that never comes, in words of its reason."""


class SimCluster:
    """The store, the leader and the agents of one simulated cluster."""

    def __init__(self, seed: int, nodes: int = 4) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.faults = True
        self.agents: dict[str, Agent] = {}
        self.last_heard: dict[str, float | None] = {}
        self.term_started = self.now
        self.dirty = EVERYTHING
        self.wake: float | None = None
        self.surplus: dict[str, float] = {}
        """Container that runs beside a newer one of its slot → since when."""
        self._ids = 0
        network = Network(id="net", name="default", subnet="10.128.0.0/20", node_prefix=24)
        self.view = ClusterView.of([Cluster(id="cluster", node_timeout=2.0), network])
        for _ in range(nodes):
            self.add_node()

    def new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids:06}"

    # What users and operators do

    def add_node(self) -> None:
        id = self.new_id()
        self.agents[id] = Agent(id, skew=self.random.uniform(-1, 1))
        self.write(Change(None, Node(id=id, created_at=self.now)))

    def create_service(self) -> None:
        pick = self.random.choice
        ports = (
            (PortSpec(8080 + self.random.randrange(2), 80),) if self.random.random() < 0.3 else ()
        )
        task = TaskSpec(
            container=ContainerSpec(image="web:1"),
            reservation=Resources(pick((64, 128)), pick((32, 64)) * MIB),
            ports=ports,
            restart=RestartPolicy(delay=pick((0.0, 0.5, 1.0))),
            generic_resources=pick(((), (), (), (GenericResource("gpu", 1),))),
        )
        mode = ServiceMode.GLOBAL if self.random.random() < 0.15 else ServiceMode.REPLICATED
        name = f"web{self.new_id()}"
        spec = ServiceSpec(
            name=name,
            mode=mode,
            replicas=self.random.randrange(0, 3 if ports else 9),
            task=task,
            update=UpdatePolicy(
                pick((0, 1, 2)),
                pick((0.0, 0.0, 1.0)),
                pick(tuple(UpdateOrder)),
                monitor=pick((1.0, 5.0)),
                failure_action=pick(tuple(FailureAction)),
                max_failure_ratio=pick((0.0, 0.5)),
                canary=pick((0, 0, 0, 1)),
            ),
            depends_on=self._dependencies(),
            affinities=pick(((), (), (), (Affinity(f"service=={name}", anti=True),))),
        )
        self.write(Change(None, Service(id=self.new_id(), created_at=self.now, spec=spec)))

    def _dependencies(self) -> tuple[Dependency, ...]:
        """On one of the services that are there, or on none."""
        names = sorted(each.spec.name for each in self.view.services.values() if not each.removed)
        if not names or self.random.random() < 0.7:
            return ()
        conditions = (DependencyCondition.STARTED, DependencyCondition.HEALTHY)
        return (Dependency(self.random.choice(names), self.random.choice(conditions)),)

    def change_service(self, service: Service) -> None:
        """Scale it, update it, or remove it."""
        spec = service.spec
        match self.random.randrange(8):
            case 0:
                after = replace(service, removed=True)
            case 5 if service.history:
                after = rolled_back(service, service.history[-1], self.now, "by hand")
            case 6 if service.update.state is UpdateState.CANARY:
                update = replace(service.update, state=UpdateState.UPDATING, promoted=True)
                after = replace(service, update=update)
            case 1 | 2 | 3:
                most = 3 if spec.task.ports else 9
                after = replace(
                    service, spec=replace(spec, replicas=self.random.randrange(0, most))
                )
            case 4:
                task = replace(spec.task, restart=replace(spec.task.restart, delay=0.25))
                after = with_spec(service, replace(spec, task=task), "", self.now)
            case _:
                task = replace(spec.task, force=spec.task.force + 1)
                after = with_spec(service, replace(spec, task=task), "", self.now)
        self.write(Change(service, after))

    def write(self, *changes: Change) -> None:
        for change in changes:
            self._check_growth(change)
        self.view = self.view.evolve(changes)
        self.dirty |= dirty_of(changes)

    # One tick

    def tick(self) -> None:
        self.now += TICK
        if self.faults:
            self._fault()
        for agent in self.agents.values():
            self._agent(agent)
        expired = expire(self.view, self.last_heard, self.term_started, self.now)
        self.write(*expired.changes)
        whole = self._plan()
        self.check(whole)

    def _fault(self) -> None:
        chance = self.random.random
        agent = self.random.choice(list(self.agents.values()))
        if chance() < 0.03:
            agent.connected = agent.greeted = False
        if chance() < 0.05:
            agent.connected = True
        if chance() < 0.01:  # its host reboots
            for container in agent.containers.values():
                container.next_at, container.stop_at = self.now, self.now
        if chance() < 0.03 and (node := self.view.nodes.get(agent.node_id)):
            self.write(
                Change(node, replace(node, availability=self.random.choice(list(Availability))))
            )
        if chance() < 0.005 and len(self.agents) > 2:
            del self.agents[agent.node_id]
            self.last_heard.pop(agent.node_id, None)
            self.write(Change(self.view.nodes[agent.node_id], None))
        if chance() < 0.01 and len(self.agents) < 6:
            self.add_node()
        if chance() < 0.04 and len(self.view.services) < 4:
            self.create_service()
        if chance() < 0.08 and self.view.services:
            service = self.view.services[self.random.choice(sorted(self.view.services))]
            if not service.removed:
                self.change_service(service)
        if chance() < 0.01:  # another manager leads
            self.last_heard.clear()
            self.term_started = self.now
            self.dirty, self.wake = EVERYTHING, None

    def _agent(self, agent: Agent) -> None:
        if agent.connected:
            if not agent.greeted:
                self._greet(agent)
            self.last_heard[agent.node_id] = self.now
            self._obey(agent)
        for container in list(agent.containers.values()):
            self._advance(agent, container)
        if agent.connected and not (self.faults and self.random.random() < 0.2):
            self.write(*ingest(self.view, agent.node_id, agent.unreported))
            agent.unreported.clear()

    def _greet(self, agent: Agent) -> None:
        node = self.view.nodes[agent.node_id]
        size = Resources(1024, 1024 * MIB)
        gpus = {"gpu": "/dev/a,/dev/b"}
        here = NodeDescription(hostname=node.id, resources=size, generic_resources=gpus)
        after = node_up(node, here, self.now)
        if after is not node:
            self.write(Change(node, after))
        agent.greeted = True
        for container in agent.containers.values():
            self._report(agent, container)

    def _obey(self, agent: Agent) -> None:
        orders = assigned_tasks(self.view, agent.node_id)
        for id, container in agent.containers.items():
            ordered = orders.get(id)
            if container.stop_at is None and (
                ordered is None or ordered.desired_state > TaskState.RUNNING
            ):
                container.stop_at = self.now + STOPPING
        for id, task in orders.items():
            if id not in agent.containers and not is_terminal(task.status.state):
                container = Container(task, TaskState.ASSIGNED, self.now)
                if task.desired_state > TaskState.RUNNING:
                    container.stop_at = self.now
                agent.containers[id] = container
        agent.containers = {
            id: item
            for id, item in agent.containers.items()
            if id in orders or not is_terminal(item.state)
        }

    def _advance(self, agent: Agent, container: Container) -> None:
        if is_terminal(container.state):
            return
        if container.stop_at is not None:
            if container.stop_at <= self.now:
                container.state = TaskState.SHUTDOWN
                self._report(agent, container)
            return
        fails = self.faults and self.random.random() < 0.02
        if fails:
            started = container.state is TaskState.RUNNING
            ends = (TaskState.FAILED, TaskState.COMPLETE) if started else (TaskState.REJECTED,)
            container.state = self.random.choice(ends)
            self._report(agent, container)
        elif container.state is not TaskState.RUNNING and container.next_at <= self.now:
            container.state = _STEPS[
                _STEPS.index(container.state) + 1 if container.state in _STEPS else 0
            ]
            container.next_at = self.now + self.random.choice((0.0, 0.25))
            if container.state is TaskState.RUNNING:
                container.started_at = self.now + agent.skew
            self._report(agent, container)

    def _report(self, agent: Agent, container: Container) -> None:
        at = self.now + agent.skew
        agent.unreported[container.task.id] = TaskStatus(
            container.state,
            at=at,
            started_at=container.started_at,
            finished_at=at if is_terminal(container.state) else 0.0,
        )

    def _plan(self) -> bool:
        """One pass of the leader; whether all of it was written."""
        if self.wake is not None and self.wake <= self.now:
            self.dirty |= Dirty(timer=True)
            self.wake = None
        if not self.dirty:
            return True
        dirty, self.dirty = self.dirty, Dirty()
        before = self._ids
        plans, requeue_at = plan(self.view, dirty, self.now, self.new_id)
        self._ids = before
        again, _ = plan(self.view, dirty, self.now, self.new_id)
        assert plans == again, "the same input gave another plan"
        self.wake = earliest(self.wake, requeue_at)
        for item in plans:
            if self.faults and self.random.random() < 0.05:  # a guard fails: decide anew
                self.dirty = EVERYTHING
                continue
            changes = item.changes
            if self.faults and len(changes) > 1 and self.random.random() < 0.05:
                changes = _cut(changes, self.random.randrange(1, len(changes)))
                self.dirty = EVERYTHING
            self.write(*changes)
            if len(changes) < len(item.changes):
                return False
        return self.dirty != EVERYTHING

    # What must always hold

    def check(self, whole: bool) -> None:
        """Raise AssertionError if the cluster is in a state that must not be."""
        check_nodes(self.view)
        self._check_slots()
        self._check_containers()
        for task in self.view.pending.values():
            assert task.status.message, f"{task.name} waits without a reason"
        if whole:
            due = (task for task in self.view.pending.values() if self._may_place(task))
            placeable = [
                item.task.name
                for item in schedule(self.view, due, self.now)
                if isinstance(item, Placement)
            ]
            assert not placeable or self.dirty, f"{placeable} would fit but wait"

    def _may_place(self, task: Task) -> bool:
        service = self.view.services.get(task.service_id)
        return service is not None and not service.removed

    def _check_growth(self, change: Change) -> None:
        before, after = change.before, change.after
        waited = not isinstance(before, Task) or before.status.state < TaskState.ASSIGNED
        if isinstance(after, Task) and after.status.state is TaskState.ASSIGNED and waited:
            waits_for = unmet(self.view, self.view.services.get(after.service_id))
            assert waits_for is None, f"{after.name} is started although it {waits_for}"
        if isinstance(before, Task):
            stored = self.view.tasks[before.id]
            assert stored == before, "a change of something else than what is stored"
        if isinstance(before, Task) and isinstance(after, Task):
            assert after.status.state >= before.status.state, "a state shrank"
            assert after.desired_state >= before.desired_state, "a desired state shrank"
            assert not is_terminal(before.status.state) or (
                before.status.state is after.status.state
            ), "a task rose from the dead"

    def _check_slots(self) -> None:
        live: Counter[tuple[str, int]] = Counter()
        known: Counter[tuple[str, int]] = Counter()
        for task in self.view.tasks.values():
            key = (task.service_id, task.slot)
            known[key] += 1
            live[key] += not is_terminal(task.status.state)
        for (service_id, slot), count in live.items():
            most = 2 if self._starts_first(service_id) else 1
            assert count <= most, f"{count} live tasks in slot {slot} of {service_id}"
        assert all(count <= 8 for count in known.values()), f"history grows: {known}"

    def _starts_first(self, service_id: str) -> bool:
        service = self.view.services.get(service_id)
        return service is None or service.spec.update.order is UpdateOrder.START_FIRST

    def _check_containers(self) -> None:
        """A slot runs twice only where nobody can reach, or for as long as a stop takes."""
        running: defaultdict[tuple[str, int], list[Task]] = defaultdict(list)
        for agent in self.agents.values():
            if agent.connected:
                for item in agent.containers.values():
                    if item.state is TaskState.RUNNING:
                        running[item.task.service_id, item.task.slot].append(item.task)
        surplus = set()
        for (service_id, _), tasks in running.items():
            if not self._starts_first(service_id):
                tasks.sort(key=lambda task: (task.created_at, task.id))
                surplus |= {task.id for task in tasks[:-1]}
        self.surplus = {id: self.surplus.get(id, self.now) for id in surplus}
        for id, since in self.surplus.items():
            assert self.now - since <= STOPPING + 2 * TICK, (
                f"{id} runs beside another since {since}"
            )

    # The end

    def heal(self) -> None:
        """No more faults: every node is reachable and may take tasks, and there is room."""
        self.faults = False
        while len(self.agents) < 6:
            self.add_node()
        for agent in self.agents.values():
            agent.connected = True
        for node in self.view.nodes.values():
            self.write(Change(node, replace(node, availability=Availability.ACTIVE)))

    def settle(self, limit: float) -> bool:
        """Run until all services have converged, at most `limit` seconds."""
        deadline = self.now + limit
        while self.now < deadline:
            self.tick()
            if not self.dirty and self._converged():
                return True
        return False

    def _converged(self) -> bool:
        return all(
            not service.removed and (progress(self.view, id).converged or self._blocked(id))
            for id, service in self.view.services.items()
        )

    def _blocked(self, service_id: str) -> bool:
        """Whether the service waits for a port that another has, for room on the very node that it
        is meant for, for a service that does not run, or for its user to look after a failed
        update: no fault of the planner."""
        paused = (UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)
        return self.view.services[service_id].update.state in paused or any(
            task.status.state is TaskState.PENDING
            and (
                any(word in task.status.message for word in _SCARCE)
                or task.node_id
                or unmet(self.view, self.view.services[service_id])
            )
            for task in self.view.tasks_of_service(service_id).values()
        )

    def picture(self) -> str:
        """The state of everything, for the message of a failed test."""
        lines = [
            f"{task.name} {task.id} on {task.node_id or '-'} {task.status.state.name}"
            f" (desired {task.desired_state.name}) v{task.spec.force} {task.status.message}"
            for task in sorted(self.view.tasks.values(), key=lambda task: (task.name, task.id))
        ]
        lines += [f"{node.id} {node.state.name}" for node in self.view.nodes.values()]
        lines += [
            f"{id} {service.spec.replicas} {service.spec.update} {service.update}"
            f" {progress(self.view, id)}"
            for id, service in self.view.services.items()
        ]
        return "\n".join(lines)


def _cut(changes: tuple[Change, ...], at: int) -> tuple[Change, ...]:
    """The first part of a plan that is too large for one write: whole slots."""

    def slot(change: Change) -> int:
        return change.subject.slot if isinstance(change.subject, Task) else -1

    while at < len(changes) and slot(changes[at]) == slot(changes[at - 1]):
        at += 1
    return changes[:at]
