# SPDX-License-Identifier: Apache-2.0
"""Nodes as stored: what an agent reports, and what operators set."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from orchestrator.model.extensible import Extensible
from orchestrator.model.placement import Resources


class NodeState(IntEnum):
    """A node's health, as managers see it."""

    UNKNOWN = 0
    """No report since this leader's term began."""
    READY = 1
    DOWN = 2


class Availability(IntEnum):
    """Which tasks a node accepts, as its operator set it."""

    ACTIVE = 0
    PAUSE = 1
    """Keeps its tasks, accepts no new ones."""
    DRAIN = 2
    """Its tasks are moved to other nodes."""


REGISTRY_CREDENTIALS = "registry-credentials"
"""Feature of a node whose host has credentials for registries, or helpers that know them."""


@dataclass(frozen=True, slots=True)
class TunnelKey(Extensible):
    """A node's public WireGuard key, and the UDP port on which it listens with that key."""

    public: str = ""
    """32 bytes in base64."""
    port: int = 0


@dataclass(frozen=True, slots=True)
class NodeDescription(Extensible):
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
    """Given to the agent on its own command line: `engine.labels.NAME` in placement rules."""
    blob_port: int = 0
    """TCP port on which the node serves image blobs to other nodes."""
    metrics_port: int = 0
    """TCP port of its metrics (HTTPS)."""
    network_features: tuple[str, ...] = ()
    """Supported features of networks, such as `encrypted`, `cni`."""
    routes: tuple[str, ...] = ()
    """Subnets that the host has routes to, which no network may overlap."""
    volume_drivers: dict[str, str] = field(default_factory=dict)
    """Name of each running volume plugin → `local` or `global`."""
    path_mtu: int = 0
    """Path MTU: bytes of the largest packet that reaches every other node unfragmented,
    as measured; 0: unknown."""
    trouble: str = ""
    """A problem of the host and its remedy; empty: none."""
    generic_resources: dict[str, str] = field(default_factory=dict)
    """Kind → number or names: `4`, or `/dev/a,/dev/b`."""
    features: tuple[str, ...] = ()
    """Features of its agent; see `model.compatibility.agent_features`."""
    tunnel_keys: tuple[TunnelKey, ...] = ()
    """Keys for encrypted networks, the oldest first; two during a rotation."""
    cni_plugins: tuple[str, ...] = ()
    """Names of the CNI plugins (programs) that it has, sorted."""
    network_drivers: dict[str, str] = field(default_factory=dict)
    """Name of each running network plugin of Docker's protocol → `local` or `global` (its networks
    span nodes)."""
    ipam_drivers: tuple[str, ...] = ()
    """Names of the running IPAM plugins of Docker's protocol, sorted."""


@dataclass(frozen=True, slots=True)
class SessionRecord(Extensible):
    """Which manager has the session of a node. It ends with that manager's lease."""

    id: str = ""
    """Of the node."""
    manager_id: str = ""
    session_id: str = ""
    silent: bool = False
    """Whether the manager has heard nothing from the node for the cluster's node timeout."""
    revision: int = 0
    certificate_ca: str = ""
    """Key id of the CA that issued the certificate with which the node opened it."""


@dataclass(frozen=True, slots=True)
class EndpointProgress(Extensible):
    """How far the nodes in session with one manager follow the endpoint table. It ends with that
    manager's lease."""

    id: str = ""
    """Of the manager."""
    through: int = 0
    """Store revision up to which all of them have applied the changes of endpoints."""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Node(Extensible):
    """A host that runs tasks."""

    id: str = ""
    created_at: float = 0.0
    role: str = "worker"
    availability: Availability = Availability.ACTIVE
    labels: dict[str, str] = field(default_factory=dict)
    """Set by operators: `node.labels.NAME` in placement rules."""
    description: NodeDescription = field(default_factory=NodeDescription)
    state: NodeState = NodeState.UNKNOWN
    state_since: float = 0.0
    message: str = ""
    """Why the node is in its state."""
    revision: int = 0
    boot_id: str = ""
    """Id of the host's boot in which its agent last opened a session."""
    key_rotation: int = 0
    """How often a user has rotated its key for encrypted networks."""
    drain_most: int = 0
    """Maximum tasks of a service that a drain makes unavailable at a time; 0: no limit."""
    drain_deadline: float = 0.0
    """When a drain stops all remaining tasks; 0: never."""
    downs: tuple[float, ...] = ()
    """Times of its last failures, the newest last."""
    restricted: bool = False
    """Whether containers get only the host access in `allowed`; see `validation.host_access`."""
    allowed: tuple[str, ...] = ()
    """Set by operators."""
    awaited: bool = False
    """It has not reconnected since the cluster was restored, and is not called down until then."""
    orphan_removals: int = 0
    """How often a user has removed its orphans: containers that a restored store does not know."""
