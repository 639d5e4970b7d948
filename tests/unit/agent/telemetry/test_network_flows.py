# SPDX-License-Identifier: Apache-2.0
"""Flows of a node's containers, as reported to a manager."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.agent.telemetry import network_flows
from orchestrator.agent.telemetry.network_flows import MOST_FLOWS, NetworkFlows, Sample, changes
from orchestrator.cni.netlink.conntrack import Connection
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import dispatch_pb2, flows_pb2

ONE, TWO, FAR = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), bytes([8, 8, 8, 8])


def connection(
    name: str = "a",
    client: bytes = ONE,
    server: bytes = TWO,
    sent: int = 0,
    received: int = 0,
    **fields: Any,
) -> Connection:
    given = {"protocol": 6, "port": 80, "open": True} | fields
    return Connection(
        id=name.encode(), client=client, server=server, sent=sent, received=received, **given
    )  # fmt: skip


def told(before: Sequence[Connection] | None, now: Sequence[Connection]) -> list[tuple[int, ...]]:
    found = changes(None if before is None else Sample(1.0, before), Sample(3.0, now))
    assert found.seconds == (0.0 if before is None else 2.0)
    return [(each.open, each.begun, each.sent, each.received) for each in found.flows]


def test_the_first_sample_has_only_open_connections() -> None:
    many = [connection("a", sent=100), connection("b", sent=100), connection("c", open=False)]
    assert told(None, many) == [(2, 0, 0, 0)]


def test_traffic_since_the_previous_sample() -> None:
    before = [connection("a", sent=100, received=50)]
    assert told(before, [connection("a", sent=150, received=250)]) == [(1, 0, 50, 200)]
    # Short ones that came and ended meanwhile are still in the table.
    short = connection("b", sent=30, received=40, open=False)
    assert told(before, [connection("a", sent=100, received=50), short]) == [(1, 1, 30, 40)]


def test_another_connection_with_the_same_ports_starts_from_zero() -> None:
    assert told([connection(sent=900)], [connection(sent=10)]) == [(1, 1, 10, 0)]


def test_connections_without_traffic_are_not_reported() -> None:
    over = connection(open=False, sent=70)
    assert told([over], [over]) == []


def test_the_largest_flows_come_first_and_the_rest_is_counted() -> None:
    many = [connection(str(port), port=port, sent=port) for port in range(1, MOST_FLOWS + 6)]
    found = changes(Sample(0.0, ()), Sample(1.0, many))
    assert (len(found.flows), found.left_out) == (MOST_FLOWS, 5)
    assert [each.port for each in found.flows[:2]] == [MOST_FLOWS + 5, MOST_FLOWS + 4]


class Call:
    """Takes frames, and hangs up after some."""

    def __init__(self, number: int) -> None:
        self.frames: list[flows_pb2.NodeFlows] = []
        self._number = number

    async def write(self, frame: Any) -> None:
        self.frames.append(frame.flows)
        if len(self.frames) == self._number:
            raise asyncio.InvalidStateError


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The switch of the kernel's byte counters: off at first."""
    said: list[bool] = []
    monkeypatch.setattr(network_flows.conntrack, "counts_bytes", lambda: bool(said) and said[-1])
    monkeypatch.setattr(network_flows.conntrack, "count_bytes", said.append)
    return said


async def test_bytes_are_counted_only_during_requests(counting: list[bool], tmp_path: Path) -> None:
    asked: list[Collection[bytes]] = []

    def read(addresses: Collection[bytes]) -> list[Connection]:
        asked.append(addresses)
        assert counting == [True]
        return [connection(sent=len(asked) * 100)]

    status = TaskStatus(TaskState.RUNNING, addresses={"n": "10.0.0.1"}, addresses6={"n": "fd00::1"})
    runners: Any = {"t": SimpleNamespace(status=status)}
    told = NetworkFlows(runners, tmp_path / "counting", read)
    order = dispatch_pb2.OpenTunnel(flows=flows_pb2.FlowsOrder(period=0.0))
    call = Call(2)
    async with asyncio.TaskGroup() as readers:
        with pytest.raises(asyncio.InvalidStateError):
            await told.serve(call, order, readers)
    assert counting == [True, False]
    assert asked[0] == {ONE, bytes.fromhex("fd" + "00" * 14 + "01")}
    assert [each.flows[0].sent for each in call.frames] == [0, 100]


async def test_byte_counters_of_others_stay_on(counting: list[bool], tmp_path: Path) -> None:
    counting.append(True)
    order = dispatch_pb2.OpenTunnel(flows=flows_pb2.FlowsOrder(period=1.0))
    async with asyncio.TaskGroup() as readers:
        with (
            pytest.raises(asyncio.InvalidStateError),
            NetworkFlows({}, tmp_path / "counting", lambda _: []) as told,
        ):
            await told.serve(Call(1), order, readers)
    assert counting == [True]


async def test_byte_counters_of_a_killed_agent_are_switched_off(
    counting: list[bool], tmp_path: Path
) -> None:
    record = tmp_path / "counting"
    looks = NetworkFlows({}, record, lambda _: [])._counting()
    await looks.__aenter__()
    assert counting == [True]
    # Here it is killed.
    with NetworkFlows({}, record, lambda _: []):
        assert counting == [True, False]
    with NetworkFlows({}, record, lambda _: []):
        assert counting == [True, False]
