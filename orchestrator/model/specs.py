# SPDX-License-Identifier: Apache-2.0
"""Specs: what users declare. A spec is stored as given and never edited by the system."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from orchestrator.model.dependencies import Dependency
from orchestrator.model.documents import FileReference
from orchestrator.model.extensible import Extensible
from orchestrator.model.hooks import Hook as Hook
from orchestrator.model.jobs import JobSpec
from orchestrator.model.mounts import MountSpec
from orchestrator.model.placement import Disconnect, GenericResource, Strategy
from orchestrator.model.placement import Resources as Resources
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.scheduling.autoscaling import AutoscaleSpec
from orchestrator.model.scheduling.disruptions import DisruptionBudget

DEFAULT_SHARES = 128
"""CPU shares that the scheduler counts for a task without a reservation."""

DEFAULT_MEMORY = 64 << 20
"""Bytes of memory that the scheduler counts for a task without a reservation."""


STACK_LABEL = "com.docker.stack.namespace"
"""The label of services, networks, … that says which stack they are of; Docker's name for it."""


class RestartCondition(IntEnum):
    """When a finished task is replaced."""

    ANY = 0
    ON_FAILURE = 1
    NONE = 2
    UNLESS_STOPPED = 3
    """As ANY; Docker's name for it on containers."""


class ServiceMode(IntEnum):
    """How many tasks a service has, and whether they end."""

    REPLICATED = 0
    GLOBAL = 1
    REPLICATED_JOB = 2
    """A number of tasks that run to completion."""
    GLOBAL_JOB = 3
    """One such task on each node."""

    @property
    def is_job(self) -> bool:
        """Whether its tasks run to completion."""
        return self in (ServiceMode.REPLICATED_JOB, ServiceMode.GLOBAL_JOB)

    @property
    def is_global(self) -> bool:
        """Whether it has one task on each node."""
        return self in (ServiceMode.GLOBAL, ServiceMode.GLOBAL_JOB)


class EndpointMode(IntEnum):
    """What the name of a service resolves to."""

    VIP = 0
    """A VIP in each network, load-balanced over its tasks."""
    DNSRR = 1
    """The addresses of its tasks."""


class Protocol(IntEnum):
    """Transport of a published port."""

    TCP = 0
    UDP = 1


class PublishMode(IntEnum):
    """Where a published port is open."""

    INGRESS = 0
    """On every node, load-balanced over the tasks wherever they run."""
    HOST = 1
    """On the node of each task, for that task."""


@dataclass(frozen=True, slots=True)
class PortSpec(Extensible):
    """A container port published on nodes."""

    published: int = 0
    target: int = 0
    protocol: Protocol = Protocol.TCP
    mode: PublishMode = PublishMode.INGRESS


@dataclass(frozen=True, slots=True)
class Ulimit(Extensible):
    """A resource limit of the process (setrlimit(2)); -1 is no limit."""

    name: str = ""
    """Without `RLIMIT_`, in small letters, such as `nofile`."""
    soft: int = 0
    hard: int = 0


@dataclass(frozen=True, slots=True)
class HealthCheck(Extensible):
    """A container's health check (Docker's HEALTHCHECK).

    `model.validation.health_checks` has the kinds of tests and the defaults.
    """

    test: tuple[str, ...] = ()
    """Kind and arguments; empty: the image's. `NONE` is no check, `CMD` a program in the container,
    `CMD-SHELL` a line for its shell; `HTTP`, `TCP` and `GRPC` are probes from its node."""
    interval: float = 0.0
    """Seconds between two probes."""
    timeout: float = 0.0
    """Seconds that a probe may take."""
    start_period: float = 0.0
    """Seconds after the start in which a failure does not count."""
    start_interval: float = 0.0
    """Maximum seconds between two probes until the first success."""
    retries: int = 0
    """Consecutive failures after which it is unhealthy."""


@dataclass(frozen=True, slots=True)
class LogConfig(Extensible):
    """Where a container's output goes; `model.formats.log_options` has the drivers and options."""

    driver: str = ""
    """Logging driver; empty: the node's default."""
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerSpec(Extensible):
    """A container: image, process and isolation."""

    image: str = ""
    entrypoint: tuple[str, ...] = ()
    """Replaces the image's entrypoint when not empty; a single empty string clears it."""
    command: tuple[str, ...] = ()
    """Replaces the image's command when not empty."""
    env: tuple[str, ...] = ()
    """`KEY=value` entries over those of the image."""
    user: str = ""
    workdir: str = ""
    hostname: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    """For the OCI runtime and its hooks, in the container's `config.json`."""
    stop_signal: str = ""
    """Name such as `SIGTERM`; empty: the image's, else SIGTERM."""
    stop_grace: float = 10.0
    """Seconds from the start of a stop, including its `pre_stop` hooks, to SIGKILL."""
    read_only: bool = False
    pids_limit: int = 0
    """Maximum number of processes in the container; 0: the node's default, -1: no limit."""
    tty: bool = False
    """Whether its standard streams are a terminal."""
    open_stdin: bool = False
    """Whether it has a standard input that clients can attach to."""
    domainname: str = ""
    hosts: tuple[str, ...] = ()
    """`NAME:IP` entries for /etc/hosts."""
    dns: tuple[str, ...] = ()
    """Name servers in place of those of the network or node."""
    dns_search: tuple[str, ...] = ()
    """Search domains in place of the node's; a single `.` clears them."""
    dns_options: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """Supplementary groups of the process, names or ids."""
    cap_add: tuple[str, ...] = ()
    """Capabilities added to the default set, such as `CAP_NET_ADMIN`; `ALL`: every one."""
    cap_drop: tuple[str, ...] = ()
    """Capabilities removed from the default set; `ALL` leaves only `cap_add`."""
    privileged: bool = False
    """All capabilities and devices, nothing masked, no seccomp, the host's users."""
    devices: tuple[str, ...] = ()
    """`HOST:CONTAINER:rwm` entries."""
    seccomp: str = ""
    """A profile as JSON text, or `unconfined`; empty: the node's default profile."""
    apparmor: str = ""
    """The name of a profile that the node has loaded, or `unconfined`; empty: the node's default
    profile, where its kernel has AppArmor."""
    new_privileges: bool = False
    """Whether set-user-id programs may gain privileges (no_new_privs is off)."""
    sysctls: dict[str, str] = field(default_factory=dict)
    ulimits: tuple[Ulimit, ...] = ()
    shm_size: int = 0
    """Bytes of /dev/shm; 0: 64 MiB."""
    tmpfs: tuple[str, ...] = ()
    """`PATH[:OPTIONS]` entries, each an empty file system in memory."""
    init: bool = False
    """Whether an init process runs as PID 1 and reaps zombies."""
    oom_score_adj: int = 0
    """OOM score adjustment, -1000 to 1000; 0: that of its class, see `qos`."""
    cpuset_cpus: str = ""
    """CPUs that it may run on, such as `0-1,3`; empty: all."""
    memory_swap: int = 0
    """Bytes of memory plus swap; 0: no swap beyond the memory limit, -1: no limit."""
    userns: str = ""
    """`host`: the host's users; empty or `private`: a range of user ids of its own."""
    runtime: str = ""
    """The OCI runtime's program; empty: the node's default."""
    rootfs: str = ""
    """`host`: a read-only view of the node's own files in place of an image."""
    pid: str = ""
    """PID namespace. `host`: the node's; `container:NAME`: that of a container, on whose node it is
    placed; empty or `private`: its own."""
    ipc: str = ""
    """IPC namespace. `host`: the node's, with its /dev/shm; `container:NAME`: that of a container,
    on whose node it is placed; empty or `private`: its own; `shareable`: its own, which others may
    join."""
    mounts: tuple[MountSpec, ...] = ()
    """Binds, volumes and tmpfs; one per target."""
    volumes_from: tuple[str, ...] = ()
    """Containers whose mounts it shares, `NAME[:ro|:rw]`: it is placed on their node."""
    storage_size: int = 0
    """Maximum bytes of the writable layer; 0: limited by the node's disk only."""
    health: HealthCheck = field(default_factory=HealthCheck)
    secrets: tuple[FileReference, ...] = ()
    """Secrets, mounted as files in memory."""
    configs: tuple[FileReference, ...] = ()
    """Configs, mounted as files in memory."""
    logging: LogConfig = field(default_factory=LogConfig)
    post_start: tuple[Hook, ...] = ()
    """Run in order after its program has started; it is RUNNING when all have succeeded, and FAILED
    when one fails."""
    pre_stop: tuple[Hook, ...] = ()
    """Run in order before the stop signal of an ordered stop, within the stop grace period."""

    def arguments(self, entrypoint: Iterable[str], command: Iterable[str]) -> list[str]:
        """The process's arguments, given those of its image. An entrypoint in the spec also
        discards the image's command."""
        if self.entrypoint:
            return [*filter(None, self.entrypoint), *self.command]
        return [*entrypoint, *(self.command or command)]


@dataclass(frozen=True, slots=True)
class RestartPolicy(Extensible):
    """When and how fast a finished task is replaced (Docker's `--restart-*`)."""

    condition: RestartCondition = RestartCondition.ANY
    delay: float = 5.0
    """Seconds before a replacement starts; grows with each failure in a row (back-off)."""
    max_attempts: int = 0
    """Maximum restarts of a slot within `window`; 0: no limit."""
    window: float = 0.0
    """Seconds over which attempts are counted; 0: forever."""


class UpdateOrder(IntEnum):
    """Whether an update stops the old task or starts the new one first."""

    STOP_FIRST = 0
    """The old one ends, then the new one starts."""
    START_FIRST = 1
    """The new one starts; the old one stops when the new one works."""


class FailureAction(IntEnum):
    """What to do when too many tasks of an update fail."""

    PAUSE = 0
    """Update no further slot until a user resumes it."""
    CONTINUE = 1
    ROLLBACK = 2
    """Roll back to the previous spec."""


@dataclass(frozen=True, slots=True)
class UpdatePolicy(Extensible):
    """How an update replaces tasks."""

    parallelism: int = 1
    """Slots replaced at a time; 0: all at once."""
    delay: float = 0.0
    """Seconds between two batches."""
    order: UpdateOrder = UpdateOrder.STOP_FIRST
    monitor: float = 5.0
    """Seconds that a new task must run: one that ends sooner counts as a failure of the update."""
    failure_action: FailureAction = FailureAction.PAUSE
    max_failure_ratio: float = 0.0
    """Fraction of the slots that may fail before the failure action is taken."""
    canary: int = 0
    """Slots that are updated before the update waits to be promoted; 0: no canaries."""


DEFAULT_NETWORK = "default"
"""The network of tasks that name none."""

NO_NETWORK, HOST_NETWORK, BRIDGE_NETWORK = "none", "host", "bridge"
"""Networks that every cluster has: loopback only, the node's own, a bridge of the node with NAT."""

CONTAINER_NETWORK = "container:"
"""Prefix of a network's name that is another container's namespace."""


@dataclass(frozen=True, slots=True)
class NetworkAttachment(Extensible):
    """A container's attachment to a network."""

    network: str = ""
    """Its name; or `none`, `host`, `container:NAME`, which stand alone."""
    aliases: tuple[str, ...] = ()
    """Additional DNS names in the network."""
    ip: tuple[str, ...] = ()
    """Fixed IPv4 addresses: of a service slot n has the nth, of a container the first."""
    ip6: tuple[str, ...] = ()
    mac: str = ""
    """Fixed MAC address; empty: generated."""
    options: dict[str, str] = field(default_factory=dict)
    """For the network's driver, if that is a plugin."""


_DEFAULT_ATTACHMENTS = (NetworkAttachment(DEFAULT_NETWORK),)


@dataclass(frozen=True, slots=True)
class TaskSpec(Extensible):
    """What one task is made from. A change here replaces the tasks."""

    container: ContainerSpec = field(default_factory=ContainerSpec)
    reservation: Resources = field(default_factory=Resources)
    """What the scheduler counts."""
    limit: Resources = field(default_factory=Resources)
    """What the kernel enforces: memory as a hard limit, shares as a CPU quota (1024 a core)."""
    shares: int = 0
    """CPU weight that the kernel gets (`--cpu-shares`); 0: the reservation, else the default."""
    ports: tuple[PortSpec, ...] = ()
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    force: int = 0
    """Incremented to replace tasks although nothing else changed."""
    networks: tuple[NetworkAttachment, ...] = ()
    """One per network; none: the cluster's default network."""
    generic_resources: tuple[GenericResource, ...] = ()
    """Generic resources that it needs, such as two GPUs; one entry per kind."""

    @property
    def attachments(self) -> tuple[NetworkAttachment, ...]:
        """The networks that it is on, the default one if it names none."""
        return self.networks or _DEFAULT_ATTACHMENTS

    @property
    def network_names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(each.network for each in self.attachments)

    @property
    def on_host_network(self) -> bool:
        """Whether it has the node's own network."""
        return HOST_NETWORK in self.network_names

    @property
    def counted(self) -> Resources:
        """What the scheduler counts for a task of this spec: the reservation, else what the
        kernel enforces, else the defaults."""
        return Resources(
            shares=self.reservation.shares or self.shares or DEFAULT_SHARES,
            memory=self.reservation.memory or self.limit.memory or DEFAULT_MEMORY,
        )

    @property
    def weight(self) -> int:
        """The CPU weight that the kernel gets, in shares."""
        return self.shares or self.reservation.shares or DEFAULT_SHARES


@dataclass(frozen=True, slots=True)
class ServiceSpec(Extensible):
    """What a user declares: a name, what to run, and how many of it."""

    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    mode: ServiceMode = ServiceMode.REPLICATED
    replicas: int = 1
    task: TaskSpec = field(default_factory=TaskSpec)
    update: UpdatePolicy = field(default_factory=UpdatePolicy)
    constraints: tuple[str, ...] = ()
    """Placement rules such as `node.labels.zone==a`; all must hold."""
    endpoint_mode: EndpointMode = EndpointMode.VIP
    rollback: UpdatePolicy = field(default_factory=UpdatePolicy)
    """How a rollback replaces tasks."""
    max_per_node: int = 0
    """Maximum tasks per node; 0: no limit."""
    spread: tuple[str, ...] = ()
    """Attributes such as `node.labels.zone` over whose values tasks are spread evenly: the first
    before the second, and all before spreading over nodes."""
    depends_on: tuple[Dependency, ...] = ()
    """Services that must be started, healthy or completed before a task of this one starts."""
    affinities: tuple[Affinity, ...] = ()
    """Affinities and anti-affinities to nodes and services."""
    job: JobSpec = field(default_factory=JobSpec)
    """Of the modes that are jobs; `replicas` is the number of completions."""
    strategy: Strategy = Strategy.DEFAULT
    on_disconnect: Disconnect = field(default_factory=Disconnect)
    """What to do with tasks whose node is down."""
    disruption: DisruptionBudget = field(default_factory=DisruptionBudget)
    """How many of its tasks the cluster may stop at a time."""
    priority: int = 0
    """Of its tasks: they are placed before those of lower priority, and may preempt them."""
    autoscale: AutoscaleSpec = field(default_factory=AutoscaleSpec)
    """Bounds and targets of the number of replicas."""
