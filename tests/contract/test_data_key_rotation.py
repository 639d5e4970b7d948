# SPDX-License-Identifier: Apache-2.0
"""Rotation of the data key by managers on one store: real gRPC, real files."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from managerhost import Running, manager_again, manager_beside, manager_in

from orchestrator.identity.key_files import LOCKED_FILE, KeyFiles, WrongUnlockKey
from orchestrator.manager.security.vault import KEY_FILE, key_id
from orchestrator.manager.store.keys import sealed_key
from orchestrator.manager.store.kv import StoreUnavailable
from orchestrator.model.administration.access import KeyRotation
from orchestrator.model.objects import Cluster
from orchestrator.pb import (
    documents_pb2,
    documents_pb2_grpc,
    security_pb2,
    security_pb2_grpc,
    types_pb2,
)


@pytest.fixture
async def leader(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "leader") as running:
        yield running


@pytest.fixture
async def follower(leader: Running, tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_beside(leader, tmp_path / "follower") as running:
        yield running


async def until(running: Running, holds: Callable[[Cluster], object]) -> None:
    cache = running.manager.cache
    async with asyncio.timeout(60), cache.subscribe() as feed:
        while cache.view.cluster is None or not holds(cache.view.cluster):
            await feed.next()


async def create(running: Running, name: str, data: bytes) -> None:
    async with running.channel(running.admin) as channel:
        request = documents_pb2.CreateDocumentRequest(
            kind=types_pb2.DOCUMENT_CONFIG, name=name, data=data
        )
        await documents_pb2_grpc.DocumentsStub(channel).CreateDocument(request)


async def data_of(running: Running) -> dict[str, bytes]:
    async with running.channel(running.admin) as channel:
        request = documents_pb2.ListDocumentsRequest(kind=types_pb2.DOCUMENT_CONFIG, with_data=True)
        reply = await documents_pb2_grpc.DocumentsStub(channel).ListDocuments(request)
        return {each.document.name: each.data for each in reply.documents}


async def security(running: Running, method: str, **fields: Any) -> Any:
    async with running.channel(running.admin) as channel:
        stub = security_pb2_grpc.SecurityStub(channel)
        return await getattr(stub, method)(getattr(security_pb2, f"{method}Request")(**fields))


def saved_ids(running: Running) -> list[str]:
    lines = (running.folder / KEY_FILE).read_text().split("\n")
    return [key_id(base64.b64decode(line)) for line in lines]


async def sealed_values(running: Running) -> list[bytes]:
    view = running.manager.cache.view
    found = [
        await running.kv.get(sealed_key(document.id, version))
        for document in view.documents.values()
        for version in document.kept
    ]
    return [entry.value for entry in found if entry is not None]


def only(running: Running, id: str) -> Callable[[Cluster], object]:
    """Whether the rotation is over, and all managers have dropped all keys but this one."""

    def holds(cluster: Cluster) -> bool:
        held = {each.data_keys for each in running.manager.cache.view.managers.values()}
        return cluster.key_rotation == KeyRotation() and held == {(id,)}

    return holds


async def test_all_managers_get_the_new_key_and_everything_is_sealed_with_it(
    leader: Running, follower: Running
) -> None:
    for number in range(5):
        await create(leader, f"c{number}", b"%d" % number)
    former, before = saved_ids(leader), await sealed_values(leader)
    started = await security(follower, "RotateDataKey")
    assert started.phase == "distributing"
    await until(leader, only(leader, started.new_id))
    assert saved_ids(leader) == saved_ids(follower) == [started.new_id] != former
    assert not set(before) & set(await sealed_values(leader))
    for each in (leader, follower):
        assert await data_of(each) == {f"c{n}": b"%d" % n for n in range(5)}
        assert (await security(each, "GetDataKeyStatus")).phase == "idle"


async def test_secrets_can_be_written_through_any_manager_during_rotations(
    leader: Running, follower: Running
) -> None:
    written: dict[str, bytes] = {}

    async def write(running: Running, prefix: str) -> None:
        for number in range(15):
            name = f"{prefix}{number}"
            await create(running, name, name.encode())
            written[name] = name.encode()

    async with asyncio.TaskGroup() as group:
        group.create_task(write(leader, "a"))
        group.create_task(write(follower, "b"))
        for _ in range(2):
            started = await security(leader, "RotateDataKey")
            await until(leader, only(leader, started.new_id))
    assert await data_of(leader) == await data_of(follower) == written


async def test_a_manager_that_was_down_gets_the_key_when_it_starts(
    leader: Running, tmp_path: Path
) -> None:
    await create(leader, "c", b"data")
    async with manager_beside(leader, tmp_path / "second") as second:
        await until(leader, lambda _: len(leader.manager.cache.view.manager_presence) == 2)
    await until(leader, lambda _: len(leader.manager.cache.view.manager_presence) == 1)
    started = await security(leader, "RotateDataKey")
    await until(leader, lambda cluster: cluster.key_rotation == KeyRotation())
    assert saved_ids(second) != [started.new_id]
    async with manager_again(second) as again:
        assert await data_of(again) == {"c": b"data"}
        await until(leader, only(leader, started.new_id))
        assert saved_ids(again) == [started.new_id]


async def test_a_rotation_goes_on_after_its_manager_ended_at_any_write(tmp_path: Path) -> None:
    """The manager's writes to the store fail from the n-th on; then it starts again."""
    for n in range(1, 6):
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(manager_in(tmp_path / f"m{n}"))
            await create(running, "c", b"data")
            cut = Cut(running.kv, n)
            running.manager._key_ring._kv = cut  # type: ignore[assignment]
            started = await security(running, "RotateDataKey")
            await asyncio.wait_for(cut.done.wait(), 60)
            await stack.aclose()
            async with manager_again(running) as again:
                await until(again, only(again, started.new_id))
                assert await data_of(again) == {"c": b"data"}
                assert saved_ids(again) == [started.new_id]


async def test_locked_key_files_open_with_the_unlock_key_alone(
    leader: Running, follower: Running
) -> None:
    reply = await security(leader, "Lock")
    assert reply.key.startswith("ORC-UNLOCK-1-")
    managers = leader.manager.cache.view.managers

    def locked(_: Cluster) -> bool:
        ids = {each.unlock_key_id for each in leader.manager.cache.view.managers.values()}
        return len(ids) == 1 and "" not in ids

    assert len(managers) == 2
    await until(leader, locked)
    for each in (leader, follower):
        names = {path.name for path in each.folder.iterdir()}
        assert not names & {"ca.key", "cluster.key"}
        text = (each.folder / LOCKED_FILE).read_bytes()
        assert b"PRIVATE" not in base64.b64decode(text)
        files = KeyFiles(each.folder)
        with pytest.raises(WrongUnlockKey):
            files.unlock(reply.key[:-1] + ("A" if reply.key[-1] != "A" else "Q"))
        assert files.locked
        files.unlock(reply.key)
        assert "PRIVATE KEY" in (files.text("ca.key") or "")
    rotated = (await security(follower, "Lock", rotate=True)).key
    assert rotated != reply.key
    assert (await security(leader, "GetUnlockKey")).key == rotated


class Cut:
    """A store that fails from the n-th transaction on."""

    def __init__(self, kv: Any, left: int) -> None:
        self._kv = kv
        self._left = left
        self.done = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    async def txn(self, guards: Any, ops: Any) -> int:
        self._left -= 1
        if self._left <= 0:
            self.done.set()
            raise StoreUnavailable("cut off")
        return int(await self._kv.txn(guards, ops))
