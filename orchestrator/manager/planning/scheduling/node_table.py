# SPDX-License-Identifier: Apache-2.0
"""The node table: all nodes as arrays, for one scheduling pass; a row per node, ordered by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from orchestrator.manager.planning.node_load import NO_LOAD, Port, occupies, published
from orchestrator.manager.planning.scheduling.capacity import BoolArray, IntArray
from orchestrator.manager.planning.scheduling.generic_pool import GenericPool
from orchestrator.manager.planning.scheduling.volume_placement import PinnedVolumes, named_volumes
from orchestrator.manager.planning.slots import is_current
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.compatibility.agent_features import STOP_AFTER, required_features
from orchestrator.model.mounts import MountSpec
from orchestrator.model.nodes import Node
from orchestrator.model.placement import (
    DisconnectAction,
    GenericResource,
    Strategy,
)
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import Resources
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.validation.host_access import wanted
from orchestrator.model.validation.shared_namespaces import namespace_container


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task asks of a node. Tasks with equal demands are placed together."""

    service_id: str
    resources: Resources
    ports: tuple[Port, ...] = ()
    constraints: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    image: str = ""
    image_digest: str = ""
    node_id: str = ""
    """The only node that will do (global services, containers that run again); empty: any."""
    is_rerun: bool = False
    """A standalone container that runs again on its node, which may be drained or paused."""
    volumes: tuple[MountSpec, ...] = ()
    """The named volumes, their names expanded as far as they are known before it has a node."""
    volumes_from: tuple[str, ...] = ()
    max_per_node: int = 0
    spread: tuple[str, ...] = ()
    affinities: tuple[Affinity, ...] = ()
    generic: tuple[GenericResource, ...] = ()
    features: tuple[str, ...] = ()
    """Features that its node's agent must have."""
    namespace_of: str = ""
    """Name or id of the container whose namespaces it shares."""
    allowances: tuple[str, ...] = ()
    """Access to its node's host that it needs (`model.validation.host_access`)."""
    binpack: bool = False
    """Prefer the fullest node."""
    priority: int = 0

    @staticmethod
    def of(view: ClusterView, task: Task) -> Demand:
        """The demand of a task, with the constraints of its service as they are now."""
        service = view.services.get(task.service_id)
        return Demand(
            service_id=task.service_id,
            resources=task.spec.counted,
            ports=published(task),
            constraints=service.spec.constraints if service else task.constraints,
            networks=task.spec.network_names,
            namespace_of=namespace_container(task.spec.container),
            image=task.spec.container.image,
            image_digest=task.image_digest,
            node_id=task.node_id,
            is_rerun=task.standalone and bool(task.node_id),
            volumes=named_volumes(task),
            volumes_from=task.spec.container.volumes_from,
            max_per_node=service.spec.max_per_node if service else 0,
            spread=service.spec.spread if service else (),
            affinities=service.spec.affinities if service else task.affinities,
            generic=task.spec.generic_resources,
            features=_features(service, task),
            allowances=wanted(task.spec),
            binpack=_strategy(view, service) is Strategy.BINPACK,
            priority=service.spec.priority if service else task.priority,
        )


def priority_of(view: ClusterView, task: Task) -> int:
    """The priority of a task: its service's, or a standalone container's own."""
    service = view.services.get(task.service_id)
    return service.spec.priority if service is not None else task.priority


def _strategy(view: ClusterView, service: Service | None) -> Strategy:
    """Of a service, or of containers."""
    own = service.spec.strategy if service else Strategy.DEFAULT
    return own or (view.cluster.strategy if view.cluster else own)


def _features(service: Service | None, task: Task) -> tuple[str, ...]:
    """The features that its node's agent must have."""
    stops = service is not None and service.spec.on_disconnect.action is DisconnectAction.STOP
    return (*required_features(task.spec), *((STOP_AFTER,) if stops else ()))


_HALTED = (UpdateState.CANARY, UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)
"""States of an update in which outdated tasks stay."""


def _is_leaving(service: Service | None, task: Task) -> bool:
    """Whether an update in progress has yet to replace the task."""
    if service is None or service.update.state in _HALTED:
        return False
    return task.spec_version != service.spec_version and not is_current(service, task)


class NodeTable:
    """Arrays over the nodes of a view; `place` keeps them current during a pass."""

    def __init__(self, view: ClusterView) -> None:
        self.nodes = tuple(view.nodes[id] for id in sorted(view.nodes))
        self.row = {node.id: row for row, node in enumerate(self.nodes)}
        resources = [node.description.resources for node in self.nodes]
        loads = [view.loads.get(node.id, NO_LOAD) for node in self.nodes]
        self.total_shares = _ints([amount.shares for amount in resources])
        self.total_memory = _ints([amount.memory for amount in resources])
        self.free_shares = self.total_shares - _ints([load.shares for load in loads])
        self.free_memory = self.total_memory - _ints([load.memory for load in loads])
        self.tasks = _ints([load.tasks for load in loads])
        self.state = _ints([node.state for node in self.nodes])
        self.availability = _ints([node.availability for node in self.nodes])
        self.ports: dict[Port, set[int]] = {}
        """Which rows have a published port in use."""
        self.pinned = PinnedVolumes(view)
        """The nodes that volumes are pinned to, including volumes that this pass creates."""
        self.with_affinities = [each for each in view.services.values() if each.spec.affinities]
        """The services with affinities, by id: they may have an anti-affinity to others."""
        self.with_affinities.sort(key=lambda service: service.id)
        self.generic = GenericPool(view, self.nodes)
        for row, load in enumerate(loads):
            for port in load.ports:
                self.ports.setdefault(port, set()).add(row)
        self._view = view
        self._loads = loads
        self._rules: dict[Hashable, BoolArray] = {}
        self._attached: dict[str, IntArray] = {}
        self._counts: dict[str, IntArray] = {}
        self._staying: dict[str, IntArray] = {}

    def tasks_of_service(self, service_id: str) -> IntArray:
        """How many tasks of the service each node has that are not being stopped."""
        if service_id not in self._counts:
            self._count(service_id)
        return self._counts[service_id]

    def staying_of_service(self, service_id: str) -> IntArray:
        """As `tasks_of_service`, without those that the service's update has yet to replace:
        they do not count for the spread after the update."""
        if service_id not in self._counts:
            self._count(service_id)
        return self._staying[service_id]

    def _count(self, service_id: str) -> None:
        """Count the tasks of a service; with none to replace, both counts are one array."""
        service = self._view.services.get(service_id)
        active = np.zeros(len(self.nodes), dtype=np.int64)
        leaving: Counter[int] = Counter()
        for task in self._view.tasks_of_service(service_id).values():
            row = self.row.get(task.node_id)
            if row is None or task.desired_state > TaskState.RUNNING or not occupies(task):
                continue
            active[row] += 1
            if _is_leaving(service, task):
                leaving[row] += 1
        staying = active
        if leaving:
            staying = active.copy()
            for row, count in leaving.items():
                staying[row] -= count
        self._counts[service_id], self._staying[service_id] = active, staying

    def attached(self, network: str) -> IntArray:
        """How many tasks each node has on a network."""
        counts = self._attached.get(network)
        if counts is None:
            counts = _ints([load.networks.get(network, 0) for load in self._loads])
            self._attached[network] = counts
        return counts

    def place(self, row: int, demand: Demand) -> bool:
        """Count a task of this demand on the node. Return whether that pinned a volume, which the
        next tasks of the same demand must follow."""
        self.free_shares[row] -= demand.resources.shares
        self.free_memory[row] -= demand.resources.memory
        self.tasks[row] += 1
        active = self.tasks_of_service(demand.service_id)
        staying = self.staying_of_service(demand.service_id)
        active[row] += 1
        if staying is not active:
            staying[row] += 1
        for port in demand.ports:
            self.ports.setdefault(port, set()).add(row)
        for name in demand.networks:
            self.attached(name)[row] += 1
        return bool(demand.volumes) and self.pinned.pin(demand.volumes, self.nodes[row])

    def each_node(self, key: Hashable, passes: Callable[[Node], bool]) -> BoolArray:
        """Which nodes pass a rule that placements do not change. Computed once for a `key`, which
        must name the rule and all that it depends on; the result must not be changed."""
        found = self._rules.get(key)
        if found is None:
            found = np.array([passes(node) for node in self.nodes], dtype=np.bool_)
            self._rules[key] = found
        return found

    def leave(self, source: int, demand: Demand) -> None:
        """Count a task of this demand no longer on the node."""
        self._subtract(source, demand)
        for each in demand.generic:
            self.generic.release(source, each)

    def _subtract(self, row: int, demand: Demand) -> None:
        """Undo `place`, except for generic resources and pinned volumes."""
        self.free_shares[row] += demand.resources.shares
        self.free_memory[row] += demand.resources.memory
        self.tasks[row] -= 1
        active = self.tasks_of_service(demand.service_id)
        staying = self.staying_of_service(demand.service_id)
        active[row] -= 1
        if staying is not active:
            staying[row] -= 1
        for port in demand.ports:
            self.ports.get(port, set()).discard(row)
        for name in demand.networks:
            self.attached(name)[row] -= 1

    def move(self, source: int, target: int, demand: Demand) -> None:
        """Count a task of this demand on another node."""
        self.leave(source, demand)
        for each in demand.generic:
            self.generic.hold(target, each)
        self.place(target, demand)

    def unplace(self, row: int, demand: Demand, generic: Mapping[str, str]) -> None:
        """Undo `place` of a task that was given these generic resources. Volumes stay pinned."""
        self._subtract(row, demand)
        self.generic.give_back(row, generic)

    def hold(self, row: int, demand: Demand) -> None:
        """Keep room on the node for a task that is not placed yet. What is free becomes negative if
        the room is still to be made."""
        self.free_shares[row] -= demand.resources.shares
        self.free_memory[row] -= demand.resources.memory
        for port in demand.ports:
            self.ports.setdefault(port, set()).add(row)
        for each in demand.generic:
            self.generic.hold(row, each)


@dataclass(frozen=True, slots=True)
class Filter:
    """One rule on nodes."""

    check: Callable[[NodeTable], BoolArray]
    """True for each row that passes."""
    explain: str
    """The reason of a node that does not pass, in pending reasons."""
    lasting: bool = False
    """A node that does not pass never will, unless an operator changes it."""
    capacity: bool = False
    """A node that does not pass may once other tasks have stopped."""


def _ints(values: list[int]) -> IntArray:
    return np.array(values, dtype=np.int64)
