"""What a node is told of the secrets and configs of its tasks.

An order to run a task lists its files by keys (`files_of`). The data of a key goes to a node once,
before the first order that names it, and only to a node that runs such a task: the session asks for
what its node lacks, and what is sent is opened at that moment. It is written down nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.manager.documentstore import DocumentStore, NoData
from orchestrator.manager.planning.documents import named, version_of
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.model.documents import (
    DEFAULT_MODE,
    Document,
    DocumentKind,
    FileReference,
    references,
)
from orchestrator.model.documenttemplates import Filling, fill, needed
from orchestrator.model.objects import Task
from orchestrator.model.states import is_terminal
from orchestrator.model.templates import values
from orchestrator.pb import documents_pb2


def files_of(view: ClusterView, task: Task) -> list[documents_pb2.AssignedFile]:
    """The files of a task, each with the key of its data; none once it has ended for good, so that
    its node forgets them."""
    if _ended(task):
        return []
    found = []
    for kind, reference in references(task.spec.container):
        document = view.document_by_name(kind, reference.source)
        if document is None:
            key = f"{kind.word}.{reference.source}"
        else:
            key = _key(task, document, version_of(task, document, reference))
        found.append(
            documents_pb2.AssignedFile(
                payload=key,
                name=f"{kind.word} {reference.source}",
                target=reference.path(kind),
                uid=reference.uid,
                gid=reference.gid,
                mode=reference.mode or DEFAULT_MODE,
                signal=reference.signal_number,
            )
        )
    return found


def payloads_of(view: ClusterView, task: Task) -> Iterator[documents_pb2.Payload]:
    """The data that a task needs, by key and without it; none once it has ended for good."""
    if _ended(task):
        return
    for kind, reference in references(task.spec.container):
        document = view.document_by_name(kind, reference.source)
        if document is None:
            yield documents_pb2.Payload(
                key=f"{kind.word}.{reference.source}",
                error=f"there is no {kind.word} '{reference.source}' any more",
            )
            continue
        version = version_of(task, document, reference)
        yield documents_pb2.Payload(
            key=_key(task, document, version),
            document=document.id,
            version=version,
            task=task.id if document.template_driver else "",
        )


def _ended(task: Task) -> bool:
    return is_terminal(task.status.state) and task.run <= task.status.run


def _key(task: Task, document: Document, version: int) -> str:
    own = f".{task.id}" if document.template_driver else ""
    return f"{document.id}.{version}{own}"


class Payloads:
    """Puts data into what is about to be sent."""

    def __init__(self, cache: Cache, store: DocumentStore) -> None:
        self._cache = cache
        self._store = store

    async def fill(self, payload: documents_pb2.Payload) -> None:
        """Give a payload its data, or the reason why there is none. Raises StoreError."""
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
            others = {wanted: await self._other(view, task, *wanted) for wanted in needed(data)}
            filling = Filling(
                value=values(task, view.services.get(task.service_id), node),
                env=lambda name: env.get(name, ""),
                data=lambda kind, target: others[kind, target],
            )
            return fill(data, filling)
        except ValueError as error:
            raise NoData(
                f"{document.kind.word} '{document.name}' cannot be filled in: {error}"
            ) from None

    async def _other(self, view: ClusterView, task: Task, kind: DocumentKind, target: str) -> bytes:
        """The data of another file of the task, as it is: a template is not filled in twice."""
        for document, reference in named(view, task.spec.container):
            if document.kind is kind and _is_at(kind, reference, target):
                return await self._store.read(document, version_of(task, document, reference))
        raise ValueError(f"the task has no {kind.word} '{target}'")


def _is_at(kind: DocumentKind, reference: FileReference, target: str) -> bool:
    return target in (reference.target or reference.source, reference.path(kind))
