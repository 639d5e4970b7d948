# SPDX-License-Identifier: Apache-2.0
"""Services as stored: the spec, the status of its update, and the runs of a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from orchestrator.model.extensible import Extensible
from orchestrator.model.scheduling.autoscaling import AutoscaleStatus, bounded
from orchestrator.model.specs import ServiceSpec, UpdatePolicy


class UpdateState(IntEnum):
    """State of the newest update of a service's tasks."""

    NONE = 0
    """There was no update."""
    UPDATING = 1
    CANARY = 2
    """Its canaries work; it waits to be promoted."""
    PAUSED = 3
    """Too many tasks failed; it waits for a new spec, a rollback or to be resumed."""
    COMPLETED = 4
    ROLLING_BACK = 5
    ROLLBACK_PAUSED = 6
    ROLLED_BACK = 7


@dataclass(frozen=True, slots=True)
class UpdateStatus(Extensible):
    """Status of the newest update of a service's tasks."""

    state: UpdateState = UpdateState.NONE
    started_at: float = 0.0
    finished_at: float = 0.0
    """When it completed, was rolled back, or paused; 0 while in progress."""
    message: str = ""
    """The reason of the state."""
    promoted: bool = False
    """It does not wait at its canaries."""

    @property
    def moving(self) -> bool:
        """Whether it is in progress."""
        return self.state in (UpdateState.UPDATING, UpdateState.ROLLING_BACK)


@dataclass(frozen=True, slots=True)
class PastSpec(Extensible):
    """An earlier spec of a service."""

    spec: ServiceSpec = field(default_factory=ServiceSpec)
    image_digest: str = ""
    version: int = 0
    """`spec_version` of its tasks."""
    until: float = 0.0
    """When it was replaced."""
    documents: dict[str, int] = field(default_factory=dict)
    """As `Service.documents`."""


class JobState(IntEnum):
    """State of a run of a job."""

    RUNNING = 0
    COMPLETE = 1
    FAILED = 2
    STOPPED = 3
    """By a user, or replaced by another run."""


@dataclass(frozen=True, slots=True)
class JobRun(Extensible):
    """One run of a job."""

    number: int = 0
    """Counts the job's runs from 1."""
    version: int = 0
    """`spec_version` of its tasks."""
    due_at: float = 0.0
    """When the schedule made it due; 0: a user started it."""
    started_at: float = 0.0
    since: float = 0.0
    """When it last started to work: at its start, or when it resumed for a new node."""
    finished_at: float = 0.0
    state: JobState = JobState.RUNNING
    message: str = ""
    """Why it failed or was stopped."""
    completed: str = ""
    """Completed indexes, such as `1-3,5`. Once an index is here, its task may be deleted."""
    nodes: tuple[str, ...] = ()
    """Ids of the nodes on which a global job has completed, sorted."""


@dataclass(frozen=True, slots=True)
class JobStatus(Extensible):
    """Status of a job."""

    runs: tuple[JobRun, ...] = ()
    """The remembered runs, the newest first."""
    decided_until: float = 0.0
    """The time up to which the schedule's runs have been started or skipped."""
    skipped: int = 0
    """Number of skipped runs."""
    message: str = ""
    """Why the last one was skipped."""


@dataclass(frozen=True, slots=True)
class Service(Extensible):
    """A declared service. `spec_version` grows with each change of `spec.task`."""

    id: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0
    spec: ServiceSpec = field(default_factory=ServiceSpec)
    spec_version: int = 1
    image_digest: str = ""
    """The manifest digest that `spec.task.container.image` was resolved to."""
    removed: bool = False
    """A user removed it; it is deleted once its tasks have ended."""
    revision: int = 0
    vips: dict[str, str] = field(default_factory=dict)
    """Network id → IPv4 VIP, for the service's life."""
    vips6: dict[str, str] = field(default_factory=dict)
    """Network id → IPv6 VIP."""
    update: UpdateStatus = field(default_factory=UpdateStatus)
    history: tuple[PastSpec, ...] = ()
    """Earlier specs, the newest first."""
    job: JobStatus = field(default_factory=JobStatus)
    documents: dict[str, int] = field(default_factory=dict)
    """Id of each secret and config that the spec names → the version that its tasks have."""
    declined: dict[str, int] = field(default_factory=dict)
    """Versions that it was rolled back from: it is not updated to them again automatically."""
    trace: str = ""
    """Trace context of the call that wrote it last; see `orchestrator.tracing.spans`."""
    autoscale: AutoscaleStatus = field(default_factory=AutoscaleStatus)

    @property
    def replicas(self) -> int:
        """How many tasks it should have, if it is replicated: what the spec says, or what
        autoscaling has decided."""
        scale = self.spec.autoscale
        if not scale.enabled:
            return self.spec.replicas
        return bounded(scale, self.autoscale.replicas or self.spec.replicas)

    @property
    def policy(self) -> UpdatePolicy:
        """The policy in effect: of updates or of rollbacks."""
        back = (UpdateState.ROLLING_BACK, UpdateState.ROLLBACK_PAUSED)
        return self.spec.rollback if self.update.state in back else self.spec.update
