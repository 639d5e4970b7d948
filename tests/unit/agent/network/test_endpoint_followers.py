# SPDX-License-Identifier: Apache-2.0
"""The endpoint table on a node, and those that follow it: slow ones, failing ones, new ones."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import FrameType, ModuleType

import pytest
from agentfakes import until

from orchestrator.agent.network import endpoint_table as endpoints_module
from orchestrator.agent.network.endpoint_table import Change, EndpointTable
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.statedb import EndpointKey, StateDb
from orchestrator.pb import dispatch_pb2


class Follower:
    """A follower that can be blocked, and that forgets the table on demand."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure = ""
        self.mended = 0
        self.forget()

    def forget(self) -> None:
        self.revision: int | None = None
        self.entries: dict[EndpointKey, dispatch_pb2.ServiceEndpoints] = {}
        self.networks: tuple[str, ...] = ()

    async def follow(self, change: Change, whole: Callable[[], Change]) -> None:
        await self.gate.wait()
        if self.failure:
            self.forget()
            raise NetworkError(self.failure)
        if change.base is not None and change.base != self.revision:
            change = whole()
        if change.base is None:
            self.entries = {}
        self.mended += change.base == change.revision
        self.entries.update({(each.id, each.network_id): each for each in change.entries})
        for key in change.removed:
            del self.entries[key]
        if change.networks is not None:
            self.networks = tuple(network.id for network in change.networks)
        self.revision = change.revision

    def tasks(self, service: str) -> list[str]:
        return [each.task_id for each in self.entries[service, "n"].endpoints]


def entry(
    id: str, *slots: int, ready: bool = True, gone: Iterable[int] = ()
) -> dispatch_pb2.ServiceEndpoints:
    return dispatch_pb2.ServiceEndpoints(
        id=id,
        name=id,
        network_id="n",
        endpoints=[
            dispatch_pb2.Endpoint(task_id=f"{id}.{slot}", slot=slot, ready=ready) for slot in slots
        ],
        gone=[f"{id}.{slot}" for slot in gone],
    )


def whole(*entries: dispatch_pb2.ServiceEndpoints) -> dispatch_pb2.EndpointTable:
    return dispatch_pb2.EndpointTable(full=True, changed=entries)


def change(
    *entries: dispatch_pb2.ServiceEndpoints, removed: Iterable[str] = ()
) -> dispatch_pb2.EndpointTable:
    keys = [dispatch_pb2.EndpointKey(id=id, network_id="n") for id in removed]
    return dispatch_pb2.EndpointTable(changed=entries, removed=keys)


@asynccontextmanager
async def following(
    folder: Path, *followers: Follower, period: float = 60.0
) -> AsyncIterator[EndpointTable]:
    with StateDb(folder / "state.db") as db:
        endpoints = EndpointTable(db, followers, lambda: None, "here", period)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(endpoints.run())
            yield endpoints
            running.cancel()


async def test_changes_of_an_entry_accumulate(tmp_path: Path) -> None:
    one = Follower("one")
    async with following(tmp_path, one) as endpoints:
        endpoints.apply(whole(entry("web", 1, 2), entry("db", 1)))
        endpoints.apply(change(entry("web", 3, gone=[1])))
        last = endpoints.apply(change(removed=["db"]))
        await until(lambda: endpoints.applied == last)
        assert list(one.entries) == [("web", "n")]
        assert one.tasks("web") == ["web.2", "web.3"]
        last = endpoints.apply(whole(entry("db", 4)))
        await until(lambda: endpoints.applied == last)
        assert list(one.entries) == [("db", "n")]
    # What was written down is the same.
    other = Follower("other")
    async with following(tmp_path, other):
        await until(lambda: other.revision)
        assert other.entries == one.entries


async def test_a_slow_follower_delays_only_the_acknowledgement(
    tmp_path: Path,
) -> None:
    slow, quick = Follower("slow"), Follower("quick")
    async with following(tmp_path, slow, quick) as endpoints:
        first = endpoints.apply(whole(entry("web", 1)))
        await until(lambda: endpoints.applied == first)
        slow.gate.clear()
        for slot in range(2, 50):
            last = endpoints.apply(change(entry("web", slot)))
            await asyncio.sleep(0)
        await until(lambda: quick.revision == last)
        assert endpoints.applied == first
        slow.gate.set()
        await until(lambda: endpoints.applied == last)
        assert slow.entries == quick.entries


async def test_a_failed_follower_gets_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoints_module, "_RETRY_MOST", 0.001)
    caplog.set_level(logging.INFO)
    one, other = Follower("one"), Follower("other")
    async with following(tmp_path, one, other) as endpoints:
        endpoints.apply(whole(entry("web", 1)))
        await until(lambda: endpoints.applied)
        one.failure = "the kernel has no nftables"
        last = endpoints.apply(change(entry("db", 1)))
        await until(lambda: other.revision == last)
        assert endpoints.applied == 0
        one.failure = ""
        await until(lambda: endpoints.applied == last)
        assert one.entries == other.entries
    messages = [record.getMessage() for record in caplog.records]
    said = [each for each in messages if "the endpoint table" in each]
    assert said == [
        "one cannot apply the endpoint table: the kernel has no nftables",
        "one applies the endpoint table again",
    ]


async def test_networks_are_reported_when_they_change(tmp_path: Path) -> None:
    one = Follower("one")
    async with following(tmp_path, one) as endpoints:
        endpoints.order([dispatch_pb2.AssignedNetwork(id="n")])
        await until(lambda: one.networks == ("n",))
        revision = one.revision
        endpoints.order([dispatch_pb2.AssignedNetwork(id="n")])
        endpoints.resync(one)
        await until(lambda: one.mended)
        assert one.revision == revision


async def test_applied_state_is_repaired_periodically(tmp_path: Path) -> None:
    one = Follower("one")
    async with following(tmp_path, one, period=0.01) as endpoints:
        endpoints.apply(whole(entry("web", 1)))
        await until(lambda: one.mended >= 2)
        # It has lost everything by itself: the next look finds that.
        one.forget()
        await until(lambda: ("web", "n") in one.entries)


class Operations:
    """Counts the operations of Python code in a module, whatever time they take."""

    def __init__(self, module: ModuleType) -> None:
        self._file = module.__file__
        self.count = 0

    def __enter__(self) -> Operations:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _argument: object) -> object:
        if frame.f_code.co_filename != self._file:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.count += event == "opcode"
        return self._trace


def test_cost_of_a_change_is_independent_of_the_services_size(tmp_path: Path) -> None:
    """A service whose tasks come one by one: twice as many take twice the work."""

    def grown(tasks: int) -> tuple[int, int]:
        with StateDb(tmp_path / f"{tasks}.db") as db:
            endpoints = EndpointTable(db, (), lambda: None)
            endpoints.apply(whole(entry("web")))
            written: list[str] = []
            db._db.set_trace_callback(written.append)
            with Operations(endpoints_module) as done:
                for slot in range(tasks):
                    endpoints.apply(change(entry("web", slot)))
            db._db.set_trace_callback(None)
            assert endpoints.count == tasks
            return done.count, sum(map(len, written))

    (few, few_bytes), (many, many_bytes) = grown(100), grown(400)
    assert many < 4.5 * few
    assert many_bytes < 4.5 * few_bytes


async def test_entries_that_an_older_agent_wrote_are_read(tmp_path: Path) -> None:
    """It had endpoints in the rows of their entries."""
    with StateDb(tmp_path / "state.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as raw:
        raw.execute("DROP TABLE endpoint_tasks")
        raw.execute("PRAGMA user_version=2")
        row = "web", "n", entry("web", 2, 1).SerializeToString()
        raw.execute("INSERT INTO endpoints VALUES (?, ?, ?)", row)
    one = Follower("one")
    async with following(tmp_path, one) as endpoints:
        last = endpoints.apply(change(entry("web", 3, gone=[2])))
        await until(lambda: endpoints.applied == last)
        assert one.tasks("web") == ["web.1", "web.3"]
    with StateDb(tmp_path / "state.db") as db:
        (known,) = db.endpoints()
        assert {each.slot for each in known.endpoints} == {1, 3}
