# SPDX-License-Identifier: Apache-2.0
"""Containers of their own in a simulated cluster: the real planner, users' orders, and on each node
the agent's real decisions (`lifecycle`) about a kernel that is a few fields.

An agent may die between any two steps and forgets all but its state file; a host may reboot and
forgets all that ran; reports are lost and repeated, and a planner's guards fail, as in
`simcluster`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import simchecks
from simcluster import MIB, STOPPING, Agent, SimCluster

from orchestrator.agent.runtime.interface import Exit, Started
from orchestrator.agent.tasks.lifecycle import (
    Observed,
    Step,
    assigned_run,
    failed_status,
    final_status,
    keeps_files,
    next_step,
)
from orchestrator.manager.errors import RequestError
from orchestrator.manager.leader.agent_reports import Hello, Reports, report_changes
from orchestrator.manager.operations.workloads import container_lifecycle
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import assigned_tasks
from orchestrator.model.nodes import NodeDescription, NodeState
from orchestrator.model.specs import (
    ContainerSpec,
    Resources,
    RestartCondition,
    RestartPolicy,
    TaskSpec,
)
from orchestrator.model.states import Owner, TaskState, is_terminal
from orchestrator.model.tasks import Task, TaskStatus

S = TaskState


@dataclass
class Kernel:
    """What is of one container on a node, whether an agent knows of it or not."""

    layer: list[int] = field(default_factory=list)
    """The runs that wrote into the writable layer."""
    created: bool = False
    process: Started | Exit | None = None
    ends_at: float = 0.0

    @property
    def empty(self) -> bool:
        return not (self.layer or self.created or self.process)


@dataclass
class Recorded:
    """A row of the agent's state file."""

    task: Task
    status: TaskStatus
    boot: int
    released: bool = False


@dataclass
class Runner:
    """What an agent's process knows of a task."""

    task: Task
    status: TaskStatus
    observed: Observed
    assigned: bool = True
    busy_until: float = 0.0
    stopping: bool = False


@dataclass
class Host:
    """A node: what survives its agent, and what survives a reboot."""

    boot: int = 1
    kernel: dict[str, Kernel] = field(default_factory=dict)
    rows: dict[str, Recorded] = field(default_factory=dict)
    runners: dict[str, Runner] = field(default_factory=dict)


class ContainerCluster(SimCluster):
    """A simulated cluster of standalone containers and their users."""

    def __init__(self, seed: int, nodes: int = 3) -> None:
        self.hosts: dict[str, Host] = {}
        self.wrote: dict[str, list[int]] = {}
        """Container → the runs that have begun, as its files must tell in the next."""
        self.pids = 0
        super().__init__(seed, nodes)

    # What users do

    def create(self) -> None:
        id = self.new_id()
        policy = RestartPolicy(
            self.random.choice(tuple(RestartCondition)), max_attempts=self.random.choice((0, 2))
        )
        spec = TaskSpec(
            container=ContainerSpec(image="box:1"),
            reservation=Resources(self.random.choice((64, 128)), 32 * MIB),
            restart=policy,
        )
        task = Task(
            id=id,
            created_at=self.now,
            container_name=f"box-{id}",
            spec=spec,
            desired_state=self.random.choice((S.READY, S.RUNNING)),
            status=TaskStatus(S.PENDING, at=self.now, run=1),
            run=1,
            auto_remove=self.random.random() < 0.1,
        )
        self.write(Change(None, task))

    def order(self, task: Task) -> None:
        """Any verb of a user, at any moment; what is refused changes nothing."""
        grace = self.random.choice((None, 0.0, 5.0))
        try:
            match self.random.randrange(7):
                case 0 | 1 | 2:
                    after = container_lifecycle.start(task)
                case 3 | 4:
                    after = container_lifecycle.stop(task, "", grace)
                case 5:
                    after = container_lifecycle.restart(task, "", grace)
                case _:
                    after = container_lifecycle.remove(
                        self.view, task, force=self.random.random() < 0.7
                    )
        except RequestError:
            return
        if after != task:
            self.write(Change(task, after))

    def _fault(self) -> None:
        chance = self.random.random
        super()._fault()
        if chance() < 0.15 and len(self.view.tasks) < 8:
            self.create()
        if chance() < 0.3 and self.view.tasks:
            self.order(self.view.tasks[self.random.choice(sorted(self.view.tasks))])
        agent = self.random.choice(list(self.agents.values()))
        if chance() < 0.05:  # kill -9 of the agent
            self._kill_agent(agent)
        if chance() < 0.02:
            self._reboot(agent)

    def _users(self) -> None:
        """There are containers only."""

    def _kill_agent(self, agent: Agent) -> None:
        host = self._host(agent)
        agent.unreported.clear()
        agent.leave()
        host.runners = {
            id: Runner(
                row.task,
                row.status,
                Observed(
                    searched=False,
                    released=row.released,
                    rebooted=row.status.state >= S.STARTING and row.boot != host.boot,
                    confirmed=False,
                ),
            )
            for id, row in host.rows.items()
        }

    def _reboot(self, agent: Agent) -> None:
        host = self._host(agent)
        host.boot += 1
        for kernel in host.kernel.values():
            kernel.created, kernel.process = False, None
        self._kill_agent(agent)

    def _host(self, agent: Agent) -> Host:
        return self.hosts.setdefault(agent.node_id, Host())

    # What agents do

    def _agent(self, agent: Agent) -> None:
        host = self._host(agent)
        for kernel in host.kernel.values():
            if isinstance(kernel.process, Started) and kernel.ends_at <= self.now:
                kernel.process = Exit(self.random.choice((0, 1, 137)), False, self.now)
        node = self.view.nodes.get(agent.node_id)
        if node is not None and node.state is NodeState.DOWN:
            agent.leave()  # as the dispatcher ends its session
        if self.now < agent.frozen_until:
            return
        if agent.connected:
            if not agent.greeted:
                self._say_hello(agent)
            self.last_heard[agent.node_id] = self.now
            self._assign(host, agent)
        for id, runner in list(host.runners.items()):
            for _ in range(self.random.randrange(1, 8)):
                if self.faults and self.random.random() < 0.01:
                    self._kill_agent(agent)
                # One of an agent that has died does nothing more.
                if host.runners.get(id) is not runner or not self._step(host, agent, id, runner):
                    break
        if agent.connected and not (self.faults and self.random.random() < 0.2):
            self._hear(Reports(statuses={agent.node_id: agent.unreported}))
            if not self.faults or self.random.random() < 0.8:  # else it was not acknowledged
                agent.unreported = {}

    def _say_hello(self, agent: Agent) -> None:
        size = Resources(1024, 1024 * MIB)
        host = self._host(agent)
        about = NodeDescription(hostname=agent.node_id, resources=size)
        self._hear(Reports(hellos={agent.node_id: Hello(about, f"boot{host.boot}")}))
        agent.greeted = True
        for id, runner in host.runners.items():
            if not is_terminal(runner.status.state) or runner.observed.released:
                agent.unreported[id] = runner.status

    def _hear(self, reports: Reports) -> None:
        self.write(*report_changes(self.view, reports, self.now))

    def _assign(self, host: Host, agent: Agent) -> None:
        wanted = assigned_tasks(self.view, agent.node_id)
        for id, task in wanted.items():
            if (runner := host.runners.get(id)) is not None:
                runner.task, runner.assigned = task, True
                runner.observed = replace(runner.observed, confirmed=True)
                host.rows[id].task = task
                continue
            status = TaskStatus(S.ACCEPTED, at=self._time(agent), run=task.status.run)
            observed = Observed()
            if task.status.state > S.ACCEPTED:  # the node's state file is younger than that
                status, observed = task.status, Observed(searched=False)
            host.runners[id] = Runner(task, status, observed)
            host.rows[id] = Recorded(task, replace(status, state=S.ASSIGNED), host.boot)
            agent.unreported[id] = status
        for id, runner in host.runners.items():
            if id not in wanted:
                runner.assigned = False
                runner.task = replace(runner.task, desired_state=S.REMOVE)

    def _time(self, agent: Agent) -> float:
        return self.now + agent.skew

    def _record(self, host: Host, agent: Agent, id: str, status: TaskStatus) -> None:
        row = host.rows[id]
        row.status, row.boot = status, host.boot
        host.runners[id].status = status
        if not is_terminal(status.state):
            agent.unreported[id] = status

    def _step(self, host: Host, agent: Agent, id: str, runner: Runner) -> bool:
        """One step of a runner; whether it may take the next at once."""
        if runner.busy_until > self.now:
            return False
        kernel = host.kernel.setdefault(id, Kernel())
        step = next_step(runner.task, runner.status, runner.observed)
        if step in (Step.PREPARE, Step.START) and self.faults and self.random.random() < 0.05:
            status = failed_status(runner.task, runner.status, "no luck", self._time(agent))
            self._record(host, agent, id, status)
            return True
        match step:
            case Step.ADOPT:
                if kernel.process is None:
                    self._clear(host, id, runner)
                observed = replace(runner.observed, searched=True, container=kernel.process)
                runner.observed = observed
            case Step.PREPARE:
                runner.observed = replace(runner.observed, prepared=True)
                if runner.task.desired_state is S.READY:
                    kernel.created = True
                if runner.status.state < S.READY:
                    runner.status = replace(runner.status, state=S.READY, at=self._time(agent))
                    agent.unreported[id] = runner.status
                runner.busy_until = self.now + self.random.choice((0.0, 0.25))
            case Step.START:
                return self._start(host, agent, id, runner)
            case Step.RECORD_RUNNING:
                started = runner.observed.container
                assert isinstance(started, Started)
                status = replace(
                    runner.status,
                    state=S.RUNNING,
                    at=self._time(agent),
                    pid=started.pid,
                    started_at=started.started_at,
                )
                self._record(host, agent, id, status)
            case Step.CONNECT:
                runner.observed = replace(runner.observed, unconnected=runner.task.spec.networks)
            case Step.WATCH:
                if isinstance(kernel.process, Started):
                    return False
                runner.observed = replace(runner.observed, container=kernel.process)
            case Step.STOP:
                if isinstance(kernel.process, Started):
                    if not runner.stopping:
                        runner.stopping = True
                        kernel.ends_at = min(kernel.ends_at, self.now + STOPPING)
                    return False
                runner.stopping = False
                runner.observed = replace(runner.observed, container=kernel.process)
            case Step.RECORD_END:
                status = final_status(
                    runner.task, runner.status, runner.observed, self._time(agent)
                )
                self._record(host, agent, id, status)
            case Step.RELEASE:
                self._clear(host, id, runner)
                host.rows[id].released = True
                runner.observed = replace(runner.observed, released=True, container=None)
                agent.unreported[id] = runner.status
            case Step.NEXT_RUN:
                status = TaskStatus(S.ACCEPTED, at=self._time(agent), run=assigned_run(runner.task))
                host.rows[id] = Recorded(runner.task, status, host.boot)
                runner.status = status
                runner.observed = Observed(confirmed=runner.observed.confirmed)
                agent.unreported[id] = status
            case Step.DISCARD:
                self._clear(host, id, runner)
            case Step.IDLE:
                if not runner.assigned:
                    del host.runners[id], host.rows[id]
                    agent.unreported.pop(id, None)
                    assert kernel.empty, f"{id} is forgotten, and left {kernel}"
                    del host.kernel[id]
                return False
        return True

    def _start(self, host: Host, agent: Agent, id: str, runner: Runner) -> bool:
        status = runner.status
        if status.state < S.STARTING:
            status = replace(status, state=S.STARTING, at=self._time(agent))
        self._record(host, agent, id, status)
        if self.faults and self.random.random() < 0.03:
            self._kill_agent(agent)
            return False
        kernel = host.kernel[id]
        assert kernel.process is None, f"{id} is started over {kernel}"
        assert kernel.layer == self.wrote.get(id, []), f"{id} lost files: {kernel}"
        self.pids += 1
        kernel.process = Started(self.pids, self._time(agent))
        lasts = (0.0, 0.5, 5.0, 1e9) if self.faults else (1e9,)
        kernel.ends_at = self.now + self.random.choice(lasts)
        kernel.layer.append(status.run)
        self.wrote[id] = list(kernel.layer)
        if self.faults and self.random.random() < 0.03:
            self._kill_agent(agent)
            return False
        runner.observed = replace(runner.observed, container=kernel.process, rebooted=False)
        return True

    def _clear(self, host: Host, id: str, runner: Runner) -> None:
        kernel = host.kernel[id]
        kernel.created, kernel.process = False, None
        if not keeps_files(runner.task):
            kernel.layer.clear()
            runner.observed = replace(runner.observed, discarded=True)

    # What must always hold

    def check(self, whole: bool) -> None:
        """Raise AssertionError if the cluster is in a state that must not be."""
        simchecks.check_nodes(self.view)
        runs: Counter[str] = Counter()
        for node_id, host in self.hosts.items():
            for id, kernel in host.kernel.items():
                runs[id] += isinstance(kernel.process, Started)
                task = self.view.tasks.get(id)
                if task is not None and task.node_id and node_id in self.view.nodes:
                    assert task.node_id == node_id or kernel.empty, f"{id} is on two nodes"
        assert all(count <= 1 for count in runs.values()), f"it runs twice: {runs}"
        for task in self.view.pending.values() if whole and not self.dirty else ():
            assert task.status.message, f"{task.name} waits without a reason"

    def check_change(self, change: Change, owner: Owner) -> None:
        before, after = change.before, change.after
        if isinstance(before, Task):
            assert self.view.tasks[before.id] == before, "a change of something else than is stored"
        if isinstance(before, Task) and isinstance(after, Task):
            was, now = before.status, after.status
            assert (now.run, now.state) >= (was.run, was.state), f"it went back: {was} {now}"
            assert not before.node_id or after.node_id == before.node_id, "it moved"

    # The end

    def _converged(self) -> bool:
        return all(self._at_rest(task) for task in self.view.tasks.values()) and all(
            kernel.empty or id in self.view.tasks
            for node_id, host in self.hosts.items()
            if node_id in self.view.nodes
            for id, kernel in host.kernel.items()
        )

    def _at_rest(self, task: Task) -> bool:
        """Whether what was ordered is so."""
        status = task.status
        if task.desired_state is S.REMOVE or status.run != task.run:
            return False
        if task.desired_state is S.SHUTDOWN:
            return is_terminal(status.state)
        if task.desired_state is S.READY:
            return status.state is S.READY or is_terminal(status.state)
        again = task.spec.restart.condition in (
            RestartCondition.ANY,
            RestartCondition.UNLESS_STOPPED,
        )
        if status.state is S.RUNNING:
            kernel = self.hosts[task.node_id].kernel[task.id]
            return isinstance(kernel.process, Started) and kernel.ends_at > self.now + 60
        return is_terminal(status.state) and not (again and status.state is not S.REJECTED)

    def picture(self) -> str:
        """The state of everything, for the message of a failed test."""
        lines = [
            f"{id} on {node_id}: {kernel} {host.runners.get(id)}"
            for node_id, host in self.hosts.items()
            for id, kernel in host.kernel.items()
        ]
        return "\n".join([super().picture(), *lines])
