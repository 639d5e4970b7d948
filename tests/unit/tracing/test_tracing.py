# SPDX-License-Identifier: Apache-2.0
"""Traces, to a real receiver; and that nothing is paid where none are wanted."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import click
import grpc
import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from tracereceiver import Span, TraceReceiver

from orchestrator.tracing import configuration
from orchestrator.tracing.configuration import configured, endpoint_option
from orchestrator.tracing.spans import OFF, Tracer, TracingError, current


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables but those of a test; spans are sent soon."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.fixture
def receiver() -> Iterator[TraceReceiver]:
    made = TraceReceiver()
    with made.receiving():
        yield made


def sending(receiver: TraceReceiver) -> Tracer:
    return configuration.tracer("orc-test", "one", f"http://127.0.0.1:{receiver.port}")


def named(receiver: TraceReceiver) -> dict[str, Span]:
    return {span.name: span for span in receiver.spans}


def wait_for(ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.01)


DAEMONS = (
    "import orchestrator.manager.daemon, orchestrator.agent.daemon, orchestrator.cli.rpc.client"
)


def test_without_tracing_opentelemetry_is_not_imported() -> None:
    ask = f"{DAEMONS}, sys; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0


def test_without_tracing_no_spans_are_created() -> None:
    assert configuration.tracer("orc-test", "one") is OFF
    with OFF.span("call", kind="server") as place:
        assert place == current() == ""
    assert OFF.derived("", "t1") == ""
    assert not OFF.on


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_SERVICE_NAME": "orc"}, False),
    ],
)
def test_standard_variables_enable_tracing(variables: dict[str, str], wanted: bool) -> None:
    assert configured(variables) is wanted


def test_spans_are_nested(receiver: TraceReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    traces = sending(receiver)
    assert traces.on
    with traces.span("call", kind="server", service="web", empty="") as call:
        assert current() == call
        with traces.span("inner"):
            pass
        task = traces.derived(call, "t1")
        traces.record("below", 5.0, 6.5, task)
        traces.record("task", 4.0, 7.0, call, context=task, error="it broke")
    assert current() == ""
    with pytest.raises(KeyError), traces.span("failing", call):
        raise KeyError("why")
    traces.close()
    found = named(receiver)
    assert {span.service for span in receiver.spans} == {"mine"}
    assert len({span.trace for span in receiver.spans}) == 1
    assert found["call"].parent == ""
    assert found["call"].attributes == {"orc.service": "web"}
    assert found["inner"].parent == found["task"].parent == found["call"].id
    assert found["below"].parent == found["task"].id == task.split("-")[2]
    assert (found["below"].start, found["below"].end) == (5.0, 6.5)
    assert found["task"].error == "it broke"
    assert found["failing"].error == "'why'"
    assert not found["call"].error


def test_calls_without_a_trace_have_no_span(receiver: TraceReceiver) -> None:
    traces = sending(receiver)
    with traces.span("inner") as place:
        assert place == ""
    traces.record("late", 1.0, 2.0, "")
    traces.close()
    assert receiver.spans == []


@pytest.mark.parametrize(
    ("sent", "continued"),
    [
        ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True),
        ("01-" + "a" * 32 + "-" + "b" * 16 + "-01-more", True),
        ("00-" + "a" * 32 + "-" + "b" * 16 + "-fff", False),
        ("ff-" + "a" * 32 + "-" + "b" * 16 + "-01", False),
        ("00-" + "0" * 32 + "-" + "b" * 16 + "-01", False),
        ("00-" + "A" * 32 + "-" + "b" * 16 + "-01", False),
        ("garbage", False),
    ],
)
def test_trace_context_of_a_call_is_continued(
    receiver: TraceReceiver, sent: str, continued: bool
) -> None:
    traces = sending(receiver)
    with traces.span("call", sent, kind="server"):
        pass
    traces.close()
    (span,) = receiver.spans
    assert (span.trace == "a" * 32 and span.parent == "b" * 16) is continued
    assert bool(span.parent) is continued


def test_derived_span_context_is_deterministic(receiver: TraceReceiver) -> None:
    first, second = sending(receiver), sending(receiver)
    above = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    assert first.derived(above, "t1") == second.derived(above, "t1")
    assert first.derived(above, "t1") != first.derived(above, "t2")
    assert first.derived(above, "t1").split("-")[1] == "a" * 32
    own = first.derived("", "t1")
    first.record("task", 1.0, 2.0, "", context=own)
    first.close()
    second.close()
    (span,) = receiver.spans
    assert (span.trace, span.id, span.parent) == (*own.split("-")[1:3], "")


def test_unsampled_parent_is_respected(
    receiver: TraceReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    traces = sending(receiver)
    with traces.span("call", kind="server") as call:
        assert int(call.split("-")[3], 16) & 1 == 0
    traces.record("task", 1.0, 2.0, "", context=traces.derived("", "t1"))
    wanted = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    with traces.span("wanted", wanted, kind="server"):
        pass
    traces.close()
    assert [span.name for span in receiver.spans] == ["wanted"]


def test_lost_receiver_is_logged_once_and_on_recovery(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than the first pause between attempts, so that the test need not wait for it.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    receiver = TraceReceiver()
    with receiver.receiving():
        traces = sending(receiver)
    caplog.set_level(logging.INFO, "orchestrator")

    def told() -> list[str]:
        return [
            record.message
            for record in caplog.records
            if record.name == "orchestrator.tracing.otlp"
        ]

    def heard(words: str) -> bool:
        with traces.span("call", kind="server"):
            return any(words in message for message in told())

    wait_for(lambda: heard("trace export failed"))
    with receiver.receiving():
        wait_for(lambda: heard("trace export recovered"))
        traces.close()
    assert len(told()) == 2


@pytest.mark.parametrize("wrong", ["collector:4318", "ftp://collector", "http://"])
def test_invalid_endpoint_url_is_an_error(wrong: str) -> None:
    command = click.command()(endpoint_option(lambda otlp_endpoint: None))
    said = CliRunner().invoke(command, ["--otlp-endpoint", wrong])
    assert said.exit_code == 2
    assert f"'{wrong}' is not a URL, such as http://collector:4318" in said.output


def test_grpc_protocol_by_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: object) -> object:
            names.extend(
                span.name
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    traces = configuration.tracer("orc-test", "one", f"http://127.0.0.1:{port}")
    with traces.span("call", kind="server"):
        pass
    traces.close()
    server.stop(None)
    assert names == ["call"]


def test_unknown_protocol_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(TracingError, match=r"set it to http/protobuf or grpc"):
        configuration.tracer("orc-test", "one", "http://127.0.0.1:1")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "orchestrator.tracing.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(TracingError, match=r"pip install 'orc\[traces\]'"):
        configuration.tracer("orc-test", "one", "http://127.0.0.1:1")
