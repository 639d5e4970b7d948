# SPDX-License-Identifier: Apache-2.0
"""Host access: what containers may use of nodes only if an operator allows it. Pure.

**Allowances** are per node. A container with any of these can act on the host beyond its own
limits, so each node that joins allows none of them until its operator says so (`orc node update
--allow`). A node that joined before there were allowances allows all, so that an upgrade stops
nothing.

**Container access** is per cluster: which ports of the cluster's hosts containers can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from orchestrator.model.names import near_miss

if TYPE_CHECKING:
    from orchestrator.model.nodes import Node
    from orchestrator.model.specs import ContainerSpec, TaskSpec


PRIVILEGED = "privileged"
DEVICES = "devices"
HOST_NETWORK = "host-network"
HOST_USERS = "host-users"
HOST_FILES = "host-files"
HOST_PID = "host-pid"
HOST_IPC = "host-ipc"
RUNTIME_ANNOTATIONS = "runtime-annotations"
UNCHECKED_SOURCES = "unchecked-sources"

ALL = "all"
"""Means all allowances."""

_STEERING = (
    *("run.oci.", "org.criu.", "org.systemd.property.", "org.opencontainers.runc."),
    *("io.katacontainers.", "dev.gvisor."),
)
"""Prefixes of annotations that OCI runtimes obey outside of the container: where they write, which
sockets and plugins they use, and in which unit they run it."""


def steers_runtime(annotation: str) -> bool:
    """Whether an OCI runtime obeys the annotation of this name on the host."""
    return annotation.startswith(_STEERING)


_WANTS: dict[str, tuple[Callable[[TaskSpec], bool], str]] = {
    PRIVILEGED: (lambda spec: _is_privileged(spec.container), "privileged containers"),
    DEVICES: (lambda spec: bool(spec.container.devices), "containers with devices"),
    HOST_NETWORK: (
        lambda spec: spec.on_host_network,
        "containers on the host's network",
    ),
    HOST_USERS: (
        lambda spec: spec.container.userns == "host",
        "containers with the host's users",
    ),
    HOST_FILES: (
        lambda spec: bool(spec.container.rootfs),
        "containers with the host's files",
    ),
    HOST_PID: (lambda spec: spec.container.pid == "host", "containers that see all processes"),
    HOST_IPC: (
        lambda spec: spec.container.ipc == "host",
        "containers with the host's shared memory",
    ),
    RUNTIME_ANNOTATIONS: (
        lambda spec: any(map(steers_runtime, spec.container.annotations)),
        "containers with annotations that steer the OCI runtime",
    ),
}
"""Name → whether a container needs it, and the description of such containers."""

_OF_NETWORKS = {UNCHECKED_SOURCES: "containers on networks without source checks"}
"""Allowances needed because of networks: name → the description of such containers."""

ALLOWANCES = (*_WANTS, *_OF_NETWORKS)


def _is_privileged(spec: ContainerSpec) -> bool:
    """Whether it, or a program that runs in it by its spec, has all capabilities."""
    return spec.privileged or any(hook.privileged for hook in (*spec.post_start, *spec.pre_stop))


def wanted(spec: TaskSpec) -> tuple[str, ...]:
    """The allowances that a task's node must have."""
    return tuple(name for name, (asks, _) in _WANTS.items() if asks(spec))


def allows(node: Node, name: str) -> bool:
    """Whether the node's operator allows it."""
    return not node.restricted or name in node.allowed


def allowed(node: Node) -> tuple[str, ...]:
    """All that the node's operator allows."""
    return tuple(name for name in ALLOWANCES if allows(node, name))


def refusal(name: str, node: str = "") -> str:
    """The reason and remedy when a node (of this hostname, if known) rejects a container."""
    words = _OF_NETWORKS[name] if name in _OF_NETWORKS else _WANTS[name][1]
    command = f"orc node update --allow {name} {node or 'NODE'}"
    if node:
        return f"node {node} does not allow {words} ({command})"
    return f"{words} are not allowed ({command})"


def parse_allowances(names: Collection[str]) -> tuple[str, ...]:
    """Allowances as a user names them, `all` for every one. Raises ValueError."""
    for name in names:
        if name not in (*ALLOWANCES, ALL):
            raise ValueError(f"{name!r} is unknown; known are {', '.join(ALLOWANCES)} and {ALL}")
    return tuple(name for name in ALLOWANCES if name in names or ALL in names)


CONTROL_PLANE, METRICS, METADATA = "control-plane", "metrics", "metadata"
ACCESS = (CONTROL_PLANE, METRICS, METADATA)
"""The API, joins, images and etcd of hosts of the cluster; their metrics and the web page; the
metadata services of clouds."""

ETCD_PORTS = (2379, 2380)
PEER_OFFSET = 5
"""Default port of a manager's etcd member for other members, relative to its control port."""
METADATA_ADDRESSES = (
    "169.254.169.254",  # AWS, Azure, Google, OpenStack, DigitalOcean, Oracle, Hetzner
    "169.254.170.2",  # AWS: credentials of ECS tasks
    "168.63.129.16",  # Azure: the host agent
    "100.100.100.200",  # Alibaba
    "fd00:ec2::254",  # AWS
    "fd20:ce::254",  # Google
    "fd00:42::42",  # Scaleway
)


def read_access(names: Iterable[str]) -> tuple[str, ...]:
    """The accesses to open, each once and in order; `all` is every one, `none` is none. Raises
    ValueError for an unknown name."""
    found = set()
    for name in names:
        if name == "all":
            found |= set(ACCESS)
        elif name in ACCESS:
            found.add(name)
        elif name != "none":
            known = (*ACCESS, "all", "none")
            meant = near_miss(name, known)
            hint = f"did you mean '{meant}'?" if meant else f"there are {', '.join(known)}"
            raise ValueError(f"'{name}' is nothing that containers can be given access to; {hint}")
    return tuple(name for name in ACCESS if name in found)


def closed_ports(
    access: Collection[str], managers: Iterable[int], images: int, metrics: int
) -> tuple[int, ...]:
    """TCP ports of the cluster's hosts that are closed to containers.

    `managers` are the ports of the managers' APIs, `images` and `metrics` are those of this node's
    agent, beside the ones that all have unless they were started with others.
    """
    apis = {7420, *managers}
    control = {port + more for port in apis for more in (0, 1, PEER_OFFSET)}
    control |= {7423, images, *ETCD_PORTS}
    read = {port + 2 for port in apis} | {7424, metrics}
    closed = set[int]()
    if CONTROL_PLANE not in access:
        closed |= control
    if METRICS not in access:
        closed |= read
    return tuple(sorted(port for port in closed if port))
