# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is at a registry and at the nodes; and what is kept of a password."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.daemon.background import background
from orchestrator.manager.dispatch.image_sources import ImageSources, must_pull
from orchestrator.manager.dispatch.pull_coordination import PullCoordinator
from orchestrator.manager.dispatch.pull_turns import PullTurns
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.registry_credentials import registry_name
from orchestrator.manager.security.vault import KEY_FILE, Vault, VaultError
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Image, Object
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import images_pb2

DIGEST = f"sha256:{'a' * 64}"


class Caller:
    """An agent's call, as a servicer sees it."""

    def __init__(self, sources: ImageSources, node_id: str, **request: Any) -> None:
        self.answers: asyncio.Queue[images_pb2.Grant] = asyncio.Queue()
        self._node_id = node_id
        made = images_pb2.AcquireRequest(name="web:1", digest=DIGEST, reports=True, **request)
        self.task = asyncio.ensure_future(sources.Acquire(made, self))

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_subject": [f"OU=c,O=worker,CN={self._node_id}".encode()]}

    async def write(self, answer: images_pb2.Grant) -> None:
        self.answers.put_nowait(answer)

    async def granted(self) -> images_pb2.Grant:
        while (answer := await self.answers.get()).waiting:
            pass
        return answer

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@dataclass
class Managed:
    """A manager's part in pulls, with three nodes."""

    kv: MemoryKv
    cache: Cache
    turns: PullCoordinator
    sources: ImageSources

    async def change(self, before: Object | None, after: Object | None) -> None:
        await self.cache.wait_for(await commit(self.kv, [Change(before, after)]))

    async def progress(self, node_id: str, received: int) -> None:
        context = Caller.__new__(Caller)
        context._node_id = node_id
        report = images_pb2.PullProgress(name="web:1", digest=DIGEST, received=received)
        await self.sources.Progress(report, context)


async def _no_leader() -> str | None:
    return None


async def _no_channel(manager_id: str) -> grpc.aio.Channel | None:
    return None


@asynccontextmanager
async def managed(folder: Path, lease: float = 3600.0) -> AsyncIterator[Managed]:
    kv = MemoryKv(lambda: 0.0)
    cache, turns = Cache(kv), PullCoordinator(lease)
    async with background(cache.follow()), AsyncExitStack() as leading:
        pulls = PullTurns(cache, "m1", _no_leader, _no_channel, lambda: turns)
        await leading.enter_async_context(pulls.leading())
        sources = ImageSources(cache, Vault.at(folder), lambda node, image: False, pulls)
        found = Managed(kv, cache, turns, sources)
        for name in ("n1", "n2", "n3"):
            about = NodeDescription(hostname=f"host-{name}", address=name, blob_port=1)
            node = Node(id=name, state=NodeState.READY, description=about)
            await found.change(None, node)
        yield found


async def test_a_waiting_node_learns_the_reason_and_is_served(tmp_path: Path) -> None:
    async with managed(tmp_path) as manager:
        first = Caller(manager.sources, "n1")
        assert (await first.granted()).registry
        second = Caller(manager.sources, "n2")
        await manager.progress("n1", 34_000_000)
        told = await second.answers.get()
        assert told.waiting == (
            "waiting for host-n1, which pulls the image from its registry (34MB so far)"
        )
        await manager.change(None, Image(id=DIGEST, names=("web:1",), nodes=("n1",)))
        assert list((await second.granted()).nodes) == ["n1:1"]
        for call in (first, second):
            await call.end()
        assert manager.turns.turns() == ()


async def test_a_stalled_node_does_not_block_an_image(tmp_path: Path) -> None:
    async with managed(tmp_path, lease=0.2) as manager:
        stuck, second = Caller(manager.sources, "n1"), Caller(manager.sources, "n2")
        assert (await stuck.granted()).registry
        assert (await second.granted()).registry
        for call in (stuck, second):
            await call.end()


@pytest.mark.parametrize("how", ["down", "removed", "killed"])
async def test_a_removed_node_does_not_block_an_image(tmp_path: Path, how: str) -> None:
    async with managed(tmp_path) as manager:
        gone, second = Caller(manager.sources, "n1"), Caller(manager.sources, "n2")
        assert (await gone.granted()).registry
        node = manager.cache.view.nodes["n1"]
        match how:
            case "down":
                await manager.change(node, replace(node, state=NodeState.DOWN))
            case "removed":
                await manager.change(node, None)
            case _:
                await gone.end()
        assert (await second.granted()).registry
        for call in (gone, second):
            await call.end()


def test_sealed_data_opens_for_its_purpose_only(tmp_path: Path) -> None:
    vault = Vault.at(tmp_path)
    vault.save()
    sealed = vault.seal("s3cret", "registry a")
    assert "s3cret" not in sealed
    assert Vault.at(tmp_path).open(sealed, "registry a") == "s3cret"
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o077 == 0
    with pytest.raises(VaultError):
        vault.open(sealed, "registry b")
    (tmp_path / "other").mkdir()
    with pytest.raises(VaultError, match=r"cluster\.key"):
        Vault.at(tmp_path / "other").open(sealed, "registry a")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("r.example:5000", "r.example:5000"),
        ("https://r.example/v2/", "r.example"),
    ],
)
def test_a_registry_has_one_name(text: str, name: str) -> None:
    assert registry_name(text) == name


@pytest.mark.parametrize(
    ("image", "state", "desired", "needed"),
    [
        ("r.example:5000/web:1", TaskState.ASSIGNED, TaskState.RUNNING, True),
        ("r.example:5000/web:1", TaskState.PREPARING, TaskState.RUNNING, True),
        ("r.example:5000/web:1", TaskState.RUNNING, TaskState.RUNNING, False),
        ("r.example:5000/web:1", TaskState.FAILED, TaskState.RUNNING, False),
        ("r.example:5000/web:1", TaskState.PREPARING, TaskState.SHUTDOWN, False),
        ("r.example:5000/web:2", TaskState.PREPARING, TaskState.RUNNING, False),
        ("r.example:5000/other:1", TaskState.PREPARING, TaskState.RUNNING, False),
        ("web:1", TaskState.PREPARING, TaskState.RUNNING, False),
    ],
)
def test_a_node_gets_credentials_for_the_image_that_a_task_waits_for(
    image: str, state: TaskState, desired: TaskState, needed: bool
) -> None:
    spec = TaskSpec(container=ContainerSpec(image="r.example:5000/web:1"))
    task = Task(id="t1", node_id="n1", spec=spec, desired_state=desired, status=TaskStatus(state))
    view = ClusterView.of([task, Task(id="t2", node_id="n2")])
    assert must_pull(view, "n1", image) is needed
    assert not must_pull(view, "n2", image)
