# SPDX-License-Identifier: Apache-2.0
"""Tasks as stored: what is desired, and what was observed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from orchestrator.model.extensible import Extensible
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.specs import TaskSpec
from orchestrator.model.states import TaskState, is_terminal


class Health(IntEnum):
    """Result of a container's health check."""

    NONE = 0
    """It has no health check."""
    STARTING = 1
    """No probe has succeeded yet."""
    HEALTHY = 2
    UNHEALTHY = 3


@dataclass(frozen=True, slots=True)
class TaskStatus(Extensible):
    """Observed status of a task."""

    state: TaskState = TaskState.NEW
    at: float = 0.0
    """When it was observed."""
    message: str = ""
    """The reason why it is pending, failed or was rejected."""
    exit_code: int = 0
    oom_killed: bool = False
    started_at: float = 0.0
    finished_at: float = 0.0
    pid: int = 0
    addresses: dict[str, str] = field(default_factory=dict)
    """Network name → IP address, no prefix length."""
    run: int = 0
    """Which run of the task this is about; see `Task.run`."""
    paused: bool = False
    """Its processes are frozen."""
    addresses6: dict[str, str] = field(default_factory=dict)
    """Network name → IPv6 address, no prefix length."""
    health: Health = Health.NONE
    health_output: str = ""
    """Output of the last probe if it failed, in one line."""
    lost: bool = False
    """It ended because its node restarted."""
    hooks: int = 0
    """How many lifecycle hooks of this run have succeeded: those of `post_start`, then those of
    `pre_stop`."""

    @property
    def failed(self) -> bool:
        """Whether the task itself failed; not one that was lost with its node."""
        return self.state in (TaskState.FAILED, TaskState.REJECTED) and not self.lost

    @property
    def works(self) -> bool:
        """Whether it is running and, if it has a health check, healthy."""
        return self.state is TaskState.RUNNING and self.health in (Health.NONE, Health.HEALTHY)


@dataclass(frozen=True, slots=True)
class Task(Extensible):
    """One container, bound to one node for life.

    One of a service is one-shot. A standalone container, which has no service, may be run again
    on its node: `run` counts, and states grow within a run.
    """

    id: str = ""
    created_at: float = 0.0
    service_id: str = ""
    service_name: str = ""
    slot: int = 0
    """The replica's number, kept across replacements."""
    spec: TaskSpec = field(default_factory=TaskSpec)
    spec_version: int = 0
    image_digest: str = ""
    node_id: str = ""
    desired_state: TaskState = TaskState.RUNNING
    status: TaskStatus = field(default_factory=TaskStatus)
    not_before: float = 0.0
    """The earliest time at which it may be started (restart delay)."""
    attempt: int = 0
    """Consecutive failures of tasks of this slot, or runs of this container, before this one."""
    revision: int = 0
    container_name: str = ""
    """Of a standalone container; unique among them."""
    run: int = 0
    """The desired run of a standalone container, from 1. If greater than `status.run`, the previous
    run is to end and this one to begin."""
    auto_remove: bool = False
    """It is removed when it has ended."""
    constraints: tuple[str, ...] = ()
    """Placement rules of a standalone container; a service's tasks have those of the service."""
    restarts: int = 0
    """Restarts by its restart policy since a user started it."""
    stop_signal: str = ""
    """Signal of this stop; empty: the spec's."""
    stop_grace: float = 0.0
    """Seconds of this stop until SIGKILL; 0: the spec's, negative: none."""
    affinities: tuple[Affinity, ...] = ()
    """Affinities of a standalone container; a service's tasks have those of the service."""
    job_run: int = 0
    """The number of its job's run."""
    generic_resources: dict[str, str] = field(default_factory=dict)
    """Allocated generic resources of its node: kind → a number, or names."""
    documents: dict[str, int] = field(default_factory=dict)
    """Id of each secret and config that its spec names → the version that it has, or is to have."""
    trace: str = ""
    """Trace context of the call that created it; see `orchestrator.tracing.spans`."""
    running_since: float = 0.0
    """When a manager first learned that this run is RUNNING, by the manager's clock; 0: not yet."""
    priority: int = 0
    """Of a standalone container; a service's tasks have that of the service."""
    nominated_node: str = ""
    """Id of the node that holds room for this pending task against those of lower priority."""
    preempted_by: str = ""
    """Name of the task for which this one was stopped."""
    move_to: str = ""
    """Id of the node that it is to change to: another task of its slot starts there first."""
    moved_from: str = ""
    """Id of the node from which its slot was moved."""

    @property
    def wanted_now(self) -> TaskState:
        """The desired state as displayed. `desired_state` keeps its value when the task ends, which
        distinguishes tasks that ended by themselves from those that were stopped. But a service's
        task that has ended is never run again, so it is displayed as ended, as in Docker; and so
        is a container unless another run of it is desired."""
        state = self.status.state
        if not is_terminal(state) or self.desired_state > TaskState.RUNNING:
            return self.desired_state
        if self.run > self.status.run:
            return self.desired_state
        done = self.job_run and state is TaskState.COMPLETE
        return TaskState.COMPLETE if done else TaskState.SHUTDOWN

    @property
    def standalone(self) -> bool:
        """Whether it is a standalone container, without a service."""
        return not self.service_id

    @property
    def name(self) -> str:
        """Its displayed name, such as `web.3`."""
        return self.container_name or f"{self.service_name}.{self.slot}"
