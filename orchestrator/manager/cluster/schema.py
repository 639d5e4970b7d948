# SPDX-License-Identifier: Apache-2.0
"""The version of the store's schema, and migrations between versions.

New fields and kinds of objects need no migration: older managers preserve what they do not know.
A migration is for what they would misread: a field that moves, or that changes its meaning. It has
two steps, so that a cluster can return to the version before:

* `expand` writes the new form beside the old one. Managers of the version before work on, and
  managers of this one read and write both forms. The leader expands at the beginning of each term,
  since managers of the version before may have written objects meanwhile.
* `finalize` removes the old form, after an operator has requested it (`orc cluster upgrade
  --finalize`), which is refused until all managers know the new one. From the request on, managers
  that do not know it refuse to start.

Both are pure functions of one object and idempotent. The leader applies them under its fence, in
small transactions guarded by the revisions that were read. The key advances at the end, so the next
leader repeats an interrupted migration.

The key `/orc/schema` holds the state as JSON. Release 0.1 does not know the key; its schema is
version 1.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import SCHEMA
from orchestrator.manager.store.kv import Conflict, Guard, Kv, Put, StoreError
from orchestrator.model.compatibility.manager_features import (
    SCHEMA_VERSION,
    schema_feature,
    shared_features,
)
from orchestrator.model.objects import Object

log = logging.getLogger(__name__)

BATCH = 20
"""Objects that one transaction migrates."""

RETRY = 1.0
"""Seconds until a migration is attempted again after the store refused it."""


class UnknownSchema(Exception):
    """The store has a schema that this version does not know; one line with the remedy."""


class NotFinalizable(Exception):
    """The schema cannot be finalized now; one line that says why."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The state of the store's schema."""

    version: int = 1
    """The newest version in whose form objects are written."""
    requested: int = 1
    """The version that an operator has requested to finalize. Managers must know it."""
    finalized: int = 1
    """The version whose older forms are gone."""

    def encode(self) -> bytes:
        """The value of the key."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, value: bytes) -> Schema:
        """Parse the output of `encode`, also of a newer version. Raises ValueError."""
        document = json.loads(value)
        if not isinstance(document, dict):
            raise ValueError(f"{SCHEMA} is not a JSON object")
        known = {each.name for each in fields(cls)}
        return cls(**{name: int(each) for name, each in document.items() if name in known})


@dataclass(frozen=True, slots=True)
class Migration:
    """The change from one version of the schema to the next."""

    version: int
    """The version that it leads to."""
    expand: Callable[[Object], Object]
    """Adds the new form to an object, and leaves the old one correct."""
    finalize: Callable[[Object], Object]
    """Removes the old form."""


MIGRATIONS: tuple[Migration, ...] = ()
"""By version, from 2 to `SCHEMA_VERSION` without a gap."""


async def read_schema(kv: Kv) -> tuple[Schema, int]:
    """The schema and the revision of its key; the first version, and 0, if it was never written.
    Raises StoreError, ValueError."""
    entry = await kv.get(SCHEMA)
    return (Schema(), 0) if entry is None else (Schema.decode(entry.value), entry.mod_revision)


async def await_finalized(kv: Kv) -> Schema:
    """Wait until the leader has done what was requested. Raises StoreError."""
    snapshot = await kv.list(SCHEMA)
    schema, _ = await read_schema(kv)
    if schema.finalized >= schema.requested:
        return schema
    async with kv.watch(SCHEMA, snapshot.revision + 1) as batches:
        async for _ in batches:
            schema, _ = await read_schema(kv)
            if schema.finalized >= schema.requested:
                break
    return schema


async def check_schema(kv: Kv, known: int = SCHEMA_VERSION) -> None:
    """Raise UnknownSchema if this version must not work with the store. Raises StoreError."""
    try:
        schema, _ = await read_schema(kv)
    except ValueError as error:
        raise UnknownSchema(
            f"the store's schema cannot be read ({error}); install the version that wrote it"
        ) from None
    if schema.requested > known:
        raise UnknownSchema(
            f"the store has schema version {schema.requested}, and this release knows {known}: the "
            "upgrade to a newer release was finalized; install that release"
        )


def refusal_to_finalize(view: ClusterView, version: int) -> str:
    """Why older forms than a version's cannot be removed now; empty if they can."""
    feature = schema_feature(version)
    if feature not in shared_features(view.managers.values()):
        older = sorted(m.hostname for m in view.managers.values() if feature not in m.features)
        return (
            f"schema version {version} is not known to {', '.join(older) or 'any manager'}: "
            "upgrade all managers first"
        )
    if view.quarantined:
        keys = ", ".join(sorted(view.quarantined)[:3])
        return f"objects cannot be decoded, so they cannot be migrated: {keys}"
    return ""


async def request_finalization(kv: Kv, view: ClusterView, known: int = SCHEMA_VERSION) -> Schema:
    """Have the leader finalize the newest version. Raises NotFinalizable, StoreError."""
    while True:
        schema, revision = await read_schema(kv)
        if schema.requested >= known:
            return schema
        if reason := refusal_to_finalize(view, known):
            raise NotFinalizable(reason)
        if schema.version < known:
            raise NotFinalizable(
                f"the leader has not migrated the store to schema version {known} yet; try again"
            )
        after = replace(schema, requested=known)
        try:
            await kv.txn([Guard(SCHEMA, mod_revision=revision)], [Put(SCHEMA, after.encode())])
            return after
        except Conflict:
            continue


class SchemaMigrator:
    """Migrates the store while its manager leads."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        fence: Guard,
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> None:
        self._kv = kv
        self._cache = cache
        self._fence = fence
        self._migrations = migrations

    async def run(self) -> None:
        """Expand, and finalize upon request, until cancelled."""
        if not self._migrations:
            return
        while True:
            try:
                await self.expand()
                await self._follow()
            except Conflict as conflict:
                if self._fence.key in conflict.keys:
                    return  # The term has ended.
            except (StoreError, ValueError) as error:
                log.warning("cannot migrate the store; retrying", extra={"error": error})
                await asyncio.sleep(RETRY)

    async def expand(self) -> None:
        """Write the forms of this version's schema. Raises StoreError."""
        schema, _ = await read_schema(self._kv)
        for migration in self._migrations:
            if migration.version <= schema.finalized:
                continue
            changed = await self._apply(migration.expand)
            await self._advance(version=migration.version)
            if changed:
                log.info("store migrated", extra={"schema": migration.version, "objects": changed})

    async def finalize(self) -> None:
        """Remove the older forms, as far as requested. Raises StoreError."""
        schema, _ = await read_schema(self._kv)
        for migration in self._migrations:
            if not schema.finalized < migration.version <= schema.requested:
                continue
            if reason := refusal_to_finalize(self._cache.view, migration.version):
                log.warning("the schema is not finalized yet", extra={"reason": reason})
                return
            await self._apply(migration.expand)
            changed = await self._apply(migration.finalize)
            await self._advance(finalized=migration.version)
            log.info("schema finalized", extra={"schema": migration.version, "objects": changed})

    async def _follow(self) -> None:
        """Finalize whenever that is requested."""
        snapshot = await self._kv.list(SCHEMA)
        await self.finalize()
        async with self._kv.watch(SCHEMA, snapshot.revision + 1) as batches:
            async for _ in batches:
                await self.finalize()

    async def _apply(self, change: Callable[[Object], Object]) -> int:
        """Change every object; the number of those that changed. Raises StoreError."""
        total = 0
        while True:
            before = self._cache.view
            pending = [
                Change(each, after) for each in before.objects() if (after := change(each)) != each
            ]
            if not pending:
                return total
            revision = 0
            for start in range(0, len(pending), BATCH):
                part = pending[start : start + BATCH]
                try:
                    revision = await commit(self._kv, part, guards=[self._fence])
                    total += len(part)
                except Conflict as conflict:
                    if self._fence.key in conflict.keys:
                        raise
                    # Changed by another manager: read again below.
                    revision = max(revision, (await self._kv.list(SCHEMA)).revision)
            await self._cache.wait_for(revision)

    async def _advance(self, *, version: int = 0, finalized: int = 0) -> None:
        """Raise versions in the store's key. Raises StoreError."""
        while True:
            schema, revision = await read_schema(self._kv)
            after = replace(
                schema,
                version=max(schema.version, version),
                finalized=max(schema.finalized, finalized),
            )
            if after == schema:
                return
            try:
                await self._kv.txn(
                    [self._fence, Guard(SCHEMA, mod_revision=revision)],
                    [Put(SCHEMA, after.encode())],
                )
                return
            except Conflict as conflict:
                if self._fence.key in conflict.keys:
                    raise
