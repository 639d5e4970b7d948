# SPDX-License-Identifier: Apache-2.0
"""Reports of agents: buffered in the manager that has the session, then turned into changes.

The dispatcher fills `ReportBuffer`; the manager's planning loop while it leads, otherwise its
`report_commit`, empties it: a thousand reports become one transaction. A repeated report replaces
the earlier one, so the buffer holds at most one of each kind per node. No report is acknowledged to
an agent before it is committed. A commit requires the record of the node's session to be unchanged
(`dispatch.session_records`): once the session has moved, no other manager can commit its reports.

`report_decisions` and the functions below it are pure. They ignore reports about objects that are
gone and state transitions that are not allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any

from orchestrator.manager.planning.plan import Change, Decision
from orchestrator.manager.planning.reconcile.standalone import after_reboot
from orchestrator.manager.planning.reports.claims import (
    LONGEST_TEXT,
    Claim,
    FalseClaim,
    Refuse,
    credible_description,
    credible_keys,
    ignore,
    orphan_changes,
    sane,
    sane_images,
)
from orchestrator.manager.planning.reports.claims import accept_reports as task_changes
from orchestrator.manager.planning.reports.liveness import node_up
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import fold
from orchestrator.manager.store.keys import object_key
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.names import parse_image
from orchestrator.model.nodes import Node, NodeDescription, SessionRecord, TunnelKey
from orchestrator.model.objects import Image
from orchestrator.model.tasks import Task, TaskStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NetworkPlugins:
    """Network drivers and plugins of third parties on a node; see `NodeDescription`."""

    cni: tuple[str, ...]
    drivers: dict[str, str]
    ipam: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node reports about itself when its session begins."""

    description: NodeDescription
    boot_id: str
    """Boot id of its host."""
    peer: str = ""
    """IP address that the session came from; empty when unknown."""


@dataclass(slots=True)
class Reports:
    """The reports of one round."""

    hellos: dict[str, Hello] = field(default_factory=dict)
    """By node id."""
    statuses: dict[str, dict[str, TaskStatus]] = field(default_factory=dict)
    """Node id → task id → newest status."""
    inventories: dict[str, tuple[Image, ...]] = field(default_factory=dict)
    """Node id → all images it has."""
    drivers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Node id → its volume plugins and their scopes."""
    path_mtus: dict[str, int] = field(default_factory=dict)
    """Node id → path MTU in bytes, the smallest over its paths to other nodes."""
    troubles: dict[str, str] = field(default_factory=dict)
    """Node id → what is wrong with the host; empty when it is healthy."""
    keys: dict[str, tuple[TunnelKey, ...]] = field(default_factory=dict)
    """Node id → its keys for encrypted networks."""
    network_plugins: dict[str, NetworkPlugins] = field(default_factory=dict)
    """By node id."""
    orphans: dict[str, tuple[Task, ...]] = field(default_factory=dict)
    """Node id → all its orphans."""
    acknowledgements: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Node id → callback that acknowledges its newest statuses and all earlier ones."""

    @property
    def nodes(self) -> set[str]:
        """Ids of the nodes that have reported."""
        return {id for each in fields(self) for id in getattr(self, each.name)}

    @property
    def acknowledge(self) -> tuple[Callable[[], None], ...]:
        """Callbacks to call once the reports are committed."""
        return tuple(self.acknowledgements.values())

    def followed_by(self, later: Reports) -> Reports:
        """Both merged; `later` wins."""
        statuses = {node: dict(told) for node, told in self.statuses.items()}
        for node, told in later.statuses.items():
            statuses.setdefault(node, {}).update(told)
        return Reports(
            hellos=self.hellos | later.hellos,
            statuses=statuses,
            inventories=self.inventories | later.inventories,
            drivers=self.drivers | later.drivers,
            path_mtus=self.path_mtus | later.path_mtus,
            troubles=self.troubles | later.troubles,
            keys=self.keys | later.keys,
            network_plugins=self.network_plugins | later.network_plugins,
            orphans=self.orphans | later.orphans,
            acknowledgements=self.acknowledgements | later.acknowledgements,
        )

    def of(self, nodes: Set[str]) -> Reports:
        """Only the reports of these nodes."""
        found = Reports()
        for each in fields(Reports):
            reports = getattr(self, each.name)
            setattr(found, each.name, {id: reports[id] for id in reports if id in nodes})
        return found


class ReportBuffer:
    """Collects reports, and the time when each node was last heard from (in memory only: a new
    term gives every node a fresh grace period)."""

    def __init__(
        self, now: Callable[[], float], listening: Callable[[], float] | None = None
    ) -> None:
        """`now` is a monotonic clock; `listening` the clock that measures silence, if different
        (see `LivenessClock`)."""
        self._now = now
        self._listening = listening or now
        self._reports = Reports()
        self._taken = Reports()
        """The reports taken last; they may not be committed yet."""
        self._heard: dict[str, float] = {}
        """Node id → when its agent last sent anything, by the listening clock."""
        self.on_report: Callable[[], None] = lambda: None
        """Called at each report; wakes the planning loop."""

    @property
    def waiting(self) -> int:
        """Number of reports that have not been taken."""
        told = self._reports
        of_nodes = len(told.hellos) + len(told.inventories) + len(told.drivers)
        return of_nodes + len(told.statuses)

    @property
    def heard(self) -> dict[str, float]:
        """Node id → when its agent last sent anything, by the monotonic clock, plus the time during
        which the manager could not listen."""
        now, listening = self._now(), self._listening()
        return {node_id: now - (listening - heard) for node_id, heard in self._heard.items()}

    def hear(self, node_id: str) -> None:
        """Record a sign of life."""
        self._heard[node_id] = self._listening()

    def hello(self, node_id: str, hello: Hello) -> None:
        """Report a new session."""
        self.hear(node_id)
        self._reports.hellos[node_id] = hello
        self.on_report()

    def statuses(
        self, node_id: str, statuses: dict[str, TaskStatus], acknowledge: Callable[[], None]
    ) -> None:
        """Report statuses of tasks; `acknowledge` is called when they are committed."""
        self.hear(node_id)
        self._reports.statuses.setdefault(node_id, {}).update(statuses)
        self._reports.acknowledgements[node_id] = acknowledge
        self.on_report()

    def inventory(self, node_id: str, images: tuple[Image, ...]) -> None:
        """Report all images of the node."""
        self.hear(node_id)
        self._reports.inventories[node_id] = images
        self.on_report()

    def volume_drivers(self, node_id: str, scopes: dict[str, str]) -> None:
        """Report all volume plugins that answer on the node."""
        self.hear(node_id)
        self._reports.drivers[node_id] = scopes
        self.on_report()

    def path_mtu(self, node_id: str, size: int) -> None:
        """Report the node's path MTU, in bytes."""
        self.hear(node_id)
        self._reports.path_mtus[node_id] = size
        self.on_report()

    def trouble(self, node_id: str, words: str) -> None:
        """Report what is wrong with the node's host; empty when it is healthy."""
        self.hear(node_id)
        self._reports.troubles[node_id] = words
        self.on_report()

    def tunnel_keys(self, node_id: str, keys: tuple[TunnelKey, ...]) -> None:
        """Report all keys of the node for encrypted networks."""
        self.hear(node_id)
        self._reports.keys[node_id] = keys
        self.on_report()

    def network_plugins(self, node_id: str, plugins: NetworkPlugins) -> None:
        """Report third-party network drivers and plugins of the node."""
        self.hear(node_id)
        self._reports.network_plugins[node_id] = plugins
        self.on_report()

    def orphans(self, node_id: str, tasks: tuple[Task, ...]) -> None:
        """Report all orphans of the node."""
        self.hear(node_id)
        self._reports.orphans[node_id] = tasks
        self.on_report()

    def take(self, ready: Callable[[str], bool] = lambda node_id: True) -> Reports:
        """Take all reports of the nodes (by id) that are ready for it."""
        nodes = self._reports.nodes
        waiting = {node_id for node_id in nodes if not ready(node_id)}
        if waiting:
            self._taken = self._reports.of(nodes - waiting)
            self._reports = self._reports.of(waiting)
        else:
            self._taken, self._reports = self._reports, Reports()
        return self._taken

    def drop(self, node_id: str) -> None:
        """Discard the reports of a node whose session has moved: it sends them again."""
        self._reports = self._reports.of(self._reports.nodes - {node_id})

    def give_back(self, reports: Reports) -> None:
        """Put back reports that could not be committed; newer reports win."""
        self._reports = reports.followed_by(self._reports)
        self._taken = Reports()

    def settle(self, reports: Reports, left: Iterable[Change]) -> Set[str]:
        """Acknowledge what was committed of the reports taken last, and put back those that the
        changes in `left`, which were not, are about. Returns the ids of the nodes whose reports
        were put back."""
        waiting = unwritten_reports(reports, left)
        self.give_back(waiting)
        for node_id, acknowledge in reports.acknowledgements.items():
            if node_id not in waiting.acknowledgements:
                acknowledge()
        return waiting.nodes

    def hand_over(self) -> None:
        """Another loop takes the reports from now on. It inherits what the last one did not commit,
        since sessions continue and agents do not repeat themselves."""
        self._reports = self._taken.followed_by(self._reports)
        self._taken = Reports()

    def begin_term(self) -> None:
        """Begin a new term, which gives each node a fresh grace period."""
        self.hand_over()
        self._heard = {}


class RejectedClaims:
    """Counts rejected claims of nodes, and logs the first of each kind per node."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """`count` is called with the kind of each claim."""
        self._count = count
        self._warned: dict[str, set[Claim]] = {}
        """Node id → kinds of its claims that were logged."""

    def report(self, refused: Iterable[FalseClaim]) -> None:
        """Report the claims that were rejected in one round."""
        for claim in refused:
            self._count(claim.kind)
            known = self._warned.setdefault(claim.node_id, set())
            if claim.kind in known:
                continue
            known.add(claim.kind)
            log.warning(
                "rejected a claim of a node",
                extra={
                    "node": claim.node_id,
                    "kind": claim.kind,
                    "claimed": claim.claimed[:LONGEST_TEXT],
                    "reason": claim.reason,
                },
            )


MOST_NAMES = 16
"""Reported names that are kept per image."""


def report_decisions(
    view: ClusterView, reports: Reports, now: float, refuse: Refuse = ignore
) -> list[Decision]:
    """The changes that the reports cause, one decision per service or other object, so that a
    conflict on one delays no other. `refuse` is called for each rejected claim."""
    groups: dict[str, list[Change]] = {}
    for change in report_changes(view, reports, now, refuse):
        subject = change.subject
        service_id = subject.service_id if isinstance(subject, Task) else ""
        groups.setdefault(service_id or object_key(subject), []).append(change)
    folded: list[Decision] = []
    for group in groups.values():
        changes: dict[str, Change] = {}
        fold(changes, group)
        if changes:
            folded.append(_decision(view, tuple(changes.values())))
    return folded


def _decision(view: ClusterView, changes: tuple[Change, ...]) -> Decision:
    """The changes, with the records of the sessions that they were reported in."""
    requires: dict[str, SessionRecord] = {}
    reads: dict[str, tuple[SessionRecord, ...]] = {}
    for change in changes:
        records = [view.sessions[id] for id in _reporters(change) if id in view.sessions]
        if isinstance(change.subject, Task):
            reads[change.subject.id] = tuple(records)
        else:
            requires.update((record.id, record) for record in records)
    return Decision(changes, tuple(requires.values()), reads, reason="reports of nodes")


def _reporters(change: Change) -> Iterable[str]:
    """Ids of the nodes whose reports cause a change."""
    match change.subject:
        case Task() as task:
            return (task.node_id,)
        case Node() as node:
            return (node.id,)
        case Orphan() as orphan:
            return (orphan.node_id,)
        case Image():
            before = change.before.nodes if isinstance(change.before, Image) else ()
            after = change.after.nodes if isinstance(change.after, Image) else ()
            return sorted({*before} ^ {*after})
        case _:
            return ()


def unwritten_reports(reports: Reports, left: Iterable[Change]) -> Reports:
    """The reports of the nodes that unwritten changes are about."""
    nodes: set[str] = set()
    for change in left:
        match change.subject:
            case Task() as task:
                nodes.add(task.node_id)
            case Node() as node:
                nodes.add(node.id)
            case Orphan() as orphan:
                nodes.add(orphan.node_id)
            case Image():
                before = change.before.nodes if isinstance(change.before, Image) else ()
                after = change.after.nodes if isinstance(change.after, Image) else ()
                nodes |= {*before, *after}
    return reports.of(nodes)


def report_changes(
    view: ClusterView, reports: Reports, now: float, refuse: Refuse = ignore
) -> list[Change]:
    """The changes that the reports cause. Ignores reports about objects that are gone, about tasks
    of other nodes, and state transitions backwards: the sender is behind and will catch up."""
    changes: list[Change] = []
    changes.extend(_hellos(view, reports, now, refuse))
    changes.extend(_descriptions(view.evolve(changes), reports))
    for node_id, statuses in sorted(reports.statuses.items()):
        changes.extend(task_changes(view, node_id, statuses, now, refuse))
    view = view.evolve(changes)
    for node_id, images in sorted(reports.inventories.items()):
        found = list(_inventory(view, node_id, sane_images(images)))
        changes.extend(found)
        view = view.evolve(found)
    for node_id, tasks in sorted(reports.orphans.items()):
        changes.extend(orphan_changes(view, node_id, tasks, now, refuse))
    return changes


def _hellos(view: ClusterView, reports: Reports, now: float, refuse: Refuse) -> Iterator[Change]:
    for node_id, hello in sorted(reports.hellos.items()):
        node = view.nodes.get(node_id)
        if node is None:
            continue
        boot_id = hello.boot_id
        description = credible_description(view, node, hello.description, hello.peer, refuse)
        if not description.path_mtu:
            # A new agent has not measured yet; the last known value stays until then.
            description = replace(description, path_mtu=node.description.path_mtu)
        keys = credible_keys(view, node_id, description.tunnel_keys)
        after = node_up(node, replace(description, tunnel_keys=keys), now)
        if boot_id != node.boot_id:
            after = replace(after, boot_id=boot_id)
            if node.boot_id:
                yield from _rebooted(view, node_id)
        if after is not node:
            yield Change(node, after)
            # The next node must not get the same hostname or address.
            view = view.evolve([Change(node, after)])


def _rebooted(view: ClusterView, node_id: str) -> Iterator[Change]:
    for task in view.tasks_of_node(node_id).values():
        if task.standalone and (after := after_reboot(task)) is not task:
            yield Change(task, after)


def _descriptions(view: ClusterView, reports: Reports) -> Iterator[Change]:
    """Changes of descriptions that nodes report during a session."""
    told = (
        *(reports.drivers, reports.path_mtus, reports.troubles),
        *(reports.keys, reports.network_plugins),
    )
    for node_id in sorted(set().union(*told)):
        if (node := view.nodes.get(node_id)) is None:
            continue
        fields: dict[str, Any] = {}
        if (scopes := reports.drivers.get(node_id)) is not None:
            fields["volume_drivers"] = scopes
        if (size := reports.path_mtus.get(node_id)) is not None:
            fields["path_mtu"] = size
        if (words := reports.troubles.get(node_id)) is not None:
            fields["trouble"] = words
        if (keys := reports.keys.get(node_id)) is not None:
            fields["tunnel_keys"] = credible_keys(view, node_id, keys)
        if (found := reports.network_plugins.get(node_id)) is not None:
            fields |= {
                "cni_plugins": found.cni,
                "network_drivers": found.drivers,
                "ipam_drivers": found.ipam,
            }
        description = sane(replace(node.description, **fields))
        if description != node.description:
            yield Change(node, replace(node, description=description))


def _inventory(view: ClusterView, node_id: str, images: tuple[Image, ...]) -> Iterator[Change]:
    present = {image.id: image for image in images}
    for image in view.images.values():
        if node_id in image.nodes and image.id not in present:
            nodes = tuple(n for n in image.nodes if n != node_id)
            pending_removal = tuple(n for n in image.pending_removal if n != node_id)
            # An image that no node has is deleted together with its names.
            after = replace(image, nodes=nodes, pending_removal=pending_removal) if nodes else None
            yield Change(image, after)
    for image in images:
        known = view.images.get(image.id)
        reported = _reported_names(image.names)
        if known is None:
            new = replace(image, names=(), reported_names=reported, pending_removal=())
            yield Change(None, replace(new, nodes=(node_id,), revision=0))
        else:
            nodes = tuple(sorted({*known.nodes, node_id}))
            if node_id in known.pending_removal:
                reported = ()  # the name was removed on that node, too
            indexes = tuple(sorted({*known.indexes, *image.indexes}))
            after = replace(
                known,
                nodes=nodes,
                indexes=indexes,
                # The first node's values stay: they describe the same bytes.
                labels=known.labels or image.labels,
                entrypoint=known.entrypoint or image.entrypoint,
                command=known.command or image.command,
                reported_names=_reported_names({*known.reported_names, *reported} - {*known.names}),
            )
            if after != known:
                yield Change(known, after)


def _reported_names(names: Iterable[str]) -> tuple[str, ...]:
    """The valid names among those that nodes report."""
    return tuple(sorted({name for name in names if _is_name(name)})[:MOST_NAMES])


def _is_name(text: str) -> bool:
    try:
        return str(parse_image(text)) == text
    except ValueError:
        return False
