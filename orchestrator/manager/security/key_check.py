# SPDX-License-Identifier: Apache-2.0
"""Check that a manager has the key that its cluster's secrets are sealed with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.document_store import opens
from orchestrator.manager.security.registry_credentials import purpose
from orchestrator.manager.security.vault import KEY_FILE, UNLOCK_PURPOSE, Vault, VaultError
from orchestrator.manager.store.keys import sealed_key
from orchestrator.manager.store.kv import Kv


class WrongKey(Exception):
    """The key is missing or is another one; one line that says what to do."""


async def check_key(kv: Kv, view: ClusterView, vault: Vault, folder: Path) -> None:
    """Raise WrongKey if the store holds secrets that the key of `vault`, in `folder`, does not
    open.

    The cluster stores the id of its key. If that differs, or is missing as in an earlier version,
    sealed objects are tried. Without any, every key is right. Raises StoreError.
    """
    if view.cluster and view.cluster.secrets_key_id == vault.key_id:
        return
    refused = False
    async for opened in _sealed(kv, view, vault):
        if opened:
            return
        refused = True
    if refused:
        raise WrongKey(_advice(vault, folder / KEY_FILE))


def _advice(vault: Vault, path: Path) -> str:
    wrong = "is missing" if vault.new else "is another key"
    return (
        f"the store holds secrets that are sealed with the cluster's key, and {path} {wrong}: "
        f"restore {path.name} from a backup of that folder, or copy it from another manager; if it "
        "is lost for good, 'orc manager --discard-secrets' starts with a new key and without them"
    )


async def _sealed(kv: Kv, view: ClusterView, vault: Vault) -> AsyncIterator[bool]:
    """For each sealed object, whether the vault opens it."""
    if view.cluster and (sealed := view.cluster.unlock_key):
        try:
            vault.open(sealed, UNLOCK_PURPOSE)
        except (VaultError, ValueError):
            yield False
        else:
            yield True
    for credential in view.credentials.values():
        try:
            vault.open(credential.sealed, purpose(credential.id))
        except (VaultError, ValueError):
            yield False
        else:
            yield True
    for document in view.documents.values():
        for version in document.kept:
            if (entry := await kv.get(sealed_key(document.id, version))) is not None:
                yield opens(vault, entry, document.id, version)
