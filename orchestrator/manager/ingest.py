"""Reports of agents as changes: pure, and deaf to what the table of states forbids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from orchestrator.manager.inbox import Reports
from orchestrator.manager.planning.claims import (
    Refuse,
    credible_description,
    ignore,
    sane,
    sane_images,
)
from orchestrator.manager.planning.encryption import honest_keys
from orchestrator.manager.planning.liveness import node_up
from orchestrator.manager.planning.plan import Change, Decision
from orchestrator.manager.planning.standalone import over_reboot
from orchestrator.manager.planning.statuses import ingest as task_changes
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.store.cache import fold
from orchestrator.manager.store.keys import object_key
from orchestrator.model.names import parse_image
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Image
from orchestrator.model.tasks import Task

MOST_NAMES = 16
"""Names of an image that are kept of those that nodes report."""


def decisions(
    view: ClusterView, reports: Reports, now: float, refuse: Refuse = ignore
) -> list[Decision]:
    """What the reports change, by what it is about: each service's tasks, and each other object.
    One whose write conflicts holds up no other. `refuse` is called for each false claim."""
    groups: dict[str, list[Change]] = {}
    for change in ingest(view, reports, now, refuse):
        subject = change.subject
        service_id = subject.service_id if isinstance(subject, Task) else ""
        groups.setdefault(service_id or object_key(subject), []).append(change)
    folded: list[Decision] = []
    for group in groups.values():
        changes: dict[str, Change] = {}
        fold(changes, group)
        if changes:
            folded.append(Decision(tuple(changes.values()), reason="reports of nodes"))
    return folded


def unfinished(reports: Reports, left: Iterable[Change]) -> Reports:
    """The reports of which some changes were not written: of the nodes that these are about."""
    nodes: set[str] = set()
    for change in left:
        match change.subject:
            case Task() as task:
                nodes.add(task.node_id)
            case Node() as node:
                nodes.add(node.id)
            case Image():
                before = change.before.nodes if isinstance(change.before, Image) else ()
                after = change.after.nodes if isinstance(change.after, Image) else ()
                nodes |= {*before, *after}
    return reports.of(nodes)


def ingest(
    view: ClusterView, reports: Reports, now: float, refuse: Refuse = ignore
) -> list[Change]:
    """What the reports change. Reports about what is gone, of a task that another node has, or
    backwards in a task's life change nothing (the sender is behind, and will learn)."""
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
    return changes


def _hellos(view: ClusterView, reports: Reports, now: float, refuse: Refuse) -> Iterator[Change]:
    for node_id, hello in sorted(reports.hellos.items()):
        node = view.nodes.get(node_id)
        if node is None:
            continue
        boot_id = hello.boot_id
        description = credible_description(view, node, hello.description, hello.peer, refuse)
        if not description.path_mtu:
            # A new agent has not measured yet; until then the path is what it was.
            description = replace(description, path_mtu=node.description.path_mtu)
        keys = honest_keys(view, node_id, description.tunnel_keys)
        after = node_up(node, replace(description, tunnel_keys=keys), now)
        if boot_id != node.boot_id:
            after = replace(after, boot_id=boot_id)
            if node.boot_id:
                yield from _rebooted(view, node_id)
        if after is not node:
            yield Change(node, after)
            # The next of them cannot have the same hostname or address.
            view = view.evolve([Change(node, after)])


def _rebooted(view: ClusterView, node_id: str) -> Iterator[Change]:
    for task in view.tasks_of_node(node_id).values():
        if task.standalone and (after := over_reboot(task)) is not task:
            yield Change(task, after)


def _descriptions(view: ClusterView, reports: Reports) -> Iterator[Change]:
    """What nodes tell of themselves while they are in session."""
    told = (
        *(reports.drivers, reports.path_mtus, reports.troubles),
        *(reports.keys, reports.network_plugins),
    )
    for node_id in sorted(set().union(*told)):
        if (node := view.nodes.get(node_id)) is None:
            continue
        news: dict[str, Any] = {}
        if (scopes := reports.drivers.get(node_id)) is not None:
            news["volume_drivers"] = scopes
        if (size := reports.path_mtus.get(node_id)) is not None:
            news["path_mtu"] = size
        if (words := reports.troubles.get(node_id)) is not None:
            news["trouble"] = words
        if (keys := reports.keys.get(node_id)) is not None:
            news["tunnel_keys"] = honest_keys(view, node_id, keys)
        if (found := reports.network_plugins.get(node_id)) is not None:
            news |= {
                "cni_plugins": found.cni,
                "network_drivers": found.drivers,
                "ipam_drivers": found.ipam,
            }
        description = sane(replace(node.description, **news))
        if description != node.description:
            yield Change(node, replace(node, description=description))


def _inventory(view: ClusterView, node_id: str, images: tuple[Image, ...]) -> Iterator[Change]:
    present = {image.id: image for image in images}
    for image in view.images.values():
        if node_id in image.nodes and image.id not in present:
            nodes = tuple(n for n in image.nodes if n != node_id)
            condemned = tuple(n for n in image.condemned if n != node_id)
            # An image that no node has is gone; its names go with it.
            after = replace(image, nodes=nodes, condemned=condemned) if nodes else None
            yield Change(image, after)
    for image in images:
        known = view.images.get(image.id)
        reported = _reported_names(image.names)
        if known is None:
            new = replace(image, names=(), reported_names=reported, condemned=())
            yield Change(None, replace(new, nodes=(node_id,), revision=0))
        else:
            nodes = tuple(sorted({*known.nodes, node_id}))
            if node_id in known.condemned:
                reported = ()  # it was removed there, under that name, too
            indexes = tuple(sorted({*known.indexes, *image.indexes}))
            after = replace(
                known,
                nodes=nodes,
                indexes=indexes,
                # What the first node said stays: they describe the same bytes.
                labels=known.labels or image.labels,
                entrypoint=known.entrypoint or image.entrypoint,
                command=known.command or image.command,
                reported_names=_reported_names({*known.reported_names, *reported} - {*known.names}),
            )
            if after != known:
                yield Change(known, after)


def _reported_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names that nodes say an image has, without what is none."""
    return tuple(sorted({name for name in names if _is_name(name)})[:MOST_NAMES])


def _is_name(text: str) -> bool:
    try:
        return str(parse_image(text)) == text
    except ValueError:
        return False
