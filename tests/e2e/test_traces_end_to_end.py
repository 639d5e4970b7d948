# SPDX-License-Identifier: Apache-2.0
"""One trace from a user's call to the process that runs, and no harm from a receiver that dies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from devcluster import Cluster, eventually
from tracereceiver import Span, TraceReceiver

pytestmark = [pytest.mark.root, pytest.mark.e2e]

HOSTS = ("manager1", "node1")
STEPS = ("dispatch", "pull", "volumes", "files", "network", "create", "start", "first health")


@pytest.fixture(scope="module")
def receiver() -> TraceReceiver:
    """One that has a port and does not receive yet."""
    receiver = TraceReceiver()
    with receiver.receiving():
        return receiver


@pytest.fixture(scope="module")
def sender(session_cluster: Cluster, receiver: TraceReceiver) -> Iterator[Cluster]:
    """The cluster with a manager, a node and users that send traces."""
    node = IPv4Address(session_cluster.nodes()["node1"]["address"])
    machine = IPv4Address(int(node) & 0xFFFFFF00 | 1)
    soon = replace(session_cluster, env={**session_cluster.env, "OTEL_BSP_SCHEDULE_DELAY": "100"})
    for host in HOSTS:
        soon.stop(host)
        soon.dev("start", host, "--", "--otlp-endpoint", f"http://{machine}:{receiver.port}")
    soon.await_ready()
    here = f"http://127.0.0.1:{receiver.port}"
    yield replace(soon, env={**soon.env, "OTEL_EXPORTER_OTLP_ENDPOINT": here})
    for host in HOSTS:
        session_cluster.stop(host)
        session_cluster.start(host)
    session_cluster.await_ready()


def create(cluster: Cluster, name: str, image: str) -> None:
    cluster.orc(
        *("service", "create", "--name", name, "--constraint", "node.hostname==node1"),
        *("--health-http", "80/", "--health-interval", "100ms", image),
    )


def test_one_trace_leads_from_the_call_to_the_process(
    cluster: Cluster, sender: Cluster, hello: str, receiver: TraceReceiver
) -> None:
    with receiver.receiving():
        create(sender, "followed", hello)

        def whole() -> dict[str, Span]:
            spans = {span.name: span for span in receiver.trace_of("first health")}
            assert {"orc service create", "schedule", "task", *STEPS} <= spans.keys(), spans
            return spans

        spans = eventually(whole)
        command, task = spans["orc service create"], spans["task"]
        call = spans["orchestrator.v1.Control/CreateService"]
        assert (command.parent, call.parent, task.parent) == ("", command.id, call.id)
        assert {spans[name].parent for name in ("schedule", *STEPS)} == {task.id}
        assert (command.service, task.service) == ("orc", "orc-manager")
        assert {spans[name].service for name in STEPS} == {"orc-agent"}
        assert not any(span.error for span in spans.values())
        (running,) = cluster.running("followed")
        assert task.attributes["orc.task"] == running["id"]
        order = [spans[name].start for name in ("schedule", *STEPS)]
        assert order == sorted(order)
        # What a build system began goes on in the cluster.
        above = {"TRACEPARENT": "00-" + "c" * 32 + "-" + "d" * 16 + "-01"}
        refused = replace(cluster, env={**cluster.env, **above}).refused(
            "service", "rm", "-d", "none"
        )
        removal = "orchestrator.v1.Control/RemoveService"
        spans = {each.name: each for each in eventually(lambda: receiver.trace_of(removal))}
        span = spans[removal]
        assert (span.trace, span.parent) == ("c" * 32, "d" * 16)
        assert span.error in refused


def test_failing_receiver_does_not_affect_others(
    cluster: Cluster, sender: Cluster, hello: str
) -> None:
    create(sender, "unseen", hello)
    assert len(cluster.running("unseen")) == 1
    sender.orc("service", "rm", "-d", "unseen")
    eventually(lambda: not cluster.nodes()["node1"]["tasks"])
