# SPDX-License-Identifier: Apache-2.0
"""Reports of nodes, checked against what managers decided.

A node speaks only for itself: its own tasks, addresses of its own slices, its own address,
hostname and tunnel keys. A false claim is dropped; the rest of the report counts.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from math import isfinite

from orchestrator.manager.planning.networking.addresses import Address, slice6, slice_gateway, twin
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.extensible import is_known
from orchestrator.model.formats.conflist import wants_slices
from orchestrator.model.formats.generic_resources import parse_supply
from orchestrator.model.networks import CNI, SMALLEST_MTU, is_sliced, own_addresses
from orchestrator.model.nodes import Node, NodeDescription, NodeState, TunnelKey
from orchestrator.model.objects import Image, Network
from orchestrator.model.specs import NetworkAttachment
from orchestrator.model.states import Owner, TaskState, is_terminal, may_move
from orchestrator.model.tasks import Task, TaskStatus

LONGEST_TEXT = 4096
"""Characters of a message that are stored."""

LONGEST_WORD, MOST_WORDS = 1024, 256
"""Characters of each name or value that a node reports of itself, and how many of a kind, that are
stored."""

LONGEST_ARGUMENT = 1 << 16
"""Characters of a label or an argument of an image."""

MOST_IMAGES = 10_000
"""Of a node."""

MOST_ORPHANS = 1000
"""Of a node."""

MOST_RESOURCES = 1 << 56
"""CPU shares or bytes that a node can have."""

_HOSTNAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", re.ASCII)

_TASK_ID = re.compile(r"[0-9a-z]{1,64}", re.ASCII)

_DIGEST = re.compile(r"sha256:[0-9a-f]{1,64}", re.ASCII)


class Claim(StrEnum):
    """What a false claim is about; the label of its metric."""

    TASK = "task"
    """The status of another node's task."""
    TASK_ADDRESS = "task_address"
    """An address that its task cannot have."""
    HOSTNAME = "hostname"
    NODE_ADDRESS = "node_address"


@dataclass(frozen=True, slots=True)
class FalseClaim:
    """A claim that was dropped."""

    node_id: str
    kind: Claim
    claimed: str
    reason: str


Refuse = Callable[[FalseClaim], None]


def ignore(claim: FalseClaim) -> None:
    """The `Refuse` of a caller that does not count false claims."""


# -- tasks ----------------------------------------------------------------------------------------


def credible_status(
    view: ClusterView, task: Task, status: TaskStatus, refuse: Refuse = ignore
) -> TaskStatus:
    """The status without the addresses that the task cannot have, and with texts cut to length.

    Two tasks of one node may claim the same address: the node forwards the packets of both.
    """
    status = _sane(status)
    addresses = _credible(view, task, status.addresses, refuse)
    addresses6 = _credible(view, task, status.addresses6, refuse)
    if (len(addresses), len(addresses6)) == (len(status.addresses), len(status.addresses6)):
        return status
    return replace(status, addresses=addresses, addresses6=addresses6)


def _sane(status: TaskStatus) -> TaskStatus:
    """The status with texts cut to length and times that are numbers."""
    times = status.at, status.started_at, status.finished_at
    texts = status.message, status.health_output
    if all(map(isfinite, times)) and max(map(len, texts)) <= LONGEST_TEXT:
        return status
    at, started_at, finished_at = (time if isfinite(time) else 0.0 for time in times)
    message, health_output = (text[:LONGEST_TEXT] for text in texts)
    return replace(
        status,
        at=at,
        started_at=started_at,
        finished_at=finished_at,
        message=message,
        health_output=health_output,
    )


def _credible(
    view: ClusterView, task: Task, addresses: dict[str, str], refuse: Refuse
) -> dict[str, str]:
    found = {}
    for name, text in addresses.items():
        # A network plugin may give no address.
        if text and (reason := _false_address(view, task, name, text)):
            claimed = f"address {text} in network {name} for task {task.id}"
            refuse(FalseClaim(task.node_id, Claim.TASK_ADDRESS, claimed, reason))
        else:
            found[name] = text
    return found


def _false_address(view: ClusterView, task: Task, name: str, text: str) -> str:
    """Why a task cannot have an address; empty if it can."""
    attached = [each for each in task.spec.attachments if each.network == name]
    network = view.network_by_name(name)
    if not attached or network is None:
        return "the task is not on this network"
    address = _address(text)
    if address is None:
        return "this is not an IP address"
    fixed = _fixed(attached[0], task, address)
    if fixed is not None:
        return "" if address == fixed else f"the address of the task is {fixed}"
    if not _gives_slices(network):
        return ""  # its plugins assign addresses
    slices = _slices(network, task.node_id)
    if slices is None or address not in slices:
        return "the address is in no slice of the node"
    if network.driver == CNI:
        return ""  # its plugins choose which addresses of the slice are the node's own, if any
    return "no container has this address" if address in slices.reserved else ""


@lru_cache(4096)
def _address(text: str) -> Address | None:
    try:
        return IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        return None


def _fixed(attachment: NetworkAttachment, task: Task, address: Address) -> Address | None:
    """The fixed address of that version which the spec gives the task."""
    text = own_addresses(attachment, task.slot)[address.version == 6]
    return ip_address(text) if text else None


def _gives_slices(network: Network) -> bool:
    if network.driver == CNI:
        return is_sliced(network) and wants_slices(network.conflist)
    return is_sliced(network)


@dataclass(frozen=True, slots=True)
class _Slices:
    """A node's part of a network."""

    first: int
    last: int
    """Of IPv4, as numbers."""
    subnet6: IPv6Network | None
    reserved: frozenset[Address]
    """What no container has: the slice's own address, the gateway's, the broadcast's."""

    def __contains__(self, address: Address) -> bool:
        if isinstance(address, IPv4Address):
            return self.first <= int(address) <= self.last
        return self.subnet6 is not None and address in self.subnet6


def _slices(network: Network, node_id: str) -> _Slices | None:
    if (slice_ := network.slices.get(node_id)) is None:
        return None
    return _parsed_slices(
        network.pool, network.node_prefix, network.subnet6, network.gateway, slice_
    )


@lru_cache(4096)
def _parsed_slices(pool: str, node_prefix: int, subnet6: str, gateway: str, slice_: str) -> _Slices:
    network = Network(subnet=pool, node_prefix=node_prefix, subnet6=subnet6, gateway=gateway)
    subnet = IPv4Network(slice_)
    own_gateway = IPv4Address(slice_gateway(network, slice_) or subnet[1])
    reserved: list[Address] = [subnet[0], subnet[-1], own_gateway]
    part6 = IPv6Network(slice6(network, slice_)) if subnet6 else None
    if part6 is not None:
        reserved += [part6[0], IPv6Address(twin(network, own_gateway))]
    return _Slices(int(subnet[0]), int(subnet[-1]), part6, frozenset(reserved))


def orphan_changes(
    view: ClusterView, node_id: str, tasks: Iterable[Task], now: float, refuse: Refuse = ignore
) -> Iterator[Change]:
    """The changes that the complete list of a node's orphans makes. A task that the store knows is
    none: the node has not received it yet."""
    found: dict[str, Task] = {}
    for task in islice(tasks, MOST_ORPHANS):
        other = view.orphans.get(task.id)
        if other is not None and other.node_id != node_id:
            reason = f"the orphan is on node {other.node_id}"
            refuse(FalseClaim(node_id, Claim.TASK, f"orphan {task.id}", reason))
        elif _TASK_ID.fullmatch(task.id) and task.id not in view.tasks:
            status = _sane(task.status)
            found[task.id] = replace(task, node_id=node_id, status=status, revision=0)
    for known in view.orphans.values():
        if known.node_id == node_id and known.id not in found:
            yield Change(known, None)
    for id, task in found.items():
        before = view.orphans.get(id)
        after = replace(before or Orphan(id=id, node_id=node_id, found_at=now), task=task)
        if after != before:
            yield Change(before, after)


# -- nodes ----------------------------------------------------------------------------------------


def is_hostname(text: str) -> bool:
    """Whether a node can have this hostname."""
    return _HOSTNAME.fullmatch(text) is not None


def with_hostname(view: ClusterView, hostname: str) -> Node | None:
    """The node that has a hostname, down or not."""
    named = (n for n in view.nodes.values() if n.description.hostname == hostname)
    return min(named, key=lambda node: (node.created_at, node.id), default=None)


def sane(claimed: NodeDescription) -> NodeDescription:
    """The description without impossible values, which would break planning.

    What a node can be, it may claim: its resources, platform, plugins and routes count.
    """
    resources = claimed.resources
    return replace(
        claimed,
        resources=replace(
            resources,
            shares=min(max(resources.shares, 0), MOST_RESOURCES),
            memory=min(max(resources.memory, 0), MOST_RESOURCES),
        ),
        kernel=claimed.kernel[:LONGEST_WORD],
        os=claimed.os[:LONGEST_WORD],
        arch=claimed.arch[:LONGEST_WORD],
        cgroup=claimed.cgroup[:LONGEST_WORD],
        runtime=claimed.runtime[:LONGEST_WORD],
        version=claimed.version[:LONGEST_WORD],
        trouble=claimed.trouble[:LONGEST_TEXT],
        labels=_words(claimed.labels),
        volume_drivers=_words(claimed.volume_drivers),
        network_drivers=_words(claimed.network_drivers),
        generic_resources={
            kind: value
            for kind, value in _words(claimed.generic_resources).items()
            if _is_supply(kind, value)
        },
        network_features=_few(claimed.network_features),
        features=_few(claimed.features),
        cni_plugins=_few(claimed.cni_plugins),
        ipam_drivers=_few(claimed.ipam_drivers),
        routes=tuple(route for route in _few(claimed.routes) if _is_route(route)),
        path_mtu=claimed.path_mtu if SMALLEST_MTU <= claimed.path_mtu < 1 << 16 else 0,
        blob_port=claimed.blob_port if 0 <= claimed.blob_port < 1 << 16 else 0,
        metrics_port=claimed.metrics_port if 0 <= claimed.metrics_port < 1 << 16 else 0,
    )


def _few(words: Iterable[str], longest: int = LONGEST_WORD) -> tuple[str, ...]:
    return tuple(word for word in words if len(word) <= longest)[:MOST_WORDS]


def _words(values: Mapping[str, str], longest: int = LONGEST_WORD) -> dict[str, str]:
    short = ((k, v) for k, v in values.items() if max(len(k), len(v)) <= longest)
    return dict(islice(short, MOST_WORDS))


def _is_supply(kind: str, value: str) -> bool:
    try:
        parse_supply(f"{kind}={value}")
    except ValueError:
        return False
    return True


def _is_route(text: str) -> bool:
    """Whether it is a subnet; a default route excludes no network."""
    try:
        return ip_network(text).prefixlen > 0
    except ValueError:
        return False


def sane_images(claimed: Iterable[Image]) -> tuple[Image, ...]:
    """The images of an inventory as far as they have digests, with texts cut to
    length."""
    found = (image for image in claimed if _DIGEST.fullmatch(image.id))
    return tuple(map(_sane_image, islice(found, MOST_IMAGES)))


def _sane_image(image: Image) -> Image:
    return replace(
        image,
        indexes=tuple(each for each in _few(image.indexes) if _DIGEST.fullmatch(each)),
        layers=_few(image.layers),
        config_digest=image.config_digest[:LONGEST_WORD],
        size=max(image.size, 0),
        created_at=image.created_at if isfinite(image.created_at) else 0.0,
        labels=_words(image.labels, LONGEST_ARGUMENT),
        entrypoint=_few(image.entrypoint, LONGEST_ARGUMENT),
        command=_few(image.command, LONGEST_ARGUMENT),
    )


def credible_description(
    view: ClusterView, node: Node, claimed: NodeDescription, peer: str, refuse: Refuse = ignore
) -> NodeDescription:
    """The description with the hostname and address that the node had before where it cannot have
    those that it claims. `peer` is the address that its session came from; empty: not known."""
    before, claimed = node.description, sane(claimed)
    hostname, address = claimed.hostname, claimed.address
    if hostname != before.hostname and (reason := _false_hostname(view, node, hostname)):
        refuse(FalseClaim(node.id, Claim.HOSTNAME, hostname, reason))
        hostname = before.hostname
    if address != before.address and (reason := false_node_address(view, node, address, peer)):
        refuse(FalseClaim(node.id, Claim.NODE_ADDRESS, address, reason))
        address = before.address
    if (hostname, address) == (claimed.hostname, claimed.address):
        return claimed
    return replace(claimed, hostname=hostname, address=address)


def _false_hostname(view: ClusterView, node: Node, hostname: str) -> str:
    if not is_hostname(hostname):
        return "this is not a hostname"
    other = with_hostname(view, hostname)
    return f"node {other.id} has this hostname" if other and other.id != node.id else ""


def false_node_address(view: ClusterView, node: Node, text: str, peer: str) -> str:
    """Why a node cannot have an address of the underlay; empty if it can.

    The first address of a node is the one that its operator chose when it joined; it may differ
    from the one that its session comes from (several interfaces, NAT). Another one later must be
    where the session comes from, or be set by an operator.
    """
    address = _address(text)
    if address is None or address.is_multicast or address.is_unspecified:
        return "this is not the address of a host"
    comes_from_it = _address(peer) == address
    for other in view.nodes.values():
        if other.id == node.id or _address(other.description.address) != address:
            continue
        # A host may have got the address of one that is gone.
        if other.state is NodeState.READY or not comes_from_it:
            return f"node {other.description.hostname} has this address"
    if node.description.address and not comes_from_it:
        return (
            f"the session comes from {peer or 'an unknown address'}; if the node did move, run "
            f"'orc node update --address {text} {node.description.hostname}'"
        )
    return ""


MAX_TUNNEL_KEYS = 2
"""Maximum keys of a node: the current one and, during a rotation, the next."""


def credible_keys(
    view: ClusterView, node_id: str, keys: tuple[TunnelKey, ...]
) -> tuple[TunnelKey, ...]:
    """The newest of a node's keys that are valid and not another node's.

    An invalid key would break the tunnels of its peers; with another node's key, a node would
    attract that node's packets, which would be lost.
    """
    taken = {
        key.public
        for id, node in view.nodes.items()
        if id != node_id
        for key in node.description.tunnel_keys
    }
    found = [key for key in keys if _is_key(key) and key.public not in taken]
    return tuple(found[-MAX_TUNNEL_KEYS:])


def _is_key(key: TunnelKey) -> bool:
    try:
        raw = base64.b64decode(key.public, validate=True)
    except ValueError:
        return False
    # Only the canonical encoding, so that equal keys have equal texts.
    return (
        len(raw) == 32 and base64.b64encode(raw).decode() == key.public and 0 < key.port < 1 << 16
    )


def accept_reports(
    view: ClusterView,
    node_id: str,
    reports: Mapping[str, TaskStatus],
    now: float,
    refuse: Refuse = ignore,
) -> tuple[Change, ...]:
    """The changes that a node's reports make, by task id.

    Dropped, since reports are repeated and reordered: statuses that change nothing, that are older
    than the stored one (or of an earlier run), and of tasks that are deleted or orphaned.
    Statuses of other nodes' tasks and addresses that a task cannot have are refused. How long a
    task has been up is measured from `now`, so that the clocks of nodes do not matter.
    """
    tasks = view.tasks_of_node(node_id)
    changes = []
    for id in sorted(reports):
        if (task := tasks.get(id)) is None:
            if (other := view.tasks.get(id)) is not None:
                reason = (
                    f"the task is on node {other.node_id}"
                    if other.node_id
                    else "the task is not assigned to a node"
                )
                refuse(FalseClaim(node_id, Claim.TASK, f"the status of task {id}", reason))
        elif is_recent(task, reports[id]):
            status = credible_status(view, task, reports[id], refuse)
            if not is_known(status.health):
                # Of a newer agent. Stored, it would make the task unreadable.
                status = replace(status, health=task.status.health)
            if is_change(task, status):
                changes.append(Change(task, _reported(task, status, now)))
    return tuple(changes)


def _reported(task: Task, status: TaskStatus, now: float) -> Task:
    started = status.state is TaskState.RUNNING and task.status.state is not TaskState.RUNNING
    since = now if started else task.running_since
    return replace(task, status=status, running_since=since)


def is_change(task: Task, reported: TaskStatus) -> bool:
    """Whether an agent's report changes the stored status, by the table of states."""
    return is_recent(task, reported) and reported != task.status


def is_recent(task: Task, reported: TaskStatus) -> bool:
    """Whether a report is not older than the stored status, by the table of states."""
    known = task.status
    if reported.run != known.run:
        return False
    if known.state is not reported.state:
        return may_move(Owner.AGENT, known.state, reported.state)
    return not is_terminal(known.state) and reported.at >= known.at
