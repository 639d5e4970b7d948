# SPDX-License-Identifier: Apache-2.0
"""Migrations of the store's schema, on a store in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import cast

import pytest

from orchestrator.daemon.background import background
from orchestrator.manager.cluster.schema import (
    Migration,
    NotFinalizable,
    Schema,
    SchemaMigrator,
    UnknownSchema,
    await_finalized,
    check_schema,
    read_schema,
    request_finalization,
)
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import LEADER, SCHEMA
from orchestrator.manager.store.kv import Conflict, Guard, Put, StoreUnavailable
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.administration.managers import Manager
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Object

NODES = 50


def _on_node(change: Callable[[Node], Node]) -> Callable[[Object], Object]:
    return lambda each: cast(Object, change(each)) if isinstance(each, Node) else each


RENAMED = Migration(
    2,
    expand=_on_node(lambda node: replace(node, labels=node.labels | {"new": node.message})),
    finalize=_on_node(lambda node: replace(node, message="")),
)
"""A text moves from a node's message to a label. Both are there until it is finalized."""


class Store:
    """A store with nodes in the old form, a cache, and a leader's key."""

    def __init__(self) -> None:
        self.kv = MemoryKv(time.monotonic)
        self.cache = Cache(self.kv)
        self.fence = Guard(LEADER, create_revision=0)

    async def fill(self) -> None:
        lead = await self.kv.txn([], [Put(LEADER, b"m1")])
        self.fence = Guard(LEADER, create_revision=lead)
        for number in range(NODES):
            await self.write(None, Node(id=f"n{number}", message=f"old {number}"))

    async def write(self, before: Object | None, after: Object) -> None:
        await self.cache.wait_for(await commit(self.kv, [Change(before, after)]))

    async def manager(self, id: str, *features: str) -> None:
        before = self.cache.view.managers.get(id)
        await self.write(before, replace(before or Manager(id=id, hostname=id), features=features))

    def migrator(self, fence: Guard | None = None) -> SchemaMigrator:
        return SchemaMigrator(self.kv, self.cache, fence or self.fence, [RENAMED])

    def nodes(self) -> list[tuple[str, str]]:
        return [
            (node.message, node.labels.get("new", "")) for node in self.cache.view.nodes.values()
        ]


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    made = Store()
    async with background(made.cache.follow()):
        await made.cache.wait_for(0)
        await made.fill()
        yield made


def both_forms(store: Store) -> bool:
    return all(old and old == new for old, new in store.nodes())


async def test_a_leader_writes_the_new_form_beside_the_old_one(store: Store) -> None:
    await store.migrator().expand()
    assert both_forms(store)
    schema, _ = await read_schema(store.kv)
    assert schema == Schema(version=2, requested=1, finalized=1)
    # A manager of the release before may still start.
    await check_schema(store.kv, known=1)


async def test_objects_written_by_an_older_manager_are_migrated_by_the_next_leader(
    store: Store,
) -> None:
    await store.migrator().expand()
    node = store.cache.view.nodes["n1"]
    await store.write(node, replace(node, message="by an older manager"))
    await store.migrator().expand()
    assert both_forms(store)
    assert store.cache.view.nodes["n1"].labels["new"] == "by an older manager"


async def test_an_interrupted_migration_is_repeated(store: Store) -> None:
    healthy, writes = store.kv.fault, 0

    def fault(verb: str, moment: str) -> None:
        nonlocal writes
        writes += verb == "txn"
        if writes == 3:
            raise StoreUnavailable("cut off")

    store.kv.fault = fault
    with pytest.raises(StoreUnavailable):
        await store.migrator().expand()
    store.kv.fault = healthy
    assert (await read_schema(store.kv))[0].version == 1
    await store.migrator().expand()
    assert both_forms(store)


async def test_a_deposed_leader_migrates_nothing(store: Store) -> None:
    with pytest.raises(Conflict):
        await store.migrator(Guard(LEADER, create_revision=999)).expand()
    assert (await read_schema(store.kv))[0] == Schema()
    assert all(not new for _, new in store.nodes())


@asynccontextmanager
async def leading(store: Store) -> AsyncIterator[None]:
    async with background(store.migrator().run()):
        yield


async def test_the_old_form_is_removed_once_all_managers_know_the_new_one(store: Store) -> None:
    await store.manager("m1", "schema-1", "schema-2")
    await store.manager("m2", "schema-1")
    async with asyncio.timeout(30), leading(store):
        while not both_forms(store):
            await store.cache.wait_for(store.cache.revision + 1)
        while (await read_schema(store.kv))[0].version < 2:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await store.cache.wait_for(store.cache.revision + 1)
        with pytest.raises(NotFinalizable, match="not known to m2: upgrade all managers first"):
            await request_finalization(store.kv, store.cache.view, known=2)
        await store.manager("m2", "schema-1", "schema-2")
        await request_finalization(store.kv, store.cache.view, known=2)
        assert await await_finalized(store.kv) == Schema(version=2, requested=2, finalized=2)
    await store.cache.wait_for((await store.kv.list(SCHEMA)).revision)
    assert all(new and not old for old, new in store.nodes())
    with pytest.raises(UnknownSchema, match="schema version 2, and this release knows 1"):
        await check_schema(store.kv, known=1)
    await check_schema(store.kv, known=2)


async def test_objects_that_cannot_be_decoded_prevent_finalization(store: Store) -> None:
    await store.manager("m1", "schema-1", "schema-2")
    await store.migrator().expand()
    revision = await store.kv.txn([], [Put("/orc/novelties/x", b"?")])
    await store.cache.wait_for(revision)
    with pytest.raises(NotFinalizable, match="/orc/novelties/x"):
        await request_finalization(store.kv, store.cache.view, known=2)


async def test_a_schema_of_a_newer_release_is_read(store: Store) -> None:
    await store.kv.txn([], [Put(SCHEMA, b'{"version": 9, "requested": 3, "novel": 1}')])
    assert (await read_schema(store.kv))[0] == Schema(version=9, requested=3)
    await store.kv.txn([], [Put(SCHEMA, b"damaged")])
    with pytest.raises(UnknownSchema, match="cannot be read"):
        await check_schema(store.kv)
