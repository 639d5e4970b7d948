# SPDX-License-Identifier: Apache-2.0
"""Two nodes that claim one hostname at two managers in the same moment, each of which sees a view
without the other's claim."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from orchestrator.daemon.background import background
from orchestrator.manager.leader.agent_reports import Hello, Reports, report_decisions
from orchestrator.manager.leader.plan_commit import PlanWriter, group_changes
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reports.claims import FalseClaim
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.nodes import Node, NodeDescription, NodeState


@pytest.fixture
async def cache() -> AsyncIterator[Cache]:
    """With nodes n1 and n2."""
    cache = Cache(MemoryKv(lambda: 0.0))
    async with background(cache.follow()):
        for id in ("n1", "n2"):
            await add(cache, id, f"host-{id}")
        yield cache


async def add(cache: Cache, id: str, hostname: str, seen: int = 0) -> None:
    node = Node(id=id, state=NodeState.READY, description=NodeDescription(hostname=hostname))
    revision = await commit(cache._kv, [Change(None, node)], seen=seen or cache.revision)
    await cache.wait_for(revision)


class Manager:
    """What a manager has seen; it commits a report from that."""

    def __init__(self, cache: Cache) -> None:
        self._kv, self._view, self.seen = cache._kv, cache.view, cache.revision
        self.refused: list[FalseClaim] = []

    async def hears(self, id: str, hostname: str) -> bool:
        """Whether a node's report was committed."""
        hello = Hello(replace(self._view.nodes[id].description, hostname=hostname), "boot")
        reports = Reports(hellos={id: hello})
        decisions = report_decisions(self._view, reports, 1.0, self.refused.append)
        groups = group_changes(decisions, seen=self.seen)
        return not (await PlanWriter(self._kv, None).write(groups)).conflicted


def names(cache: Cache) -> dict[str, str]:
    return {id: node.description.hostname for id, node in cache.view.nodes.items()}


async def test_one_of_two_claims_of_a_hostname_is_refused(cache: Cache) -> None:
    one, other = Manager(cache), Manager(cache)
    assert await one.hears("n1", "web")
    assert not await other.hears("n2", "web")
    await cache.wait_for((await cache._kv.list("/")).revision)
    again = Manager(cache)
    assert await again.hears("n2", "web")
    assert [(claim.node_id, claim.claimed) for claim in again.refused] == [("n2", "web")]
    await cache.wait_for((await cache._kv.list("/")).revision)
    assert names(cache) == {"n1": "web", "n2": "host-n2"}


async def test_a_joining_node_cannot_take_a_hostname_that_is_being_claimed(cache: Cache) -> None:
    joining, other = Manager(cache), Manager(cache)
    assert await other.hears("n1", "web")
    with pytest.raises(Conflict):
        await add(cache, "n3", "web", joining.seen)


async def test_a_hostname_is_free_again_after_a_rename_and_after_a_removal(cache: Cache) -> None:
    assert await Manager(cache).hears("n1", "web")
    await cache.wait_for((await cache._kv.list("/")).revision)
    assert await Manager(cache).hears("n1", "old-web")
    await cache.wait_for((await cache._kv.list("/")).revision)
    assert await Manager(cache).hears("n2", "web")
    await cache.wait_for((await cache._kv.list("/")).revision)
    assert names(cache) == {"n1": "old-web", "n2": "web"}
    removed = cache.view.nodes["n2"]
    await cache.wait_for(await commit(cache._kv, [Change(removed, None)]))
    await add(cache, "n3", "web")
    assert names(cache) == {"n1": "old-web", "n3": "web"}
