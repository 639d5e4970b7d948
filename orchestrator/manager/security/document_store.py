# SPDX-License-Identifier: Apache-2.0
"""The data of secrets and configs: sealed in the store, decrypted for nodes that run their
tasks."""

from __future__ import annotations

from orchestrator.manager.security.vault import Vault, VaultError
from orchestrator.manager.store.keys import sealed_key
from orchestrator.manager.store.kv import Delete, Entry, Kv, Op, Put
from orchestrator.model.documents import Document


class NoData(Exception):
    """A version's data is not available; the text says why."""


class DocumentStore:
    """Encrypts data on writing and decrypts it on reading. Caches nothing."""

    def __init__(self, kv: Kv, vault: Vault) -> None:
        self._kv = kv
        self._vault = vault

    def write(self, document: Document, data: bytes) -> Put:
        """The operation that writes the data of the document's newest version."""
        sealed = self._vault.seal_data(data, document_purpose(document.id, document.version))
        return Put(sealed_key(document.id, document.version), sealed)

    async def read(self, document: Document, version: int) -> bytes:
        """The data of a version. Raises NoData, and StoreError when the store is unavailable."""
        what = f"{document.kind.word} '{document.name}'"
        entry = await self._kv.get(sealed_key(document.id, version))
        if entry is None:
            raise NoData(f"version {version} of {what} is not kept any more")
        try:
            return self._vault.open_data(entry.value, document_purpose(document.id, version))
        except VaultError as error:
            raise NoData(f"{what} cannot be opened: {error}") from error


def deleted_data(document: Document) -> list[Op]:
    """The operations that delete the data of all versions."""
    return [Delete(sealed_key(document.id, version)) for version in document.kept]


def opens(vault: Vault, entry: Entry, document_id: str, version: int) -> bool:
    """Whether the vault's key is the one that a version was sealed with."""
    try:
        vault.open_data(entry.value, document_purpose(document_id, version))
    except VaultError:
        return False
    return True


def document_purpose(document_id: str, version: int) -> str:
    """The purpose that a version is sealed for, so that none can be substituted for another."""
    return f"document {document_id} {version}"
