# SPDX-License-Identifier: Apache-2.0
"""The endpoint table: the addresses of services and containers, which every node gets.

The table has an entry for each (service or standalone container, network). It follows the view by
the changes of it: a change of one task costs that one task, however many its service has.

An endpoint is in the table from the moment that its address is known until its task has ended.
`ready` says whether it is named and balanced: it runs, on a node that is up, and is not being
stopped. So a task that is to stop is removed from both before it gets the stop order; see
`manager.dispatch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.networks import OVERLAY
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Network
from orchestrator.model.services import Service
from orchestrator.model.specs import PortSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

Key = tuple[str, str]
"""Id of the service, or of the standalone container's task; id of the network."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One task in one network."""

    task_id: str
    node_id: str
    slot: int
    name: str
    """Of the container, such as `web.3`."""
    aliases: tuple[str, ...]
    address: str
    address6: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """What holds for all endpoints of a service, or for a container, in one network."""

    id: str
    network_id: str
    name: str
    vip: str = ""
    vip6: str = ""
    ports: tuple[PortSpec, ...] = ()
    container: bool = False
    aliases: tuple[str, ...] = ()
    """Names of the service besides its own; a container's are its endpoint's."""
    publishes: bool = False
    """Its ports that are open on every node lead to it in this network."""

    @property
    def key(self) -> Key:
        """Its place in the table."""
        return self.id, self.network_id


@dataclass(frozen=True, slots=True)
class EntryChange:
    """An entry that is new or changed, the endpoints of it that are, and those that left."""

    entry: Entry
    endpoints: tuple[Endpoint, ...]
    gone: tuple[str, ...] = ()
    """Task ids."""


@dataclass(frozen=True, slots=True)
class TableChange:
    """What to do to one table to get the next."""

    changed: tuple[EntryChange, ...]
    removed: tuple[Key, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


def serves(task: Task, view: ClusterView) -> bool:
    """Whether the task is to be named and balanced now."""
    node = view.nodes.get(task.node_id)
    return (
        task.status.works
        and task.desired_state is TaskState.RUNNING
        and task.status.run == task.run
        and node is not None
        and (node.state is NodeState.READY or node.awaited)
    )


class Table:
    """The entries and endpoints of a view, kept current with `update`."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._endpoints: dict[Key, dict[str, Endpoint]] = {}
        """An entry's endpoints by task id."""
        self._networks: dict[str, set[str]] = {}
        """Owner's id → the networks in which it has an entry."""
        self._owners: dict[str, str] = {}
        """Task id → the owner's id, of tasks that have an endpoint."""

    @staticmethod
    def of(view: ClusterView) -> Table:
        """The table of a view."""
        table = Table()
        edit = _Edit(table, view)
        for service in view.services.values():
            edit.look_at_service(service.id)
        for task in view.tasks.values():
            edit.look_at_task(task.id)
        return table

    def whole(self) -> TableChange:
        """All of it, as the change of an empty table."""
        return TableChange(
            tuple(
                EntryChange(entry, _ordered(self._endpoints[key].values()))
                for key, entry in sorted(self._entries.items())
            ),
            (),
        )

    def endpoints(self, key: Key) -> dict[str, Endpoint]:
        """An entry's endpoints by task id; none if there is no such entry."""
        return self._endpoints.get(key, {})

    def serving(self, task_id: str) -> bool:
        """Whether any endpoint of the task is ready."""
        owner = self._owners.get(task_id, "")
        return any(
            endpoint.ready
            for network in self._networks.get(owner, ())
            if (endpoint := self._endpoints[owner, network].get(task_id))
        )

    def update(self, view: ClusterView, changes: Iterable[Change]) -> TableChange:
        """Become the table of `view`, which these changes led to; what that changes in it."""
        edit = _Edit(self, view)
        services, tasks = _touched(view, changes)
        for service_id in services:
            if edit.look_at_service(service_id):
                tasks.update(view.tasks_of_service(service_id))
        for task_id in tasks:
            edit.look_at_task(task_id)
        return edit.result()


def _touched(view: ClusterView, changes: Iterable[Change]) -> tuple[set[str], set[str]]:
    """Ids of the services and of the tasks of which the changes may change something here."""
    services: set[str] = set()
    tasks: set[str] = set()
    for change in changes:
        match change.subject:
            case Task() as task:
                tasks.add(task.id)
            case Service() as service:
                services.add(service.id)
            case Node() as node:
                before = change.before
                known = isinstance(before, Node) and before.state is node.state
                if not known or change.after is None:
                    tasks.update(view.tasks_of_node(node.id))
            case Network():
                # Addresses are by the network's name: it may be another that has it now.
                if change.before is None or change.after is None:
                    services.update(view.services)
                    tasks.update(view.tasks)
            case _:
                pass
    return services, tasks


def _ordered(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    return tuple(sorted(endpoints, key=lambda each: (each.slot, each.task_id)))


@dataclass(slots=True)
class _Difference:
    """What was done to one entry."""

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)


class _Edit:
    """An edit of a table to match a view."""

    def __init__(self, table: Table, view: ClusterView) -> None:
        self._table = table
        self._view = view
        self._changed: dict[Key, _Difference] = {}
        self._removed: set[Key] = set()

    def result(self) -> TableChange:
        changed = []
        for key, difference in sorted(self._changed.items()):
            entry = self._table._entries[key]
            endpoints = _ordered(difference.endpoints.values())
            changed.append(EntryChange(entry, endpoints, tuple(sorted(difference.gone))))
        return TableChange(tuple(changed), tuple(sorted(self._removed)))

    def look_at_service(self, service_id: str) -> bool:
        """Bring a service's entries up to date; whether it is in other networks than before, so
        that its tasks are to be looked at."""
        service = self._view.services.get(service_id)
        entries = [] if service is None or service.removed else _entries(self._view, service)
        return self._have(service_id, entries)

    def look_at_task(self, task_id: str) -> None:
        """Bring a task's endpoints up to date, and the entries of a standalone container."""
        task = self._view.tasks.get(task_id)
        found = dict(_endpoints(self._view, task)) if task else {}
        owner = self._table._owners.get(task_id, "")
        if task is not None:
            owner = task.service_id or task.id
        if owner == task_id:
            self._have(
                owner, [_container(self._view, task, network) for network in found] if task else []
            )
        networks = self._table._networks.get(owner, ())
        found = {network: each for network, each in found.items() if network in networks}
        for network in networks:
            self._place((owner, network), task_id, found.get(network))
        if found:
            self._table._owners[task_id] = owner
        else:
            self._table._owners.pop(task_id, None)

    def _have(self, owner: str, entries: Iterable[Entry]) -> bool:
        table = self._table
        wanted = {entry.network_id: entry for entry in entries}
        known = table._networks.get(owner, set())
        for network in known - wanted.keys():
            key = owner, network
            del table._entries[key]
            for task_id in table._endpoints.pop(key):
                table._owners.pop(task_id, None)
            self._changed.pop(key, None)
            self._removed.add(key)
        for network, entry in wanted.items():
            key = owner, network
            if table._entries.get(key) != entry:
                table._entries[key] = entry
                table._endpoints.setdefault(key, {})
                self._removed.discard(key)
                self._changed.setdefault(key, _Difference())
        if wanted:
            table._networks[owner] = set(wanted)
        else:
            table._networks.pop(owner, None)
        return wanted.keys() != known

    def _place(self, key: Key, task_id: str, endpoint: Endpoint | None) -> None:
        endpoints = self._table._endpoints[key]
        if endpoints.get(task_id) == endpoint:
            return
        difference = self._changed.setdefault(key, _Difference())
        if endpoint is None:
            del endpoints[task_id]
            difference.endpoints.pop(task_id, None)
            difference.gone.add(task_id)
        else:
            endpoints[task_id] = endpoint
            difference.gone.discard(task_id)
            difference.endpoints[task_id] = endpoint


def _published_in(view: ClusterView, spec: TaskSpec) -> str:
    """The network in which every node leads to a task's ports: the first that spans nodes; empty
    for none."""
    for attachment in spec.attachments if spec.ports else ():
        network = view.network_by_name(attachment.network)
        if network is not None and network.driver == OVERLAY:
            return network.id
    return ""


def _entries(view: ClusterView, service: Service) -> list[Entry]:
    found = []
    published_in = _published_in(view, service.spec.task)
    for attachment in service.spec.task.attachments:
        if (network := view.network_by_name(attachment.network)) is not None:
            found.append(
                Entry(
                    id=service.id,
                    network_id=network.id,
                    name=service.spec.name,
                    vip=service.vips.get(network.id, ""),
                    vip6=service.vips6.get(network.id, ""),
                    ports=service.spec.task.ports,
                    aliases=attachment.aliases,
                    publishes=network.id == published_in,
                )
            )
    return found


def _container(view: ClusterView, task: Task, network_id: str) -> Entry:
    return Entry(
        id=task.id,
        network_id=network_id,
        name=task.name,
        ports=task.spec.ports,
        container=True,
        publishes=network_id == _published_in(view, task.spec),
    )


def _endpoints(view: ClusterView, task: Task) -> Iterator[tuple[str, Endpoint]]:
    """Network id → the task there; nothing before it has an address and after it has ended."""
    if not TaskState.STARTING <= task.status.state <= TaskState.RUNNING:
        return
    aliases = {each.network: each.aliases for each in task.spec.attachments}
    addresses, addresses6 = task.status.addresses, task.status.addresses6
    for name in sorted(addresses.keys() | addresses6.keys()):
        if (network := view.network_by_name(name)) is not None:
            yield (
                network.id,
                Endpoint(
                    task_id=task.id,
                    node_id=task.node_id,
                    slot=task.slot,
                    name=task.name,
                    aliases=aliases.get(name, ()),
                    address=addresses.get(name, ""),
                    address6=addresses6.get(name, ""),
                    ready=serves(task, view),
                ),
            )
