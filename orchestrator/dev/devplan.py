# SPDX-License-Identifier: Apache-2.0
"""Names and addresses of a dev cluster and its hosts. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

Role = Literal["manager", "node"]

# Does not overlap the default pool of cluster networks, 10.128.0.0/14.
UNDERLAYS = IPv4Network("10.213.0.0/16")
MAX_NODES = 200
MAX_MANAGERS = 7

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_FIRST_MANAGER, _FIRST_NODE = 11, 21


class DevError(Exception):
    """An error of the dev cluster; its text is one line for the user."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """One host of a cluster."""

    cluster: str
    name: str
    role: Role
    address: IPv4Address
    tag: str

    @property
    def mac(self) -> str:
        """MAC address of its end of the veth pair, derived from the address: reboots keep it."""
        return "02:0d:" + ":".join(f"{byte:02x}" for byte in self.address.packed)

    @property
    def daemon(self) -> str:
        """Its daemon, which is also the subcommand of `orc` that runs it."""
        return "manager" if self.role == "manager" else "agent"

    @property
    def cgroup(self) -> str:
        """Name of the cgroup, below the root of each hierarchy, of all its containers."""
        return f"orc-{self.cluster}-{self.name}-{self.tag}"


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """A cluster. `config_home` and `home` locate the contexts to which its own is added.

    `tag` distinguishes it from clusters of the same name in other root file systems: containers and
    chroots may share this machine's network and cgroups.
    """

    name: str
    subnet: IPv4Network
    managers: int
    nodes: int
    home: str
    config_home: str | None
    tag: str

    @property
    def gateway(self) -> IPv4Address:
        """The machine's own address on the underlay."""
        return self.subnet[1]

    @property
    def hosts(self) -> tuple[HostPlan, ...]:
        """Managers first, then nodes."""
        managers = [
            HostPlan(
                self.name, f"manager{i + 1}", "manager", self.subnet[_FIRST_MANAGER + i], self.tag
            )
            for i in range(self.managers)
        ]
        nodes = [
            HostPlan(self.name, f"node{i + 1}", "node", self.subnet[_FIRST_NODE + i], self.tag)
            for i in range(self.nodes)
        ]
        return (*managers, *nodes)

    def host(self, name: str) -> HostPlan:
        """The host of that name. Raises DevError that lists the known names."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise DevError(f"no host {name!r} in dev cluster {self.name!r}: there are {known}")

    def to_json(self) -> str:
        """The content of `cluster.json`."""
        document = {
            "name": self.name,
            "subnet": str(self.subnet),
            "managers": self.managers,
            "nodes": self.nodes,
            "home": self.home,
            "config_home": self.config_home,
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, tag: str) -> ClusterPlan:
        """Parse the output of `to_json`. Raises ValueError, KeyError or TypeError."""
        document = json.loads(text)
        return cls(**{**document, "subnet": IPv4Network(document["subnet"]), "tag": tag})


def check_name(name: str) -> str:
    """The name, if valid: it becomes part of names of links and cgroups. Raises DevError."""
    if not _NAME.fullmatch(name):
        raise DevError(
            f"invalid cluster name {name!r}: use up to 32 lowercase letters, digits and dashes"
        )
    return name


def check_size(managers: int, nodes: int) -> None:
    """Raises DevError for unsupported numbers of hosts."""
    if not 1 <= managers <= MAX_MANAGERS:
        raise DevError(f"--managers {managers} is out of range: use 1 to {MAX_MANAGERS}")
    if not 1 <= nodes <= MAX_NODES:
        raise DevError(f"--nodes {nodes} is out of range: use 1 to {MAX_NODES}")


def link_name(tag: str) -> str:
    """Name of the machine's link to the switch; the kernel allows 15 characters."""
    return f"orcdev-{tag}"


def is_host_cgroup(cluster: str, tag: str, directory: str) -> bool:
    """Whether a cgroup of that name belongs to a host of the cluster, past or present."""
    pattern = rf"orc-{re.escape(cluster)}-(manager|node)\d+-{re.escape(tag)}"
    return re.fullmatch(pattern, directory) is not None


def choose_subnet(cluster: str, taken: Iterable[IPv4Network]) -> IPv4Network:
    """A free /24, if possible always the same for a cluster's name.

    Raises DevError if none is left.
    """
    used = [network for network in taken if network.overlaps(UNDERLAYS)]
    subnets = list(UNDERLAYS.subnets(new_prefix=24))
    start = int.from_bytes(hashlib.sha256(cluster.encode()).digest()[:2], "big") % len(subnets)
    for subnet in subnets[start:] + subnets[:start]:
        if not any(subnet.overlaps(network) for network in used):
            return subnet
    raise DevError(f"no free /24 in {UNDERLAYS}: remove other dev clusters with 'orc dev down'")


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the machine: destination and link (empty: none)."""

    to: IPv4Network
    link: str


def parse_routes(text: str) -> list[Route]:
    """The output of `ip -j -4 route show table all`, without the default route."""
    routes = [route for route in json.loads(text or "[]") if route["dst"] != "default"]
    return [
        Route(ipaddress.IPv4Network(route["dst"], strict=False), route.get("dev", ""))
        for route in routes
    ]
