# SPDX-License-Identifier: Apache-2.0
"""Delivery of secrets and configs to the nodes whose tasks use them.

An assignment lists a task's files by keys (`files_of`). The data of a key is sent to a node once,
before the first assignment that names it, and only to a node that runs such a task. It is decrypted
at the moment of sending and stored nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.manager.event_loop import offload
from orchestrator.manager.planning.reconcile.document_versions import named_documents, version_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.document_store import DocumentStore, NoData
from orchestrator.manager.store.cache import Cache
from orchestrator.model.documents import (
    DEFAULT_MODE,
    Document,
    DocumentKind,
    FileReference,
    references,
)
from orchestrator.model.formats.document_templates import Filling, fill
from orchestrator.model.formats.task_templates import facts
from orchestrator.model.states import is_terminal
from orchestrator.model.tasks import Task
from orchestrator.pb import documents_pb2


@dataclass(frozen=True, slots=True)
class _File:
    """A reference of a task, and what it resolves to now."""

    kind: DocumentKind
    reference: FileReference
    document: Document | None
    version: int
    key: str


def _resolved(view: ClusterView, task: Task) -> Iterator[_File]:
    """A task's references; none once it has ended for good, so that its node deletes the data."""
    if is_terminal(task.status.state) and task.run <= task.status.run:
        return
    for kind, reference in references(task.spec.container):
        document = view.document_by_name(kind, reference.source)
        if document is None:
            yield _File(kind, reference, None, 0, f"{kind.word}.{reference.source}")
            continue
        version = version_of(task, document, reference)
        own = f".{task.id}" if document.template_driver else ""
        yield _File(kind, reference, document, version, f"{document.id}.{version}{own}")


def keys_of(view: ClusterView, task: Task) -> tuple[str, ...]:
    """The keys of the data of a task's files; each version has its own key."""
    container = task.spec.container
    if not container.secrets and not container.configs:
        return ()  # called for every task at every change
    return tuple(file.key for file in _resolved(view, task))


def files_of(view: ClusterView, task: Task) -> list[documents_pb2.AssignedFile]:
    """The files of a task, each with the key of its data."""
    return [
        documents_pb2.AssignedFile(
            payload=file.key,
            name=f"{file.kind.word} {file.reference.source}",
            target=file.reference.path(file.kind),
            uid=file.reference.uid,
            gid=file.reference.gid,
            mode=file.reference.mode or DEFAULT_MODE,
            signal=file.reference.signal_number,
        )
        for file in _resolved(view, task)
    ]


def payloads_of(view: ClusterView, task: Task) -> Iterator[documents_pb2.Payload]:
    """The data that a task needs, by key, without content."""
    for file in _resolved(view, task):
        if file.document is None:
            yield documents_pb2.Payload(
                key=file.key,
                error=f"there is no {file.kind.word} '{file.reference.source}' any more",
            )
        else:
            yield documents_pb2.Payload(
                key=file.key,
                document=file.document.id,
                version=file.version,
                task=task.id if file.document.template_driver else "",
            )


class SecretDelivery:
    """Fills in the content of messages that are about to be sent."""

    def __init__(self, cache: Cache, store: DocumentStore) -> None:
        self._cache = cache
        self._store = store

    async def fill(self, payload: documents_pb2.Payload) -> None:
        """Set a payload's data, or the reason why there is none. Raises StoreError."""
        if payload.error:
            return
        view = self._cache.view
        document = view.documents.get(payload.document)
        try:
            if document is None:
                raise NoData("it was removed")
            data = await self._store.read(document, payload.version)
            if payload.task:
                data = await self._filled(view, view.tasks.get(payload.task), document, data)
            payload.data = data
        except NoData as error:
            payload.error = str(error)

    async def _filled(
        self, view: ClusterView, task: Task | None, document: Document, data: bytes
    ) -> bytes:
        node = view.nodes.get(task.node_id) if task is not None else None
        if task is None or node is None:
            raise NoData("its task is gone")
        env = dict(entry.partition("=")[::2] for entry in task.spec.container.env)
        try:
            others: dict[tuple[DocumentKind, str], bytes] = {}
            filling = Filling(
                facts(task, view.services.get(task.service_id), node),
                env=lambda name: env.get(name, ""),
                data=lambda kind, target: _loaded(others, kind, target),
            )
            while True:
                try:
                    return await offload(fill, data, filling)
                except _DataNeeded as wanted:  # which files it needs may depend on their contents
                    others[wanted.key] = await self._other_file(view, task, *wanted.key)
        except ValueError as error:
            raise NoData(
                f"{document.kind.word} '{document.name}' cannot be filled in: {error}"
            ) from None

    async def _other_file(
        self, view: ClusterView, task: Task, kind: DocumentKind, target: str
    ) -> bytes:
        """The data of another file of the task, verbatim: templates are not expanded twice."""
        for document, reference in named_documents(view, task.spec.container):
            if document.kind is kind and _is_at(kind, reference, target):
                return await self._store.read(document, version_of(task, document, reference))
        raise ValueError(f"the task has no {kind.word} '{target}'")


class _DataNeeded(Exception):
    """A template needs the data of another file."""

    def __init__(self, kind: DocumentKind, target: str) -> None:
        super().__init__(target)
        self.key = kind, target


def _loaded(
    others: Mapping[tuple[DocumentKind, str], bytes], kind: DocumentKind, target: str
) -> bytes:
    """The data, if loaded. Raises _DataNeeded otherwise."""
    if (kind, target) not in others:
        raise _DataNeeded(kind, target)
    return others[kind, target]


def _is_at(kind: DocumentKind, reference: FileReference, target: str) -> bool:
    return target in (reference.target or reference.source, reference.path(kind))
