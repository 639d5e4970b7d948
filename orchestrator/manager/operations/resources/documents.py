# SPDX-License-Identifier: Apache-2.0
"""Operations on secrets and configs. The data of a secret is write-only here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestrator.manager.errors import already_exists, failed_precondition, invalid_argument
from orchestrator.manager.event_loop import offload
from orchestrator.manager.object_lookup import find_document
from orchestrator.manager.operations.context import ManagerContext, Operations, on_current_state
from orchestrator.manager.operations.references import in_use_error
from orchestrator.manager.planning.consumers import not_stopping
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.document_versions import (
    document_consumers,
    update_effects,
    versions_in_use,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.document_store import DocumentStore, NoData, deleted_data
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import sealed_key, unique_key
from orchestrator.manager.store.kv import Conflict, Delete, Guard, Op, Put
from orchestrator.model.convert import known, to_proto
from orchestrator.model.documents import (
    KEPT_VERSIONS,
    Document,
    DocumentKind,
    OnUpdate,
    check_data,
    check_document_name,
)
from orchestrator.model.formats.document_templates import check_template
from orchestrator.pb import documents_pb2, types_pb2


class DocumentOperations(Operations):
    """Operations of `orc secret …` and `orc config …`."""

    def __init__(self, ctx: ManagerContext) -> None:
        super().__init__(ctx)
        self._store = DocumentStore(ctx.kv, ctx.vault)

    async def create_document(
        self, request: documents_pb2.CreateDocumentRequest
    ) -> types_pb2.Document:
        """Create a secret or config."""
        ctx, kind, now = self.ctx, known(DocumentKind, request.kind), self.ctx.now()
        document = Document(
            id=ctx.new_id(),
            kind=kind,
            name=request.name,
            created_at=now,
            updated_at=now,
            labels=dict(request.labels),
            kept=(1,),
            template_driver=request.template_driver,
        )
        _check(document, request.data)
        key = unique_key(document)
        assert key is not None  # it has a name
        if ctx.view.document_by_name(kind, document.name) is not None:
            raise _taken(document)
        named = Put(key, document.id.encode())
        try:
            revision = await ctx.commit_sealed(
                Change(None, document),
                lambda: [named, self._store.write(document, request.data)],
                [Guard(key, mod_revision=0)],
            )
        except Conflict:
            raise _taken(document) from None
        await ctx.cache.wait_for(revision)
        return to_proto(replace(document, revision=revision))

    async def list_documents(
        self, request: documents_pb2.ListDocumentsRequest
    ) -> documents_pb2.ListDocumentsReply:
        """List secrets or configs; configs with their data if requested."""
        kind = known(DocumentKind, request.kind)
        found, reply = await offload(_list, self.ctx.view, kind, request.document)
        if request.with_data and kind is DocumentKind.CONFIG:
            for document, row in zip(found, reply.documents, strict=True):
                row.data = await self._read(document)
        return reply

    @on_current_state
    async def update_document(
        self, request: documents_pb2.UpdateDocumentRequest
    ) -> documents_pb2.UpdateDocumentReply:
        """Change labels or add a version of a secret or config."""
        ctx, kind = self.ctx, known(DocumentKind, request.kind)
        before = find_document(ctx.view, kind, request.document)
        if before.removing:
            raise failed_precondition(f"{kind.word} '{before.name}' is being removed")
        labels = {**before.labels, **request.label_add}
        labels = {key: value for key, value in labels.items() if key not in request.label_rm}
        after = replace(before, labels=labels)
        forget: list[Op] | None = None
        if request.HasField("data"):
            _check(before, request.data)
            if not await self._is(before, request.data):
                after, forget = self._next(after)
        if request.check_only:
            return documents_pb2.UpdateDocumentReply(
                document=to_proto(before), changed=forget is not None
            )
        if after == before:
            return documents_pb2.UpdateDocumentReply(document=to_proto(before))
        if forget is None:
            revision = await commit(ctx.kv, [Change(before, after)])
        else:
            gone = forget
            revision = await ctx.commit_sealed(
                Change(before, after), lambda: [self._store.write(after, request.data), *gone]
            )
        await ctx.cache.wait_for(revision)
        told = update_effects(ctx.view, after) if forget is not None else {}
        return documents_pb2.UpdateDocumentReply(
            document=to_proto(replace(after, revision=revision)),
            changed=forget is not None,
            rolled=told.get(OnUpdate.ROLL, ()),
            signalled=told.get(OnUpdate.SIGNAL, ()),
            left=told.get(OnUpdate.NONE, ()),
        )

    @on_current_state
    async def remove_document(
        self, request: documents_pb2.RemoveDocumentRequest
    ) -> documents_pb2.RemoveDocumentReply:
        """Remove a secret or config: mark it, so that it takes no new users, check that it has
        none, and delete it. With `when_unused`, stopping tasks may still use it, and
        `DeferredRemoval` deletes it."""
        ctx, kind = self.ctx, known(DocumentKind, request.kind)
        document = find_document(ctx.view, kind, request.document)
        when_unused = request.when_unused
        _check_unused(document, document_consumers(ctx.view, document), when_unused)
        marked = replace(document, removing=True, remove_when_unused=when_unused)
        revision = await commit(ctx.kv, [Change(document, marked)])
        await ctx.cache.wait_for(revision)
        marked = replace(marked, revision=revision)
        try:
            _check_unused(document, document_consumers(ctx.view, document), when_unused)
        except BaseException:
            after = replace(marked, removing=False, remove_when_unused=False)
            await commit(ctx.kv, [Change(marked, after)])
            raise
        if not when_unused:
            revision = await commit(ctx.kv, [Change(marked, None)], ops=deleted_data(marked))
            await ctx.cache.wait_for(revision)
        return documents_pb2.RemoveDocumentReply(id=document.id)

    def _next(self, document: Document) -> tuple[Document, list[Op]]:
        """The document with a new version, and the operations that delete old ones: all but the
        newest and those in use."""
        version = document.version + 1
        kept = (*document.kept, version)
        used = versions_in_use(self.ctx.view, document.id)
        gone = [each for each in kept[:-KEPT_VERSIONS] if each not in used]
        after = replace(
            document,
            version=version,
            kept=tuple(each for each in kept if each not in gone),
            updated_at=self.ctx.now(),
        )
        return after, [Delete(sealed_key(document.id, each)) for each in gone]

    async def _read(self, document: Document) -> bytes:
        try:
            return await self._store.read(document, document.version)
        except NoData as error:
            raise failed_precondition(str(error)) from None

    async def _is(self, document: Document, data: bytes) -> bool:
        """Whether this is its current data. Data that cannot be opened counts as different."""
        try:
            return await self._store.read(document, document.version) == data
        except NoData:
            return False


def _list(view: ClusterView, kind: DocumentKind, word: str) -> tuple[list[Document], Any]:
    """The documents of a kind, or the one that `word` identifies, and the reply that lists them."""
    if word:
        found = [find_document(view, kind, word)]
    else:
        found = [each for each in view.documents.values() if each.kind is kind]
        found.sort(key=lambda each: each.name)
    reply = documents_pb2.ListDocumentsReply()
    for document in found:
        reply.documents.add(document=to_proto(document), used_by=document_consumers(view, document))
    return found, reply


def _check(document: Document, data: bytes) -> None:
    try:
        check_document_name(document.kind, document.name)
        check_data(document.kind, document.name, data, document.template_driver)
        if document.template_driver:
            check_template(document.kind, document.name, data)
    except ValueError as error:
        raise invalid_argument(str(error)) from None


def _check_unused(document: Document, found: Sequence[str], when_unused: bool) -> None:
    """Raise RequestError if it is in use; with `when_unused`, stopping tasks do not count."""
    if not_stopping(found) if when_unused else found:
        word, name = document.kind.word, document.name
        detach = {"service": f"orc service update --{word}-rm {name} {{}}"}
        raise in_use_error(f"{word} '{name}'", found, detach)


def _taken(document: Document) -> Exception:
    word = document.kind.word
    return already_exists(
        f"{word} '{document.name}' already exists; choose another name, "
        f"or change it with 'orc {word} update {document.name}'"
    )
