# SPDX-License-Identifier: Apache-2.0
"""A manager follows the keys that the cluster's object in the store names.

Rotation of the data key:

1. The manager that is asked generates a key, saves it, and writes its id to the store.
2. All managers fetch it from one that has it, save it, and record that they did.
3. Once all that run have it, the leader makes it the key that seals. What is sealed is written on
   condition that the cluster's object is unchanged, so nothing is sealed with the former key later.
4. The leader seals everything anew, and ends the rotation; then all managers drop the former key.

Each step is in the store or on disk before the next one begins, so any manager goes on after a
crash. A manager that was down fetches what it lacks when it starts.

In the same way, a manager locks its key files with the unlock key of the cluster's object.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.identity.key_files import DATA_KEYS, KeyFiles, unlock_key_id
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.document_store import document_purpose
from orchestrator.manager.security.registry_credentials import purpose
from orchestrator.manager.security.store_follower import follow_store
from orchestrator.manager.security.vault import CA_PURPOSE, UNLOCK_PURPOSE, Vault, VaultError
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import sealed_key
from orchestrator.manager.store.kv import Conflict, Guard, Kv, Put
from orchestrator.model.administration.access import KeyRotation
from orchestrator.model.administration.managers import Manager
from orchestrator.model.objects import Cluster

log = logging.getLogger(__name__)

Fetch = Callable[[Collection[str]], Awaitable[Sequence[bytes]]]
"""Gets data keys by id from other managers, as far as one has them."""


class KeyRing:
    """Keeps a manager's keys as the store says; while it leads, advances a rotation."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        vault: Vault,
        files: KeyFiles,
        manager_id: str,
        fetch: Fetch,
        leads: Callable[[], bool],
    ) -> None:
        self._kv = kv
        self._cache = cache
        self._vault = vault
        self._files = files
        self._manager_id = manager_id
        self._fetch = fetch
        self._leads = leads

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await follow_store(self._cache, self._pass, log, "cannot bring the keys up to date")

    async def _pass(self) -> None:
        await self._update()
        if self._leads():
            await self._advance()

    async def prepare(self) -> None:
        """Fetch the key that the cluster's secrets are sealed with, if another manager has it: this
        one was down during a rotation."""
        cluster = self._cache.view.cluster
        if cluster and cluster.secrets_key_id and not self._vault.use(cluster.secrets_key_id):
            for key in await self._fetch([cluster.secrets_key_id]):
                self._vault.add(key)
            self._vault.use(cluster.secrets_key_id)

    async def _update(self) -> None:
        cluster = self._cache.view.cluster
        if cluster is None:
            return
        rotation = cluster.key_rotation
        wanted = {cluster.secrets_key_id, rotation.id, rotation.former} - {""}
        missing = wanted - set(self._vault.key_ids)
        if missing:
            for key in await self._fetch(missing):
                self._vault.add(key)
        if self._vault.use(cluster.secrets_key_id) and wanted <= set(self._vault.key_ids):
            self._vault.keep(wanted)
        await asyncio.to_thread(self._files.write, DATA_KEYS, self._vault.text())
        unlock_key = (
            self._vault.open(cluster.unlock_key, UNLOCK_PURPOSE) if cluster.unlock_key else ""
        )
        await asyncio.to_thread(self._files.protect, unlock_key)
        own = self._cache.view.managers.get(self._manager_id)
        if own is None:
            return
        after = replace(own, data_keys=self._vault.key_ids, unlock_key_id=unlock_key_id(unlock_key))
        if after != own:
            await self._write(own, after)

    async def _advance(self) -> None:
        """Take the next step of a rotation, if it is time."""
        view = self._cache.view
        cluster = view.cluster
        if cluster is None or not (new := cluster.key_rotation.id):
            return
        if cluster.secrets_key_id != new:
            if without_key(view, new) or new not in self._vault.key_ids:
                return
            log.info("the new data key seals from now on", extra={"key": new})
            await self._write(cluster, replace(cluster, secrets_key_id=new))
        elif {new, cluster.key_rotation.former} - set(self._vault.key_ids):
            return  # without both, it would not see what is still to be sealed anew
        elif self._vault.key_id == new and not await seal_anew(self._kv, view, self._vault):
            log.info("the data key was rotated", extra={"key": new})
            await self._write(cluster, replace(cluster, key_rotation=KeyRotation()))

    async def _write(self, before: Manager | Cluster, after: Manager | Cluster) -> None:
        with suppress(Conflict):
            await self._cache.wait_for(await commit(self._kv, [Change(before, after)]))


def without_key(view: ClusterView, id: str) -> list[str]:
    """Hostnames of running managers that do not have a data key."""
    return sorted(
        each.hostname
        for each in view.managers.values()
        if not each.joining and each.id in view.manager_presence and id not in each.data_keys
    )


async def seal_anew(kv: Kv, view: ClusterView, vault: Vault) -> int:
    """Seal everything in the store with the current key; how many objects were not. Those that
    change concurrently are left to the next call, as are those that no key opens to their owners.
    Raises StoreError."""
    stale = 0
    for credential in view.credentials.values():
        what = purpose(credential.id)
        if vault.is_current(base64.b64decode(credential.sealed), what):
            continue
        with suppress(VaultError, Conflict):
            sealed = vault.seal(vault.open(credential.sealed, what), what)
            stale += 1
            await commit(kv, [Change(credential, replace(credential, sealed=sealed))])
    for document in view.documents.values():
        for version in document.kept:
            entry = await kv.get(sealed_key(document.id, version))
            what = document_purpose(document.id, version)
            if entry is None or vault.is_current(entry.value, what):
                continue
            with suppress(VaultError, Conflict):
                data = vault.seal_data(vault.open_data(entry.value, what), what)
                stale += 1
                guard = Guard(entry.key, mod_revision=entry.mod_revision)
                await kv.txn([guard], [Put(entry.key, data)])
    cluster = view.cluster
    if cluster is not None and (after := _sealed_anew(cluster, vault)) != cluster:
        stale += 1
        with suppress(Conflict):
            await commit(kv, [Change(cluster, after)])
    return stale


def _sealed_anew(cluster: Cluster, vault: Vault) -> Cluster:
    """The cluster's object with its keys sealed with the current data key."""
    after = cluster
    if (sealed := cluster.unlock_key) and not vault.is_current(
        base64.b64decode(sealed), UNLOCK_PURPOSE
    ):
        text = vault.open(sealed, UNLOCK_PURPOSE)
        after = replace(after, unlock_key=vault.seal(text, UNLOCK_PURPOSE))
    rotation, external = cluster.ca_rotation, cluster.external_ca
    coming = rotation.external
    return replace(
        after,
        ca_rotation=replace(
            rotation,
            key=_ca_key_anew(rotation.key, vault),
            external=replace(coming, auth_key=_ca_key_anew(coming.auth_key, vault)),
        ),
        external_ca=replace(external, auth_key=_ca_key_anew(external.auth_key, vault)),
    )


def _ca_key_anew(sealed: str, vault: Vault) -> str:
    if not sealed or vault.is_current(base64.b64decode(sealed), CA_PURPOSE):
        return sealed
    return vault.seal(vault.open(sealed, CA_PURPOSE), CA_PURPOSE)
