"""Nodes as the store keeps them: what an agent reports, and what operators say."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from orchestrator.model.extensible import Extensible
from orchestrator.model.placement import Resources


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


REGISTRY_CREDENTIALS = "registry-credentials"
"""Feature of a node whose host has credentials for registries, or helpers that know them."""


@dataclass(frozen=True, slots=True)
class TunnelKey(Extensible):
    """A node's public WireGuard key, and the UDP port at which the node answers to it."""

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
    restricted: bool = False
    """Whether only what is in `allowed` may be given to containers; see `allowances`."""
    allowed: tuple[str, ...] = ()
    """Set by operators."""
