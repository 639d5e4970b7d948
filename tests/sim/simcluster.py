# SPDX-License-Identifier: Apache-2.0
"""A cluster in virtual time: the real planner, scripted agents, and faults from one seed.

Nothing here waits or does input or output. Each tick is a fraction of a second of the cluster's
life: faults happen, agents obey and report over a bad wire (`simnode`), users change their minds
(`simusers`), the leader plans and writes, and every invariant is checked (`simchecks`, `simjobs`).
A seed replays exactly.

The store is what the manager's is: each write gives what it changes a new revision, and a plan is
written only if all that it read has the revisions that it read, and its leader still leads.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from random import Random
from typing import Any

import simchecks
import simjobs
from simnode import LATE, STOPPING, Agent, Statuses, Wire, advance, obey, reboot, report
from simusers import MIB, QUEUES, any_service, changed

from orchestrator.manager.planning.disruptions import was_preempted
from orchestrator.manager.planning.pipeline import EVERYTHING, Dirty, dirty_of, plan
from orchestrator.manager.planning.plan import Change, Plan, earliest
from orchestrator.manager.planning.reconcile.convergence import progress
from orchestrator.manager.planning.reconcile.service_dependencies import unmet_dependency
from orchestrator.manager.planning.reports.claims import accept_reports
from orchestrator.manager.planning.reports.liveness import Hearing, Silence, expire, node_up
from orchestrator.manager.planning.scheduling.rebalancing import improving_moves
from orchestrator.manager.planning.scheduling.scheduler import Placement, schedule
from orchestrator.manager.planning.scheduling.scoring import failing_nodes, unsteady_nodes
from orchestrator.manager.planning.view import ClusterView, assigned_tasks
from orchestrator.manager.store.cache import find_object
from orchestrator.model.nodes import Availability, Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster, Network, Object
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import Resources, UpdateOrder
from orchestrator.model.states import Owner, TaskState
from orchestrator.model.tasks import Task

__all__ = ["MIB", "STOPPING", "TICK", "Agent", "SimCluster"]

TICK = 0.25
GRACE = STOPPING + LATE + 2 * TICK
"""Seconds that a slot may run twice: an order comes late, and a stop takes its time."""

_SCARCE = ("/tcp in use", "anti-affinity", "insufficient gpu")
"""What a task may wait for that never comes, in words of its reason."""


class SimCluster:
    """The store, the leader and the agents of one simulated cluster."""

    def __init__(self, seed: int, nodes: int = 4) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.faults = True
        self.agents: dict[str, Agent] = {}
        self.wire = Wire(self)
        self.last_heard: dict[str, float] = {}
        self.silence = Silence((), None)
        self.term = 1
        self.clock = 0.0
        """How wrong the leader's clock is."""
        self.term_started = self.now
        self.dirty = EVERYTHING
        self.at_rest: frozenset[str] = frozenset()
        self.wake: float | None = None
        self.revision = 0
        self.started_first: set[str] = set()
        """Services of which an update has ever started the new tasks first."""
        self.surplus: dict[str, float] = {}
        """Container that runs beside a newer one of its slot → since when."""
        self._ids = 0
        network = Network(id="net", name="default", subnet="10.128.0.0/20", node_prefix=24)
        cluster = Cluster(id="cluster", node_timeout=2.0, queues=QUEUES)
        self.view = ClusterView.of([cluster, network])
        self.read = self.view
        """As the leader saw it when it last decided."""
        for _ in range(nodes):
            self.add_node()

    def new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids:06}"

    @property
    def leader_now(self) -> float:
        """The time by the leader's clock."""
        return self.now + self.clock

    # What users and operators do

    def add_node(self) -> None:
        id = self.new_id()
        self.agents[id] = Agent(id, skew=self.random.uniform(-1, 1))
        self.write(Change(None, Node(id=id, created_at=self.now)))

    def create(self) -> None:
        service = any_service(self.random, self.view, self.new_id(), self.now)
        self.write(Change(None, replace(service, created_at=self.now)))

    def change_service(self) -> None:
        """Scale one, update it, run it again, or remove it."""
        service = self.view.services[self.random.choice(sorted(self.view.services))]
        if not service.removed:
            self.write(Change(service, changed(self.random, service, self.now)))

    def write(self, *changes: Change, owner: Owner = Owner.MANAGER) -> None:
        """Store changes, each with a new revision."""
        for change in changes:
            self.check_change(change, owner)
            self.revision += 1
            after: Any = change.after
            if after is not None:
                after = replace(after, revision=self.revision)
            self.view = self.view.evolve([Change(change.before, after)])
            if isinstance(after, Service) and UpdateOrder.START_FIRST in (
                after.spec.update.order,
                after.spec.rollback.order,
            ):
                self.started_first.add(after.id)
            if isinstance(after, Task) and after.move_to:
                self.started_first.add(after.service_id)
        self.dirty |= dirty_of(changes, self.at_rest)

    # One tick

    def tick(self) -> None:
        self.now += TICK
        if self.faults:
            self._fault()
        for agent in self.agents.values():
            self._agent(agent)
        for node_id, statuses in self.wire.arrived():
            self._take(node_id, statuses)
        joined = {id: node.created_at for id, node in self.view.nodes.items()}
        doubt = self.silence.doubt_since, self.silence.fewest
        hearing = Hearing(self.term_started, self.now, self.last_heard, joined, *doubt)
        self.silence = expire(self.view, hearing, self.leader_now)
        self.write(*(change for each in self.silence.plans for change in each.changes))
        self.check(self._plan())

    def _fault(self) -> None:
        chance = self.random.random
        agent = self.random.choice(list(self.agents.values()))
        if chance() < 0.03:
            agent.connected = False
            agent.leave()
        if chance() < 0.05:
            agent.connected = True
        if chance() < 0.01:
            reboot(self, agent)
        if chance() < 0.02:
            agent.frozen_until = self.now + self.random.choice((0.5, 1.5, 4.0))
        if chance() < 0.02:
            self._kill(agent)
        if chance() < 0.02:
            agent.skew += self.random.uniform(-5, 5)
        if chance() < 0.03 and (node := self.view.nodes.get(agent.node_id)):
            deadline = self.random.choice((0.0, self.now + 5.0))
            after = replace(
                node,
                availability=self.random.choice(list(Availability)),
                drain_most=self.random.choice((0, 1, 2)),
                drain_deadline=deadline,
            )
            self.write(Change(node, after))
        if chance() < 0.005 and len(self.agents) > 2:
            del self.agents[agent.node_id]
            self.last_heard.pop(agent.node_id, None)
            self.write(Change(self.view.nodes[agent.node_id], None))
        if chance() < 0.01 and len(self.agents) < 6:
            self.add_node()
        self._users()
        if chance() < 0.02:
            self._rebalance()
        if chance() < 0.01:
            self._another_leads()
        if chance() < 0.005:
            self.clock += self.random.uniform(-10, 30)
            self.dirty = EVERYTHING  # the leader shifts stored delays, which changes their objects

    def _users(self) -> None:
        if self.random.random() < 0.04 and len(self.view.services) < 5:
            self.create()
        if self.random.random() < 0.08 and self.view.services:
            self.change_service()

    def _rebalance(self) -> None:
        """An operator has tasks moved; each move makes the measures better."""
        moves = improving_moves(self.view, self.leader_now, self.random.randrange(1, 4))
        simchecks.check_moves(self.view, moves)
        for move in moves:
            self.write(Change(move.task, replace(move.task, move_to=move.target.id)))

    def _kill(self, agent: Agent) -> None:
        """kill -9 of the agent; it is started again a moment later, and has all to say anew."""
        agent.dead_until = self.now + self.random.choice((0.25, 1.0, 3.0))
        agent.unreported.clear()
        agent.leave()

    def _another_leads(self) -> None:
        self.term += 1
        self.clock = self.random.uniform(-3, 3)
        self.last_heard.clear()
        self.term_started = self.now
        self.silence = Silence((), None)
        self.dirty, self.at_rest, self.wake = EVERYTHING, frozenset(), None
        for agent in self.agents.values():
            agent.leave()

    def _agent(self, agent: Agent) -> None:
        node = self.view.nodes.get(agent.node_id)
        if node is not None and node.state is NodeState.DOWN:
            agent.leave()  # as the dispatcher ends its session
        if self.now < agent.frozen_until:
            return
        alive = self.now >= agent.dead_until
        if alive and agent.connected and node is not None:
            if not agent.greeted:
                self._greet(agent, node)
            self.last_heard[agent.node_id] = self.now
            self.wire.order(agent, assigned_tasks(self.view, agent.node_id))
        if alive:
            obey(self, agent)
        advance(self, agent)
        if alive and agent.connected:
            self.wire.report(agent)

    def _greet(self, agent: Agent, node: Node) -> None:
        here = NodeDescription(
            hostname=node.id,
            resources=Resources(1024, 1024 * MIB),
            generic_resources={"gpu": "/dev/a,/dev/b"},
        )
        after = node_up(node, here, self.leader_now)
        if after is not node:
            self.write(Change(node, after))
        agent.greeted = True
        for container in agent.containers.values():
            report(self, agent, container)

    def _take(self, node_id: str, statuses: Statuses) -> None:
        """A report reaches the leader, which writes it down and says so."""
        self.write(
            *accept_reports(self.view, node_id, statuses, self.leader_now), owner=Owner.AGENT
        )
        agent = self.agents.get(node_id)
        if agent is not None and agent.connected:
            self.wire.acknowledge(agent, statuses)

    def _plan(self) -> bool:
        """One pass of the leader; whether all of it was written."""
        if self.wake is not None and self.wake <= self.leader_now:
            self.dirty |= Dirty(timer=True)
            self.wake = None
        if not self.dirty:
            return True
        dirty, self.dirty = self.dirty, Dirty()
        before, now, term, self.read = self._ids, self.leader_now, self.term, self.view
        decided = plan(self.view, dirty, now, self.new_id, at_rest=self.at_rest)
        if self.random.random() < 0.1:
            self._ids = before
            again = plan(self.view, dirty, now, self.new_id, at_rest=self.at_rest)
            assert decided == again, "the same input gave another plan"
        self.wake = earliest(self.wake, decided.requeue_at)
        self.at_rest = decided.now_at_rest(self.at_rest)
        if self.faults and self.random.random() < 0.1:  # the world goes on while it thinks
            self._users()
        if self.faults and self.random.random() < 0.01:
            self._another_leads()
        for item in decided.plans:
            if term != self.term or not self._commit(item):
                # What comes after it is not written either.
                self.dirty, self.at_rest = EVERYTHING, frozenset()
                break
        return self.dirty != EVERYTHING

    def _commit(self, item: Plan) -> bool:
        """Write a plan, unless something that it read has changed; whether all was written."""
        read = [*item.requires, *(each for objects in item.reads.values() for each in objects)]
        read += [change.before for change in item.changes if change.before]
        new = [change.subject for change in item.changes if change.before is None]
        if any(self._revision(each) != each.revision for each in read):
            return False
        if any(self._revision(each) for each in new):
            return False
        simchecks.check_update(self.view, item)
        changes = item.changes
        if self.faults and len(changes) > 1 and self.random.random() < 0.05:
            changes = changes[: self.random.randrange(1, len(changes))]  # the leader dies
        self.write(*changes)
        return len(changes) == len(item.changes)

    def _revision(self, item: Object) -> int:
        stored = find_object(self.view, type(item), item.id)
        return stored.revision if stored is not None else 0

    # What must always hold

    def check_change(self, change: Change, owner: Owner) -> None:
        """Raise AssertionError for a change that must not be."""
        simchecks.check_change(self.view, self.read, change, owner)
        simjobs.check_change(self.view, change)

    def check(self, whole: bool) -> None:
        """Raise AssertionError if the cluster is in a state that must not be."""
        settled = whole and not self.dirty
        simchecks.check_nodes(self.view)
        simchecks.check_queues(self.view)
        simchecks.check_slots(self.view, self.started_first, settled=settled)
        simjobs.check_jobs(self.view, self.leader_now, settled=settled)
        self._check_containers()
        for task in self.view.pending.values():
            assert task.status.message, f"{task.name} waits without a reason"
        if settled:
            self._check_rest()

    def _check_rest(self) -> None:
        """Nothing that would fit waits, and nothing is changed without a cause."""
        placeable = [
            item.task.name
            for item in schedule(
                self.view, filter(self._may_place, self.view.pending.values()), self.leader_now
            )
            if isinstance(item, Placement)
        ]
        assert not placeable, f"{placeable} would fit but wait"
        if self.random.random() < 0.1:
            before = self._ids
            decided = plan(self.view, EVERYTHING, self.leader_now, self.new_id)
            self._ids = before
            changes = [change for item in decided.plans for change in item.changes]
            causeless = [change for change in changes if not self._has_cause(change)]
            assert not causeless, f"changed without a cause: {causeless}"

    def _has_cause(self, change: Change) -> bool:
        """Whether only the words change why a task waits, or time has passed: where tasks preempt
        others depends on nodes that are avoided for a while."""
        before, after = change.before, change.after
        if not isinstance(before, Task) or not isinstance(after, Task):
            return False
        if unsteady_nodes(self.view, self.leader_now) or any(
            failing_nodes(self.view, id, self.leader_now) for id in self.view.services
        ):
            after = replace(after, nominated_node=before.nominated_node)
            if was_preempted(before, after):
                return True
        return replace(after, status=before.status) == before and (
            before.status.state is after.status.state is TaskState.PENDING
        )

    def _may_place(self, task: Task) -> bool:
        service = self.view.services.get(task.service_id)
        return service is not None and not service.removed

    def _check_containers(self) -> None:
        """A slot runs twice only where nobody can reach, or for as long as a stop takes."""
        running: defaultdict[tuple[str, int, int], list[Task]] = defaultdict(list)
        for agent in self.agents.values():
            if agent.greeted and agent.frozen_until <= self.now and agent.dead_until <= self.now:
                for item in agent.containers.values():
                    if item.state is TaskState.RUNNING:
                        key = (item.task.service_id, item.task.job_run, item.task.slot)
                        running[key].append(item.task)
        surplus = set()
        for (service_id, _, _), tasks in running.items():
            if service_id not in self.started_first and service_id in self.view.services:
                tasks.sort(key=lambda task: (task.created_at, task.id))
                surplus |= {task.id for task in tasks[:-1]}
        self.surplus = {id: self.surplus.get(id, self.now) for id in surplus}
        for id, since in self.surplus.items():
            assert self.now - since <= GRACE, f"{id} runs beside another since {since}"

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
                or unmet_dependency(self.view, self.view.services[service_id])
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
            f" {service.spec.job} {service.job} {progress(self.view, id)}"
            for id, service in self.view.services.items()
        ]
        return "\n".join(lines)
