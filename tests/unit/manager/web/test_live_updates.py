# SPDX-License-Identifier: Apache-2.0
"""What many browsers are told of what changes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from orchestrator.daemon.background import background
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.manager.telemetry.event_log import EventLog
from orchestrator.manager.web.live_updates import LONGEST_QUEUE, LiveUpdates, Viewer
from orchestrator.manager.web.server_sent_events import event
from orchestrator.model.nodes import Node, NodeDescription, NodeState

NODE = Node(id="n1", state=NodeState.READY, description=NodeDescription(hostname="host1"))


@dataclass(frozen=True, slots=True)
class Api:
    """What is needed of `ManagerContext`."""

    cache: Cache
    events: EventLog

    @property
    def view(self) -> ClusterView:
        return self.cache.view

    def leader(self) -> str:
        return "m1"


@asynccontextmanager
async def broadcast() -> AsyncIterator[tuple[MemoryKv, Cache, LiveUpdates]]:
    kv = MemoryKv(lambda: 0.0)
    cache = Cache(kv)
    events = EventLog(cache, lambda: 0.0)
    told = LiveUpdates(cast(ManagerContext, Api(cache, events)))
    async with background(cache.follow()), events.following(), told.following():
        yield kv, cache, told


def parts(text: bytes) -> dict[str, Any]:
    """Kind → data, of server-sent events."""
    found = {}
    for each in text.decode().strip().split("\n\n"):
        kind, _, data = each.partition("\ndata: ")
        found[kind.removeprefix("event: ")] = json.loads(data)
    return found


async def test_a_new_viewer_gets_a_snapshot_and_then_changes() -> None:
    async with broadcast() as (kv, cache, told):
        await cache.wait_for(await commit(kv, [Change(None, NODE)]))
        with told.viewer() as viewer:
            whole = parts(await told.next(viewer))
            assert whole["picture"]["nodes"]["n1"]["name"] == "host1"
            assert [each["action"] for each in whole["happened"]] == ["create"]
            node = cache.view.nodes["n1"]
            await commit(kv, [Change(node, replace(node, state=NodeState.DOWN))])
            found = parts(await told.next(viewer))
            # What is in the whole is not told again.
            assert found["changed"] == {"nodes": {"n1": {"state": "down"}}}
            assert [each["action"] for each in found["happened"]] == ["down"]


async def test_all_viewers_get_the_same_messages() -> None:
    async with broadcast() as (kv, _, told):
        with told.viewer() as one, told.viewer() as two:
            assert await told.next(one) == await told.next(two)
            await commit(kv, [Change(None, NODE)])
            first = await told.next(one)
            assert parts(first)["changed"]["nodes"].keys() == {"n1"}
            assert await told.next(two) == first


async def test_a_slow_viewer_gets_a_snapshot_instead() -> None:
    viewer = Viewer()
    viewer.tell(b"before")
    assert await viewer.next() == b""
    viewer.needs_snapshot = False
    for number in range(LONGEST_QUEUE):
        viewer.tell(b"%d " % number)
    assert (await viewer.next()).startswith(b"0 1 2 ")
    for _ in range(LONGEST_QUEUE + 1):
        viewer.tell(b"x")
    assert await viewer.next() == b""
    assert viewer.needs_snapshot


def test_event_data_is_one_line() -> None:
    assert event("lines", ["a\nb", "ü"]) == 'event: lines\ndata: ["a\\nb","ü"]\n\n'.encode()
