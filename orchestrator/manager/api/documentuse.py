"""The secrets and configs that a spec names: whether it may have them.

A document is removed in two steps, as a network is: first it is marked, so that nobody new may have
it, then it is looked who has it. So what names one is written with the condition that it is still
as it was read.
"""

from __future__ import annotations

from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.refusal import Refusal, not_found, precondition
from orchestrator.model.documents import Document, DocumentKind, references
from orchestrator.model.names import near_miss
from orchestrator.model.specs import ContainerSpec


def usable_documents(view: ClusterView, spec: ContainerSpec) -> list[Document]:
    """The secrets and configs that the container names. Raises Refusal unless it may have them."""
    found: dict[str, Document] = {}
    for kind, reference in references(spec):
        document = view.document_by_name(kind, reference.source)
        if document is None:
            raise no_document(view, kind, reference.source)
        if document.removing:
            raise precondition(f"{kind.word} '{document.name}' is being removed; choose another")
        found[document.id] = document
    return list(found.values())


def no_document(view: ClusterView, kind: DocumentKind, word: str) -> Refusal:
    """What is said of a secret or config that is not there."""
    names = [each.name for each in view.documents.values() if each.kind is kind]
    guess = near_miss(word, names)
    hint = f"did you mean '{guess}'?" if guess else f"make it with 'orc {kind.word} create'"
    return not_found(f"no {kind.word} '{word}'; {hint}")
