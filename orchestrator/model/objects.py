"""What the store keeps. `meta.revision` is the store's revision of the object as read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from orchestrator.model.affinities import Affinity
from orchestrator.model.documents import Document
from orchestrator.model.placement import Strategy
from orchestrator.model.specs import (
    Protocol,
    Resources,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
)
from orchestrator.model.states import TaskState


class NodeState(IntEnum):
    """What the managers know of a node's health."""

    UNKNOWN = 0
    """Not heard of since this leader's term began."""
    READY = 1
    DOWN = 2


class Availability(IntEnum):
    """What its operator allows a node to do."""

    ACTIVE = 0
    PAUSE = 1
    """Keeps what runs, takes nothing new."""
    DRAIN = 2
    """Its tasks go elsewhere."""


@dataclass(frozen=True, slots=True)
class TunnelKey:
    """A node's public WireGuard key, and the UDP port at which the node answers to it."""

    public: str = ""
    """32 bytes in base64."""
    port: int = 0


@dataclass(frozen=True, slots=True)
class NodeDescription:
    """What an agent reports of its host."""

    hostname: str = ""
    address: str = ""
    """The host's address on the underlay, without prefix length."""
    resources: Resources = field(default_factory=Resources)
    kernel: str = ""
    os: str = ""
    arch: str = ""
    cgroup: str = ""
    """`v1`, `v2` or `hybrid`."""
    runtime: str = ""
    """Name and version, such as `crun 1.21`."""
    version: str = ""
    """Of Orc."""
    labels: dict[str, str] = field(default_factory=dict)
    """Given to the agent on its own command line."""
    blob_port: int = 0
    """TCP port at which the node serves its image blobs to other nodes."""
    metrics_port: int = 0
    """TCP port of its metrics, HTTPS."""
    network_features: tuple[str, ...] = ()
    """What its networks can be, such as `encrypted`, `cni`."""
    routes: tuple[str, ...] = ()
    """Subnets that the host has routes to, which no network may overlap."""
    volume_drivers: dict[str, str] = field(default_factory=dict)
    """Name of each volume plugin that answers there → `local` or `global`."""
    path_mtu: int = 0
    """Bytes of the largest packet that gets to each other node in one piece, as was found by
    sending such; 0: not known."""
    trouble: str = ""
    """What is wrong with the host and what mends it, in words; empty while nothing is."""
    generic_resources: dict[str, str] = field(default_factory=dict)
    """Kind → how many it has, or the names of them: `4`, or `/dev/a,/dev/b`."""
    features: tuple[str, ...] = ()
    """What its agent can do that older ones cannot, such as `files` (secrets and configs)."""
    tunnel_keys: tuple[TunnelKey, ...] = ()
    """Of encrypted networks, the oldest first; two while one takes the other's place."""
    cni_plugins: tuple[str, ...] = ()
    """Names of the CNI plugins (programs) that it has, sorted."""
    network_drivers: dict[str, str] = field(default_factory=dict)
    """Name of each network plugin of Docker's protocol that answers there → `local` or `global`,
    which says whether its networks connect containers of several nodes."""
    ipam_drivers: tuple[str, ...] = ()
    """Names of those that give out addresses, sorted."""


@dataclass(frozen=True, slots=True)
class Node:
    """A host that runs tasks."""

    id: str = ""
    created_at: float = 0.0
    role: str = "worker"
    availability: Availability = Availability.ACTIVE
    labels: dict[str, str] = field(default_factory=dict)
    """Set by operators; over those of the description."""
    description: NodeDescription = field(default_factory=NodeDescription)
    state: NodeState = NodeState.UNKNOWN
    state_since: float = 0.0
    message: str = ""
    """Why the node is in its state, in the user's words."""
    revision: int = 0
    boot_id: str = ""
    """Names the boot of the host in which its agent last said hello."""
    key_rotation: int = 0
    """How often a user has ordered it to have another key for encrypted networks."""
    drain_most: int = 0
    """Most tasks of a service that a drain of it makes unavailable at a time; 0: all."""
    drain_deadline: float = 0.0
    """When a drain of it waits no more; 0: never."""
    downs: tuple[float, ...] = ()
    """When it lately went down, the newest last."""


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
class UpdateStatus:
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
class PastSpec:
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
class JobRun:
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
class JobStatus:
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
class Service:
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

    @property
    def policy(self) -> UpdatePolicy:
        """How its tasks are replaced now: as for an update, or as for a rollback."""
        back = (UpdateState.ROLLING_BACK, UpdateState.ROLLBACK_PAUSED)
        return self.spec.rollback if self.update.state in back else self.spec.update


class Health(IntEnum):
    """What the probes of a container say."""

    NONE = 0
    """There are no probes."""
    STARTING = 1
    """None has succeeded yet."""
    HEALTHY = 2
    UNHEALTHY = 3


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """What was observed of a task."""

    state: TaskState = TaskState.NEW
    at: float = 0.0
    """When it was observed."""
    message: str = ""
    """The reason, in the user's words: why it waits, failed or was refused."""
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
    """What the last probe that failed said, in one line; empty after one that succeeded."""
    lost: bool = False
    """It ended with its node's restart, through no fault of its own."""

    @property
    def works(self) -> bool:
        """Whether it runs and, where that is probed, is healthy."""
        return self.state is TaskState.RUNNING and self.health in (Health.NONE, Health.HEALTHY)


@dataclass(frozen=True, slots=True)
class Task:
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
    """How many tasks of this slot, or runs of this container, failed in a row before this one."""
    revision: int = 0
    container_name: str = ""
    """Of a standalone container; unique among them."""
    run: int = 0
    """The run that is wanted of a standalone container, from 1. Ahead of `status.run`: the run
    before is to end, and this one to begin."""
    auto_remove: bool = False
    """It goes when it has ended."""
    constraints: tuple[str, ...] = ()
    """Placement rules of a standalone container; a service's tasks have those of the service."""
    restarts: int = 0
    """How often its restart policy began a run since a user did."""
    stop_signal: str = ""
    """What this stop begins with; empty: what the spec says."""
    stop_grace: float = 0.0
    """Seconds that this stop gives until SIGKILL; 0: what the spec says, negative: none."""
    affinities: tuple[Affinity, ...] = ()
    """Likings of a standalone container; a service's tasks have those of the service."""
    job_run: int = 0
    """The number of the run of its job that it is of."""
    generic_resources: dict[str, str] = field(default_factory=dict)
    """What it was given of its node: kind → a number, or names."""
    documents: dict[str, int] = field(default_factory=dict)
    """Id of each secret and config that its spec names → the version that it has, or is to have."""

    @property
    def standalone(self) -> bool:
        """Whether it is a container of its own, of no service."""
        return not self.service_id

    @property
    def name(self) -> str:
        """What a user calls it, such as `web.3`."""
        return self.container_name or f"{self.service_name}.{self.slot}"


@dataclass(frozen=True, slots=True)
class PolicyPort:
    """A port of containers."""

    port: int = 0
    protocol: Protocol = Protocol.TCP


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """Whether connections inside a network are let through. All is open until something denies;
    what allows is an exception from all that denies."""

    id: str = ""
    created_at: float = 0.0
    allow: bool = False
    destination: str = ""
    """Name of the service or container that is connected to, now or later."""
    sources: tuple[str, ...] = ()
    """Names of those that connect; none: any."""
    ports: tuple[PolicyPort, ...] = ()
    """Of the destination's containers; none: all."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network and the slice of it that each node has."""

    id: str = ""
    name: str = ""
    created_at: float = 0.0
    driver: str = "overlay"
    subnet: str = ""
    node_prefix: int = 24
    """Prefix length of a node's slice."""
    vni: int = 0
    slices: dict[str, str] = field(default_factory=dict)
    """Node id → its subnet."""
    revision: int = 0
    internal: bool = False
    """It has no way out."""
    attachable: bool = False
    """As in Docker; here a container may be on any network."""
    encrypted: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    """For the driver, such as `mtu`."""
    ip_range: str = ""
    """The part of the subnet that nodes' slices are taken from; empty: all of it."""
    gateway: str = ""
    """One of the first slice, and each slice's is at the same place in it. Empty: the first."""
    subnet6: str = ""
    """A node's slice of it is the /64 of the same number as its IPv4 slice."""
    removing: bool = False
    """Somebody is removing it: it takes no new user."""
    policies: tuple[NetworkPolicy, ...] = ()
    """In the order in which they were made."""
    conflist: str = ""
    """Of driver `cni`: the configuration list (JSON)."""
    ipam_driver: str = ""
    """The plugin that gives out its addresses; empty: Orc, or its chain of CNI plugins."""
    ipam_options: dict[str, str] = field(default_factory=dict)

    @property
    def pool(self) -> str:
        """The part of the subnet that nodes' slices and VIPs are taken from."""
        return self.ip_range or self.subnet


@dataclass(frozen=True, slots=True)
class Image:
    """An image that some node has. Identified by the digest of its manifest."""

    id: str = ""
    names: tuple[str, ...] = ()
    """Full names with tag, such as `hello:1`."""
    config_digest: str = ""
    size: int = 0
    """Bytes of all blobs, compressed as they are stored."""
    layers: tuple[str, ...] = ()
    created_at: float = 0.0
    nodes: tuple[str, ...] = ()
    """Ids of the nodes that have it, sorted."""
    revision: int = 0
    indexes: tuple[str, ...] = ()
    """Digests of the multi-platform indexes that it was taken from, sorted."""
    labels: dict[str, str] = field(default_factory=dict)
    """As its config has them."""
    condemned: tuple[str, ...] = ()
    """Ids of those of its nodes that were away when it was removed: they remove it when they are
    back. Sorted."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What the cluster shows to one registry."""

    id: str = ""
    """The registry, such as `docker.io` or `reg.example:5000`."""
    created_at: float = 0.0
    username: str = ""
    sealed: str = ""
    """The password, encrypted with the cluster's key (base64)."""
    revision: int = 0


class VolumeScope(IntEnum):
    """Where a volume's data can be reached."""

    LOCAL = 0
    """On one node."""
    GLOBAL = 1
    """On every node that has its driver."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Data that outlives containers. Its name is its id."""

    id: str = ""
    created_at: float = 0.0
    driver: str = "local"
    options: dict[str, str] = field(default_factory=dict)
    """For the driver."""
    labels: dict[str, str] = field(default_factory=dict)
    scope: VolumeScope = VolumeScope.LOCAL
    node_id: str = ""
    """Where the data is, for life; empty for one of global scope, and before its first use."""
    removing: bool = False
    """Somebody is removing it: it takes no new user."""
    revision: int = 0

    @property
    def name(self) -> str:
        """What a user calls it."""
        return self.id


@dataclass(frozen=True, slots=True)
class Cluster:
    """The one object of cluster-wide settings."""

    id: str = ""
    created_at: float = 0.0
    ca_certificate: str = ""
    """PEM."""
    worker_token: str = ""
    manager_token: str = ""
    node_timeout: float = 5.0
    """Seconds of silence after which a node is down."""
    network_cidr: str = "10.128.0.0/14"
    revision: int = 0
    strategy: Strategy = Strategy.DEFAULT
    """Of the services that say nothing else, and of containers."""
    scrape_token: str = ""
    """What Prometheus shows to managers and agents; empty: nothing that it could."""


Object = Node | Service | Task | Network | Image | Volume | Cluster | Credential | Document
