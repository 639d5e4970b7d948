# SPDX-License-Identifier: Apache-2.0
"""An immutable snapshot of the cluster, indexed for planning.

A view is never changed: `evolve` gives a new one that shares whatever the changes do not touch
(`shared_map`), and keeps sums over tasks, such as the loads of nodes, by the difference. So the
cost follows the size of the changes. The manager's cache applies store events with it, and planning
looks ahead with it ("the cluster as it will be after these changes"), by the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.manager.planning.node_load import NO_LOAD, NodeLoad, occupies, same_load
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.shared_map import MapEdit
from orchestrator.model.administration.access import Certificate, PageSession, Revocation
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.documents import Document, DocumentKind
from orchestrator.model.nodes import EndpointProgress, Node, SessionRecord
from orchestrator.model.objects import Cluster, Credential, Image, Network, Object, Volume
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A stored object that cannot be decoded."""

    key: str
    """In the store."""
    kind: str
    """`task`, `service`, …; empty for a kind of object that this version does not know."""
    id: str
    reason: str
    """Why it cannot be decoded."""
    services: frozenset[str] = frozenset()
    """Ids of the services that are not planned while the object is quarantined."""
    addresses: frozenset[str] = frozenset()
    """The addresses that the object owns by the store's claims: nothing else can have them."""


_Names = Mapping[str, tuple[str, ...]]
"""Name → ids of the objects that have it, sorted."""

_NO_TASKS: Mapping[str, Task] = {}


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster at one moment. All mappings are by id and must not be changed."""

    cluster: Cluster | None = None
    nodes: Mapping[str, Node] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    networks: Mapping[str, Network] = field(default_factory=dict)
    images: Mapping[str, Image] = field(default_factory=dict)
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    credentials: Mapping[str, Credential] = field(default_factory=dict)
    documents: Mapping[str, Document] = field(default_factory=dict)
    certificates: Mapping[str, Certificate] = field(default_factory=dict)
    revocations: Mapping[str, Revocation] = field(default_factory=dict)
    page_sessions: Mapping[str, PageSession] = field(default_factory=dict)
    managers: Mapping[str, Manager] = field(default_factory=dict)
    manager_presence: Mapping[str, ManagerPresence] = field(default_factory=dict)
    """By the id of the manager."""
    sessions: Mapping[str, SessionRecord] = field(default_factory=dict)
    """By node id."""
    endpoint_progress: Mapping[str, EndpointProgress] = field(default_factory=dict)
    """By manager id."""
    orphans: Mapping[str, Orphan] = field(default_factory=dict)
    """By task id."""
    pending: Mapping[str, Task] = field(default_factory=dict)
    """The pending tasks."""
    fixed: Mapping[str, Task] = field(default_factory=dict)
    """The tasks with addresses that their specs fix."""
    publishing: Mapping[str, Task] = field(default_factory=dict)
    """The standalone containers that publish ports and name their networks."""
    loads: Mapping[str, NodeLoad] = field(default_factory=dict)
    """What each node's tasks take from it, by node id; none of a node without tasks."""
    quarantined: Mapping[str, Quarantined] = field(default_factory=dict)
    """Stored objects that cannot be decoded, by key. An object that was readable before
    is still in the view as it was then, and must not be changed."""
    _by_service: Mapping[str, Mapping[str, Task]] = field(default_factory=dict)
    _by_node: Mapping[str, Mapping[str, Task]] = field(default_factory=dict)
    _service_names: _Names = field(default_factory=dict)
    _network_names: _Names = field(default_factory=dict)
    _image_names: _Names = field(default_factory=dict)
    _document_names: _Names = field(default_factory=dict)

    @staticmethod
    def of(objects: Iterable[Object]) -> ClusterView:
        """A view of exactly these objects."""
        return ClusterView().evolve(Change(None, item) for item in objects)

    def objects(self) -> Iterable[Object]:
        """Every object of the view."""
        if self.cluster is not None:
            yield self.cluster
        yield from self.nodes.values()
        yield from self.services.values()
        yield from self.tasks.values()
        yield from self.networks.values()
        yield from self.images.values()
        yield from self.volumes.values()
        yield from self.credentials.values()
        yield from self.documents.values()
        yield from self.certificates.values()
        yield from self.revocations.values()
        yield from self.page_sessions.values()
        yield from self.managers.values()
        yield from self.manager_presence.values()
        yield from self.sessions.values()
        yield from self.endpoint_progress.values()
        yield from self.orphans.values()

    @property
    def services_with_tasks(self) -> Iterable[str]:
        """Ids of the services that have tasks; the empty id is that of standalone containers."""
        return self._by_service.keys()

    def tasks_of_service(self, service_id: str) -> Mapping[str, Task]:
        """All tasks of a service, those that have ended included."""
        return self._by_service.get(service_id, _NO_TASKS)

    def tasks_of_node(self, node_id: str) -> Mapping[str, Task]:
        """All tasks bound to a node, those that have ended included."""
        return self._by_node.get(node_id, _NO_TASKS)

    def service_by_name(self, name: str) -> Service | None:
        """The service of this name; one that is being removed only if there is no other."""
        found = [self.services[id] for id in self._service_names.get(name, ())]
        return min(found, key=lambda service: (service.removed, service.id), default=None)

    def network_by_name(self, name: str) -> Network | None:
        """The network of this name."""
        ids = self._network_names.get(name, ())
        return self.networks[ids[0]] if ids else None

    def image_by_name(self, name: str) -> Image | None:
        """The image of this full name; the newest if an older one has not lost the name yet."""
        found = [self.images[id] for id in self._image_names.get(name, ())]
        return max(found, key=lambda image: (image.created_at, image.id), default=None)

    def document_by_name(self, kind: DocumentKind, name: str) -> Document | None:
        """The secret or config of this name."""
        ids = self._document_names.get(f"{kind.word}/{name}", ())
        return self.documents[ids[0]] if ids else None

    def evolve(self, changes: Iterable[Change]) -> ClusterView:
        """The view after `changes`, in their order.

        What an object was before is taken from the view itself, so that a change may be applied
        twice, or over one that was missed.
        """
        edit = None
        for change in changes:
            edit = edit or _Edit(self)
            edit.apply(change)
        return edit.result() if edit is not None else self


class _Groups:
    """Tasks grouped by a key."""

    def __init__(self, groups: Mapping[str, Mapping[str, Task]]) -> None:
        self._groups = MapEdit(groups)
        self._own: dict[str, MapEdit[Task]] = {}

    def put(self, key: str, id: str, task: Task | None) -> None:
        """Store a task of a group, or remove it if it is None."""
        group = self._own.get(key)
        if group is None:
            group = self._own[key] = MapEdit(self._groups.get(key) or _NO_TASKS)
        group.put(id, task)

    def result(self) -> Mapping[str, Mapping[str, Task]]:
        for key, group in self._own.items():
            self._groups.put(key, group.result() if len(group) else None)
        return self._groups.result()


class _NameIndex:
    """Which objects have a name."""

    def __init__(self, names: _Names) -> None:
        self._names = MapEdit(names)

    def result(self) -> _Names:
        return self._names.result()

    def move(self, id: str, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        if old == new:
            return
        for name in old:
            rest = tuple(other for other in (self._names.get(name) or ()) if other != id)
            self._names.put(name, rest or None)
        for name in new:
            self._names.put(name, tuple(sorted({*(self._names.get(name) or ()), id})))


class _Edit:
    """An edit of a view into another one."""

    def __init__(self, base: ClusterView) -> None:
        self._cluster = base.cluster
        self._quarantined = base.quarantined
        self._nodes = MapEdit(base.nodes)
        self._services = MapEdit(base.services)
        self._tasks = MapEdit(base.tasks)
        self._networks = MapEdit(base.networks)
        self._images = MapEdit(base.images)
        self._volumes = MapEdit(base.volumes)
        self._credentials = MapEdit(base.credentials)
        self._documents = MapEdit(base.documents)
        self._certificates = MapEdit(base.certificates)
        self._revocations = MapEdit(base.revocations)
        self._page_sessions = MapEdit(base.page_sessions)
        self._managers = MapEdit(base.managers)
        self._manager_presence = MapEdit(base.manager_presence)
        self._sessions = MapEdit(base.sessions)
        self._endpoint_progress = MapEdit(base.endpoint_progress)
        self._orphans = MapEdit(base.orphans)
        self._pending = MapEdit(base.pending)
        self._fixed = MapEdit(base.fixed)
        self._publishing = MapEdit(base.publishing)
        self._loads = MapEdit(base.loads)
        self._by_service = _Groups(base._by_service)
        self._by_node = _Groups(base._by_node)
        self._service_names = _NameIndex(base._service_names)
        self._network_names = _NameIndex(base._network_names)
        self._image_names = _NameIndex(base._image_names)
        self._document_names = _NameIndex(base._document_names)

    def apply(self, change: Change) -> None:
        item, gone = change.subject, change.after is None
        match item:
            case Task():
                self._apply_task(item, gone)
            case Node():
                self._nodes.put(item.id, None if gone else item)
            case Service():
                service = self._services.put(item.id, None if gone else item)
                self._service_names.move(
                    item.id,
                    (service.spec.name,) if service else (),
                    () if gone else (item.spec.name,),
                )
            case Network():
                network = self._networks.put(item.id, None if gone else item)
                self._network_names.move(
                    item.id, (network.name,) if network else (), () if gone else (item.name,)
                )
            case Image():
                image = self._images.put(item.id, None if gone else item)
                self._image_names.move(
                    item.id, image.names if image else (), () if gone else item.names
                )
            case Volume():
                self._volumes.put(item.id, None if gone else item)
            case Credential():
                self._credentials.put(item.id, None if gone else item)
            case Document():
                old = self._documents.put(item.id, None if gone else item)
                self._document_names.move(item.id, _named(old), () if gone else _named(item))
            case Certificate():
                self._certificates.put(item.id, None if gone else item)
            case Revocation():
                self._revocations.put(item.id, None if gone else item)
            case PageSession():
                self._page_sessions.put(item.id, None if gone else item)
            case Manager():
                self._managers.put(item.id, None if gone else item)
            case ManagerPresence():
                self._manager_presence.put(item.id, None if gone else item)
            case SessionRecord():
                self._sessions.put(item.id, None if gone else item)
            case EndpointProgress():
                self._endpoint_progress.put(item.id, None if gone else item)
            case Orphan():
                self._orphans.put(item.id, None if gone else item)
            case Cluster():
                self._cluster = None if gone else item

    def _apply_task(self, task: Task, gone: bool) -> None:
        old = self._tasks.put(task.id, None if gone else task)
        new = None if gone else task
        if old is not None and (gone or old.service_id != task.service_id):
            self._by_service.put(old.service_id, old.id, None)
        if old is not None and old.node_id and (gone or old.node_id != task.node_id):
            self._by_node.put(old.node_id, old.id, None)
        if not gone:
            self._by_service.put(task.service_id, task.id, task)
            if task.node_id:
                self._by_node.put(task.node_id, task.id, task)
        waits = not gone and task.status.state <= TaskState.PENDING
        self._pending.put(task.id, task if waits else None)
        fixes = not gone and any(each.ip or each.ip6 for each in task.spec.networks)
        self._fixed.put(task.id, task if fixes else None)
        publishes = not gone and task.standalone and task.spec.ports and task.spec.networks
        self._publishing.put(task.id, task if publishes else None)
        if old is None or new is None or not same_load(old, new):
            for each, count in ((old, -1), (new, 1)):
                if each is not None and occupies(each):
                    load = (self._loads.get(each.node_id) or NO_LOAD).changed(each, count)
                    self._loads.put(each.node_id, load if load.tasks else None)

    def result(self) -> ClusterView:
        return ClusterView(
            cluster=self._cluster,
            nodes=self._nodes.result(),
            services=self._services.result(),
            tasks=self._tasks.result(),
            networks=self._networks.result(),
            images=self._images.result(),
            volumes=self._volumes.result(),
            credentials=self._credentials.result(),
            documents=self._documents.result(),
            certificates=self._certificates.result(),
            revocations=self._revocations.result(),
            page_sessions=self._page_sessions.result(),
            managers=self._managers.result(),
            manager_presence=self._manager_presence.result(),
            sessions=self._sessions.result(),
            endpoint_progress=self._endpoint_progress.result(),
            orphans=self._orphans.result(),
            pending=self._pending.result(),
            fixed=self._fixed.result(),
            publishing=self._publishing.result(),
            loads=self._loads.result(),
            quarantined=self._quarantined,
            _by_service=self._by_service.result(),
            _by_node=self._by_node.result(),
            _service_names=self._service_names.result(),
            _network_names=self._network_names.result(),
            _image_names=self._image_names.result(),
            _document_names=self._document_names.result(),
        )


def _named(document: Document | None) -> tuple[str, ...]:
    return (f"{document.kind.word}/{document.name}",) if document else ()


def is_assigned(task: Task, node_id: str) -> bool:
    """Whether a task is in the node's assignment.

    Tasks to be stopped are included, since the agent obeys `desired_state`; so are ended tasks for
    as long as the store has them, since the node keeps their logs. Orphaned tasks are not, so that
    a node that comes back stops them. A standalone container that waits for its next run stays
    assigned to its node, which has its files.
    """
    state = task.status.state
    return (
        task.node_id == node_id
        and (state >= TaskState.ASSIGNED or task.standalone)
        and state is not TaskState.ORPHANED
    )


def assigned_tasks(view: ClusterView, node_id: str) -> dict[str, Task]:
    """The node's tasks, by id in ascending order."""
    tasks = view.tasks_of_node(node_id)
    return {id: tasks[id] for id in sorted(tasks) if is_assigned(tasks[id], node_id)}
