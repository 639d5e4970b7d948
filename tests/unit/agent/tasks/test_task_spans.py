# SPDX-License-Identifier: Apache-2.0
"""The spans of what a node does for a task, as a receiver gets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agentfakes import NOW, Host, assigned, until
from test_task_health import is_now, probed
from test_worker import agent
from tracereceiver import Span, TraceReceiver

from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health
from orchestrator.pb import dispatch_pb2
from orchestrator.tracing.configuration import tracer

TRACE, TASK = "a" * 32, "b" * 16
BEGINNING = ["dispatch", "pull", "volumes", "files", "network", "create", "start"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def receiver(host: Host) -> Iterator[TraceReceiver]:
    made = TraceReceiver()
    with made.receiving():
        host.tracer = tracer("orc-agent", "n1", f"http://127.0.0.1:{made.port}")
        yield made


def traced(order: dispatch_pb2.AssignedTask) -> dispatch_pb2.AssignedTask:
    order.trace, order.sent_at = f"00-{TRACE}-{TASK}-01", NOW - 1.0
    return order


def received(host: Host, receiver: TraceReceiver) -> list[Span]:
    """All spans, which stand below the task's."""
    host.tracer.close()
    assert {(span.trace, span.parent) for span in receiver.spans} <= {(TRACE, TASK)}
    return receiver.spans


async def test_each_step_until_it_works_is_a_span(host: Host, receiver: TraceReceiver) -> None:
    async with agent(host) as a:
        a.full(traced(probed()))
        await is_now(a, Health.HEALTHY)
    spans = received(host, receiver)
    assert [span.name for span in spans] == [*BEGINNING, "first health"]
    dispatch, pull = spans[:2]
    assert (dispatch.start, dispatch.end) == (NOW - 1.0, NOW)
    assert pull.attributes == {"orc.image": "hello:1"}
    assert not any(span.error for span in spans)


async def test_a_failed_step_has_its_error_in_the_span(host: Host, receiver: TraceReceiver) -> None:
    host.images.missing = True
    async with agent(host) as a:
        a.full(traced(assigned()))
        await a.reaches(TaskState.REJECTED)
    spans = received(host, receiver)
    assert [(span.name, span.error) for span in spans] == [
        ("dispatch", ""),
        ("pull", "no node has the image hello:1"),
    ]


async def test_later_steps_are_not_part_of_the_trace(host: Host, receiver: TraceReceiver) -> None:
    async with agent(host) as a:
        a.full(traced(assigned()))
        await a.reaches(TaskState.RUNNING)
        first = a.reports.last().pid
    host.reboot()
    async with agent(host) as a:
        await until(lambda: a.reports.last().pid not in (0, first))
        assert a.reports.last().state is TaskState.RUNNING
    assert [span.name for span in received(host, receiver)] == BEGINNING


async def test_an_order_without_a_trace_makes_no_span(host: Host, receiver: TraceReceiver) -> None:
    async with agent(host) as a:
        a.full(assigned())
        await a.reaches(TaskState.RUNNING)
    assert received(host, receiver) == []
