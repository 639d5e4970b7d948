"""What of the cluster's hosts is closed to containers, unless an operator opens it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from orchestrator.model.names import near_miss

CONTROL_PLANE, METRICS, METADATA = "control-plane", "metrics", "metadata"
ACCESS = (CONTROL_PLANE, METRICS, METADATA)
"""The API, joins, images and etcd of hosts of the cluster; their metrics and the web page; the
metadata services of clouds."""

ETCD_PORTS = (2379, 2380)
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
    """What is to be open, each once and in order; `all` is all of it, `none` nothing. Raises
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
    control = {port + more for port in apis for more in (0, 1)} | {7423, images, *ETCD_PORTS}
    read = {port + 2 for port in apis} | {7424, metrics}
    closed = set[int]()
    if CONTROL_PLANE not in access:
        closed |= control
    if METRICS not in access:
        closed |= read
    return tuple(sorted(port for port in closed if port))
