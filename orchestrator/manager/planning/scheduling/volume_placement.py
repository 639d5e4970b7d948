# SPDX-License-Identifier: Apache-2.0
"""Volume placement: the nodes that volumes are pinned to, and that their consumers must go to.

A volume's data is on one node for life, unless its driver serves it everywhere (*global* scope). A
task that mounts it goes to its node. A volume that does not exist yet is created on the node where
its first user is placed, in the same transaction, so that two tasks never make two of one name. A
name may differ from slot to slot (`data-{{.Task.Slot}}`): so each slot has data of its own and
follows it, though no rule ties a slot to a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.slots import ended
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.formats.task_templates import node_fields, task_fields
from orchestrator.model.mounts import LOCAL_DRIVER, MountSpec, MountType, depends_on_node, expand
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Volume, VolumeScope
from orchestrator.model.tasks import Task
from orchestrator.model.validation.mount_specs import split_volumes_from

_LATER = {"Node.ID": "{{.Node.ID}}", "Node.Hostname": "{{.Node.Hostname}}"}


@dataclass(frozen=True, slots=True)
class NodeRule:
    """What a volume demands of a node."""

    allows: Callable[[Node], bool]
    words: str
    """The reason of a node that it does not allow, in pending reasons."""
    lasting: bool = False
    """For life."""


class PinnedVolumes:
    """The node that each local volume is pinned to; a pass adds those that it creates."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._new: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The id of the node that the volume is pinned to; empty if it is not created yet, or
        global."""
        volume = self._view.volumes.get(name)
        return (volume.node_id if volume else "") or self._new.get(name, "")

    def pin(self, mounts: Iterable[MountSpec], node: Node) -> bool:
        """Pin the volumes that have no node yet to this one. Return whether there were any."""
        pinned = False
        for mount in mounts:
            name = name_on(mount, node)
            if not self.of(name) and scope_on(self._view, name, mount, node) is VolumeScope.LOCAL:
                self._new[name] = node.id
                pinned = True
        return pinned


def named_volumes(task: Task) -> tuple[MountSpec, ...]:
    """The task's mounts of volumes that have a name, with that name as their source as far as it
    is known before the task has a node."""
    if not task.spec.container.mounts:
        return ()
    fields = task_fields(task) | _LATER
    return tuple(
        replace(mount, source=expand(mount.source, fields))
        for mount in task.spec.container.mounts
        if mount.type is MountType.VOLUME and mount.source
    )


def name_on(mount: MountSpec, node: Node) -> str:
    """The name of a volume of `named_volumes` for a task on that node."""
    return expand(mount.source, node_fields(node))


def driver_of(view: ClusterView, name: str, mount: MountSpec) -> str:
    """The driver of a volume, or the one that it will be created with."""
    volume = view.volumes.get(name)
    return (volume.driver if volume else mount.driver) or LOCAL_DRIVER


def scope_on(view: ClusterView, name: str, mount: MountSpec, node: Node) -> VolumeScope:
    """The scope of a volume, or the one that it will have when it is created on that node."""
    volume = view.volumes.get(name)
    if volume is not None and volume.scope is VolumeScope.GLOBAL:
        return VolumeScope.GLOBAL
    known = node.description.volume_drivers.get(driver_of(view, name, mount))
    return VolumeScope.GLOBAL if known == "global" else VolumeScope.LOCAL


def node_rules(
    view: ClusterView,
    pinned: PinnedVolumes,
    mounts: Iterable[MountSpec],
    volumes_from: Iterable[str],
) -> Iterator[NodeRule]:
    """What the volumes of a task demand of its node."""
    for mount in mounts:
        yield _rule(view, pinned, mount)
    for text in volumes_from:
        name, _ = split_volumes_from(text)
        holder = container_named(view, name)
        if holder is not None:
            yield only_on(view, holder.node_id, f"container {name} is on")


def _rule(view: ClusterView, pinned: PinnedVolumes, mount: MountSpec) -> NodeRule:
    if depends_on_node(mount.source):
        return NodeRule(
            lambda node: pinned.of(name_on(mount, node)) in ("", node.id),
            f"volume {mount.source} is on another node",
        )
    home = pinned.of(mount.source)
    if home:
        return replace(only_on(view, home, f"volume {mount.source} is on"), lasting=True)
    driver = driver_of(view, mount.source, mount)
    return NodeRule(
        lambda node: driver == LOCAL_DRIVER or driver in node.description.volume_drivers,
        f"no volume driver {driver}",
    )


def only_on(view: ClusterView, node_id: str, words: str) -> NodeRule:
    """Only that node will do; `words` say what is on it."""
    home = view.nodes.get(node_id)
    hostname = home.description.hostname if home else node_id
    return NodeRule(lambda node: node.id == node_id, f"{words} {hostname or node_id}")


def unusable_volume(
    view: ClusterView, mounts: Iterable[MountSpec], volumes_from: Iterable[str]
) -> str | None:
    """Why no node can take a task with these volumes; None if some might."""
    for mount in mounts:
        volume = view.volumes.get(mount.source)
        if volume is None:
            continue
        if volume.removing:
            return f"volume {volume.name} is being removed"
        if volume.node_id and volume.node_id not in view.nodes:
            return (
                f"volume {volume.name} was on a node that has left the cluster; "
                f"'orc volume rm --force {volume.name}' forgets it"
            )
    for text in volumes_from:
        name, _ = split_volumes_from(text)
        holder = container_named(view, name)
        if holder is None:
            return f"no container {name}, whose volumes it mounts"
        if not holder.node_id:
            return f"container {name}, whose volumes it mounts, has no node yet"
    return None


def volume_changes(
    view: ClusterView, task: Task, node: Node, now: float
) -> tuple[tuple[Change, ...], tuple[Volume, ...]]:
    """What a placement means for volumes: those that it creates or pins to the node, and those
    that it reads."""
    changes: list[Change] = []
    read: list[Volume] = []
    done: set[str] = set()
    for mount in named_volumes(task):
        name = name_on(mount, node)
        if name in done:
            continue
        done.add(name)
        volume = view.volumes.get(name)
        scope = scope_on(view, name, mount, node)
        home = node.id if scope is VolumeScope.LOCAL else ""
        if volume is None:
            fresh = Volume(
                id=name,
                created_at=now,
                driver=mount.driver or LOCAL_DRIVER,
                options=mount.options,
                labels=mount.labels,
                scope=scope,
                node_id=home,
            )
            changes.append(Change(None, fresh))
        elif not volume.node_id and (home or scope is not volume.scope):
            changes.append(Change(volume, replace(volume, scope=scope, node_id=home)))
        else:
            read.append(volume)
    return tuple(changes), tuple(read)


def container_named(view: ClusterView, word: str) -> Task | None:
    """The newest task with this name or id, or the only one whose id begins so."""
    if word in view.tasks:
        return view.tasks[word]
    named = [task for task in view.tasks.values() if task.name == word]
    if named:
        return max(named, key=lambda task: (task.created_at, task.id))
    begun = [task for id, task in view.tasks.items() if id.startswith(word)]
    return begun[0] if len(begun) == 1 else None


def volumes_of(view: ClusterView, task: Task) -> frozenset[str]:
    """Names of the volumes that a task mounts, those by `--volumes-from` included."""
    found: set[str] = set()
    seen: set[str] = set()
    left = [task]
    while left:
        one = left.pop()
        if one.id in seen:
            continue
        seen.add(one.id)
        node = view.nodes.get(one.node_id)
        for mount in named_volumes(one):
            found.add(name_on(mount, node) if node else mount.source)
        for text in one.spec.container.volumes_from:
            holder = container_named(view, split_volumes_from(text)[0])
            if holder is not None:
                left.append(holder)
    return frozenset(found)


def volume_consumers(view: ClusterView) -> dict[str, Sequence[Task]]:
    """Volume name → the tasks that need it: those that have not ended, and containers of no
    service, which may be started again, until they are removed."""
    found: dict[str, list[Task]] = {}
    for task in view.tasks.values():
        container = task.spec.container
        if not (container.mounts or container.volumes_from):
            continue
        if task.service_id and ended(task):
            continue
        for name in volumes_of(view, task):
            found.setdefault(name, []).append(task)
    return {
        name: sorted(tasks, key=lambda task: (task.name, task.created_at))
        for name, tasks in found.items()
    }
