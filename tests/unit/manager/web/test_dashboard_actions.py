# SPDX-License-Identifier: Apache-2.0
"""An action of the page is the beginning of a trace, as a call is."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tracereceiver import TraceReceiver

from orchestrator.manager.errors import RequestError
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.web.dashboard_actions import act
from orchestrator.tracing import configuration


@pytest.fixture
def receiver() -> Iterator[TraceReceiver]:
    receiver = TraceReceiver()
    with receiver.receiving():
        yield receiver


async def test_an_action_is_a_span_with_its_error(receiver: TraceReceiver) -> None:
    traces = configuration.tracer("orc-manager", "m1", f"http://127.0.0.1:{receiver.port}")
    api: Any = SimpleNamespace(tracer=traces, view=ClusterView.of([]))
    with pytest.raises(RequestError) as refused:
        await act(api, {"do": "rollback", "to": "web"})
    with pytest.raises(RequestError):
        await act(api, {"do": "explode", "to": "web"})
    traces.close()
    (span,) = receiver.spans
    assert (span.name, span.parent) == ("page rollback", "")
    assert span.error == refused.value.text
