# SPDX-License-Identifier: Apache-2.0
"""Stored objects. `revision` is the store's revision of the object as read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from orchestrator.model.administration.access import (
    CaRotation,
    Certificate,
    ExternalCa,
    KeyRotation,
    PageSession,
    Revocation,
)
from orchestrator.model.administration.backups import BackupSchedule
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.documents import Document
from orchestrator.model.extensible import Extensible
from orchestrator.model.nodes import EndpointProgress, Node, SessionRecord
from orchestrator.model.placement import Strategy
from orchestrator.model.scheduling.queues import Queue
from orchestrator.model.services import Service
from orchestrator.model.specs import Protocol
from orchestrator.model.tasks import Task


@dataclass(frozen=True, slots=True)
class PolicyPort(Extensible):
    """A port of containers."""

    port: int = 0
    protocol: Protocol = Protocol.TCP


@dataclass(frozen=True, slots=True)
class NetworkPolicy(Extensible):
    """A rule on connections inside a network. All are allowed until a policy denies them; a policy
    that allows is an exception from all that deny."""

    id: str = ""
    created_at: float = 0.0
    allow: bool = False
    destination: str = ""
    """Name of the destination service or container, which may not exist yet."""
    sources: tuple[str, ...] = ()
    """Names of the source services and containers; empty: any."""
    ports: tuple[PolicyPort, ...] = ()
    """Ports of the destination's containers; empty: all."""


@dataclass(frozen=True, slots=True)
class Network(Extensible):
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
    """It has no route out of the network."""
    attachable: bool = False
    """Kept for Docker compatibility; containers may join any network."""
    encrypted: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    """For the driver, such as `mtu`."""
    ip_range: str = ""
    """The part of the subnet that nodes' slices are taken from; empty: all of it."""
    gateway: str = ""
    """An address of the first slice; each slice's gateway has the same offset. Empty: the first."""
    subnet6: str = ""
    """A node's slice of it is the /64 of the same number as its IPv4 slice."""
    removing: bool = False
    """It is being removed: new users are rejected."""
    remove_when_unused: bool = False
    """A tombstone: a manager removes it when the last task of a removed service has stopped."""
    policies: tuple[NetworkPolicy, ...] = ()
    """In the order in which they were made."""
    conflist: str = ""
    """With driver `cni`: the configuration list (JSON)."""
    ipam_driver: str = ""
    """The plugin that allocates its addresses; empty: Orc, or its chain of CNI plugins."""
    ipam_options: dict[str, str] = field(default_factory=dict)

    @property
    def pool(self) -> str:
        """The part of the subnet that nodes' slices and VIPs are taken from."""
        return self.ip_range or self.subnet


@dataclass(frozen=True, slots=True)
class Image(Extensible):
    """An image that at least one node has, identified by the digest of its manifest."""

    id: str = ""
    names: tuple[str, ...] = ()
    """Full names with tag, such as `hello:1`, that users gave it: by a build, a load, a pull, a
    tag, an import or a commit."""
    config_digest: str = ""
    size: int = 0
    """Bytes of all blobs, compressed as they are stored."""
    layers: tuple[str, ...] = ()
    created_at: float = 0.0
    nodes: tuple[str, ...] = ()
    """Ids of the nodes that have it, sorted."""
    revision: int = 0
    indexes: tuple[str, ...] = ()
    """Digests of the multi-platform indexes that list it, sorted."""
    labels: dict[str, str] = field(default_factory=dict)
    """From its config."""
    pending_removal: tuple[str, ...] = ()
    """Ids of nodes that were down when it was removed: they remove it when back. Sorted."""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    """From its config."""
    reported_names: tuple[str, ...] = ()
    """Names that nodes reported: displayed, but never used to resolve a name."""


@dataclass(frozen=True, slots=True)
class Credential(Extensible):
    """The cluster's credentials for one registry."""

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
class Volume(Extensible):
    """Data that outlives containers. Its name is its id."""

    id: str = ""
    created_at: float = 0.0
    driver: str = "local"
    options: dict[str, str] = field(default_factory=dict)
    """For the driver."""
    labels: dict[str, str] = field(default_factory=dict)
    scope: VolumeScope = VolumeScope.LOCAL
    node_id: str = ""
    """The node that it is pinned to; empty for global scope, and before its first use."""
    removing: bool = False
    """It is being removed: new users are rejected."""
    revision: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        return self.id


@dataclass(frozen=True, slots=True)
class Cluster(Extensible):
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
    """Default of services, and the strategy of containers."""
    scrape_token: str = ""
    """Bearer token with which Prometheus scrapes managers and agents; empty: disabled."""
    certificate_lifetime: float = 0.0
    """Validity of new certificates in seconds; 0: the default."""
    secrets_key_id: str = ""
    """Id of the key that secrets are encrypted with; empty in a cluster of an earlier version."""
    container_access: tuple[str, ...] = ()
    """Which ports of the hosts containers can reach; see `validation.host_access`."""
    incarnation: str = ""
    """Changes with each restore from a backup; empty in a cluster that was never restored."""
    key_rotation: KeyRotation = field(default_factory=KeyRotation)
    unlock_key: str = ""
    """The key that locks the managers' key files, sealed with the data key; empty: they are not
    locked."""
    ca_rotation: CaRotation = field(default_factory=CaRotation)
    backup_schedule: BackupSchedule = field(default_factory=BackupSchedule)
    external_ca: ExternalCa = field(default_factory=ExternalCa)
    """Where certificates are signed, if not by the managers."""
    rebalance_every: float = 0.0
    """Seconds between two automatic moves of running tasks; 0: none are made."""
    queues: tuple[Queue, ...] = ()
    """Of jobs, by name."""
    prometheus: str = ""
    """Base URL of the Prometheus that the leader sends autoscaling queries to; empty: none."""

    @property
    def trusted_cas(self) -> str:
        """The CAs to trust, PEM; the one that signs is the first."""
        rotation = self.ca_rotation
        others = [each for each in (rotation.former, rotation.successor) if each]
        return "".join(dict.fromkeys([self.ca_certificate, *others]))


Object = (
    Node
    | Service
    | Task
    | Network
    | Image
    | Volume
    | Cluster
    | Credential
    | Document
    | Certificate
    | Revocation
    | PageSession
    | Manager
    | ManagerPresence
    | SessionRecord
    | EndpointProgress
    | Orphan
)
