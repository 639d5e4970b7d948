# SPDX-License-Identifier: Apache-2.0
"""Versions of secrets and configs: which one each task gets, and what a new version does.

A service's tasks have the versions of `Service.documents`. Where a reference says *roll*, a new
version is given to the service by the planner, which works from the store alone, so that a
manager's failure loses nothing. It is an update of the service, which completes, fails and is
rolled back like any other. Where it says *signal*, containers get the newest while they run, so no
version is recorded.

A service that was rolled back from a version keeps the one that it has: it is given the next. One
whose update is in progress or paused gets it afterwards, so that versions are not mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from orchestrator.manager.planning.consumers import consumer, in_order
from orchestrator.manager.planning.reconcile.spec_history import with_documents
from orchestrator.manager.planning.slots import Draft
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.documents import Document, FileReference, OnUpdate, references
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import ContainerSpec
from orchestrator.model.states import is_terminal
from orchestrator.model.tasks import Task

_SETTLED = (UpdateState.NONE, UpdateState.COMPLETED, UpdateState.ROLLED_BACK)


def named_documents(
    view: ClusterView, spec: ContainerSpec
) -> Iterator[tuple[Document, FileReference]]:
    """The documents that a container names, as far as they exist."""
    for kind, reference in references(spec):
        document = view.document_by_name(kind, reference.source)
        if document is not None:
            yield document, reference


def newest_versions(view: ClusterView, spec: ContainerSpec) -> dict[str, int]:
    """The newest version of each document that a container names and has for good, by id."""
    return {document.id: document.version for document in _pinned(view, spec)}


def versions_for_rollback(
    view: ClusterView, spec: ContainerSpec, had: Mapping[str, int]
) -> dict[str, int]:
    """The versions of an earlier spec, for going back to it: those that it had. Of one that is not
    kept any more it is the newest."""
    return {
        document.id: version
        if (version := had.get(document.id, 0)) in document.kept
        else document.version
        for document in _pinned(view, spec)
    }


def version_of(task: Task, document: Document, reference: FileReference) -> int:
    """The version that a task should have now."""
    if reference.on_update is OnUpdate.SIGNAL:
        return document.version
    return task.documents.get(document.id, document.version)


def update_documents(view: ClusterView, service: Service, draft: Draft) -> Service:
    """The service with the versions that it should have now; the draft is of that from here on."""
    if service.spec.mode.is_job:
        return _for_next_run(view, service, draft)
    after = with_due_versions(view, service, draft.now)
    if after is not service:
        draft.service = after
    return after


def with_due_versions(view: ClusterView, service: Service, now: float) -> Service:
    """The service with the new versions that it rolls to, which begins an update of it; itself if
    it has them, or while another update is in progress or paused."""
    if service.spec.mode.is_job or service.update.state not in _SETTLED:
        return service
    new = dict(service.documents)
    for document, reference in named_documents(view, service.spec.task.container):
        known = max(service.documents.get(document.id, 0), service.declined.get(document.id, 0))
        if reference.on_update is OnUpdate.ROLL and document.version > known:
            new[document.id] = document.version
    return service if new == service.documents else with_documents(service, new, now)


def _for_next_run(view: ClusterView, service: Service, draft: Draft) -> Service:
    """A job's tasks get the newest versions when they are created; none is replaced for a new
    one."""
    documents = newest_versions(view, service.spec.task.container)
    if documents == service.documents:
        return service
    draft.service = after = replace(service, documents=documents)
    return after


def _pinned(view: ClusterView, spec: ContainerSpec) -> Iterator[Document]:
    for document, reference in named_documents(view, spec):
        if reference.on_update is not OnUpdate.SIGNAL:
            yield document


def document_consumers(view: ClusterView, document: Document) -> list[str]:
    """Consumers of the document, such as `service web`: services, and containers that may run
    again. A service that may still be rolled back to a spec that names it is one of them."""
    found = {
        f"service {service.spec.name}"
        for service in view.services.values()
        if not service.removed and any(_names(spec, document) for spec in _specs(service))
    }
    for task in view.tasks.values():
        if not _names(task.spec.container, document):
            continue
        if task.standalone or not is_terminal(task.status.state):
            found.add(consumer(view, task))
    return in_order(found)


def _specs(service: Service) -> Iterator[ContainerSpec]:
    yield service.spec.task.container
    if service.update.state not in _SETTLED and service.history:
        yield service.history[0].spec.task.container


def _names(spec: ContainerSpec, document: Document) -> bool:
    return any(
        kind is document.kind and reference.source == document.name
        for kind, reference in references(spec)
    )


def versions_in_use(view: ClusterView, document_id: str) -> set[int]:
    """The versions that services and tasks have now."""
    holders = [service.documents for service in view.services.values()]
    holders += [task.documents for task in view.tasks.values()]
    return {held[document_id] for held in holders if document_id in held}


def update_effects(view: ClusterView, document: Document) -> dict[OnUpdate, list[str]]:
    """What a new version does → the consumers that it does it to."""
    found: dict[OnUpdate, list[str]] = {each: [] for each in OnUpdate}
    holders = [
        (
            f"service {service.spec.name}",
            service.spec.task.container,
            OnUpdate.NONE if service.spec.mode.is_job else OnUpdate.ROLL,
        )
        for service in view.services.values()
        if not service.removed
    ]
    holders += [
        (f"container {task.name}", task.spec.container, OnUpdate.NONE)
        for task in view.tasks.values()
        if task.standalone
    ]
    for name, spec, by_rolling in sorted(holders, key=lambda holder: holder[0]):
        for named_document, reference in named_documents(view, spec):
            if named_document.id == document.id:
                roll = reference.on_update is OnUpdate.ROLL
                found[by_rolling if roll else reference.on_update].append(name)
                break
    return found
