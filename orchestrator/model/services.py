"""Services as the store keeps them: the spec, and how its updates and jobs go."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from orchestrator.model.extensible import Extensible
from orchestrator.model.specs import ServiceSpec, UpdatePolicy


class UpdateState(IntEnum):
    """How the newest update of a service's tasks goes."""

    NONE = 0
    """There was none."""
    UPDATING = 1
    CANARY = 2
    """Its canaries work; it waits to be promoted."""
    PAUSED = 3
    """Too many tasks failed; it waits for a new spec, a rollback or a word to go on."""
    COMPLETED = 4
    ROLLING_BACK = 5
    ROLLBACK_PAUSED = 6
    ROLLED_BACK = 7


@dataclass(frozen=True, slots=True)
class UpdateStatus(Extensible):
    """Where the newest update of a service's tasks stands."""

    state: UpdateState = UpdateState.NONE
    started_at: float = 0.0
    finished_at: float = 0.0
    """When it completed, was rolled back, or paused; 0 while it goes on."""
    message: str = ""
    """Why, in the user's words."""
    promoted: bool = False
    """It waits for nobody at its canaries."""

    @property
    def moving(self) -> bool:
        """Whether it goes on by itself."""
        return self.state in (UpdateState.UPDATING, UpdateState.ROLLING_BACK)


@dataclass(frozen=True, slots=True)
class PastSpec(Extensible):
    """What a service was before."""

    spec: ServiceSpec = field(default_factory=ServiceSpec)
    image_digest: str = ""
    version: int = 0
    """`spec_version` of its tasks."""
    until: float = 0.0
    """When another spec took its place."""
    documents: dict[str, int] = field(default_factory=dict)
    """As `Service.documents`."""


class JobState(IntEnum):
    """How a run of a job goes."""

    RUNNING = 0
    COMPLETE = 1
    FAILED = 2
    STOPPED = 3
    """By its user, or for another run."""


@dataclass(frozen=True, slots=True)
class JobRun(Extensible):
    """One time that a job does all of its work."""

    number: int = 0
    """From 1, of this job."""
    version: int = 0
    """`spec_version` of its tasks."""
    due_at: float = 0.0
    """When the schedule wanted it; 0: somebody said so."""
    started_at: float = 0.0
    since: float = 0.0
    """When it last began to be busy: at its start, or when it went on for a new node."""
    finished_at: float = 0.0
    state: JobState = JobState.RUNNING
    message: str = ""
    """Why it failed or was stopped, in the user's words."""
    completed: str = ""
    """Indexes that are done, such as `1-3,5`. Once here, a completion is counted, and its task may
    be forgotten."""
    nodes: tuple[str, ...] = ()
    """Ids of the nodes on which a global job is done, sorted."""


@dataclass(frozen=True, slots=True)
class JobStatus(Extensible):
    """What became of a job so far."""

    runs: tuple[JobRun, ...] = ()
    """Those remembered, the newest first."""
    decided_until: float = 0.0
    """The moment up to which the schedule's runs have begun or been left out."""
    skipped: int = 0
    """How many of them were left out."""
    message: str = ""
    """Why the last one was, in the user's words."""


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
    """The user removed it; it goes once its tasks have ended."""
    revision: int = 0
    vips: dict[str, str] = field(default_factory=dict)
    """Network id → the service's own IPv4 address there, for its life."""
    vips6: dict[str, str] = field(default_factory=dict)
    """Network id → its IPv6 address there."""
    update: UpdateStatus = field(default_factory=UpdateStatus)
    history: tuple[PastSpec, ...] = ()
    """Earlier specs, the newest first."""
    job: JobStatus = field(default_factory=JobStatus)
    documents: dict[str, int] = field(default_factory=dict)
    """Id of each secret and config that the spec names → the version that its tasks have."""
    declined: dict[str, int] = field(default_factory=dict)
    """Versions that it was rolled back from: it is not given them again by itself."""
    trace: str = ""
    """Place in a trace of the call that wrote it last; see `orchestrator.tracing.spans`."""

    @property
    def policy(self) -> UpdatePolicy:
        """How its tasks are replaced now: as for an update, or as for a rollback."""
        back = (UpdateState.ROLLING_BACK, UpdateState.ROLLBACK_PAUSED)
        return self.spec.rollback if self.update.state in back else self.spec.update
