# SPDX-License-Identifier: Apache-2.0
"""A manager of 100 nodes and 10,000 tasks: no request holds its event loop, which renews the lease
and hears agents."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from loopmeter import measured
from managerhost import Running, manager_in

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.convert import to_proto
from orchestrator.model.documents import Document
from orchestrator.model.nodes import Availability, Node, NodeDescription, NodeState
from orchestrator.model.objects import Image, Object, Volume
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, Resources, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import (
    containers_pb2,
    containers_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dashboard_pb2,
    dashboard_pb2_grpc,
    documents_pb2,
    documents_pb2_grpc,
    volumes_pb2,
    volumes_pb2_grpc,
)

NODES, SERVICES, TASKS = 100, 40, 10_000
LIMIT = 0.05
"""Seconds of CPU that one callback may take."""


def objects() -> Iterator[Object]:
    """A cluster in which nothing is left to do."""
    image = Image(id="sha256:" + "a" * 64, names=("hello:1",), nodes=tuple(node_ids()))
    yield image
    for number, id in enumerate(node_ids()):
        yield Node(
            id=id,
            created_at=time.time(),
            state=NodeState.READY,
            description=NodeDescription(
                hostname=f"host{number}",
                address=f"10.0.0.{number}",
                resources=Resources(64 * 1024, 64 << 30),
                metrics_port=9101,
            ),
        )
        yield Volume(id=f"data{number}")
        yield Document(id=f"d{number}", name=f"secret{number}", kept=(1,))
    for number in range(SERVICES):
        spec = TaskSpec(
            container=ContainerSpec(
                image="hello:1",
                env=("A=1", "B=2"),
                labels={"team": "x", "prometheus.port": "9000"},
            ),
            reservation=Resources(64, 16 << 20),
        )
        service = Service(
            id=f"s{number}",
            created_at=time.time(),
            spec=ServiceSpec(name=f"web{number}", replicas=TASKS // SERVICES, task=spec),
            image_digest=image.id,
        )
        yield service
        for slot in range(1, TASKS // SERVICES + 1):
            yield Task(
                id=f"s{number}-{slot:05}",
                created_at=time.time(),
                service_id=service.id,
                service_name=service.spec.name,
                slot=slot,
                spec=spec,
                spec_version=1,
                image_digest=image.id,
                node_id=f"n{(number + slot) % NODES}",
                status=TaskStatus(
                    TaskState.RUNNING,
                    at=time.time(),
                    started_at=time.time(),
                    addresses={"default": f"10.128.{number}.{slot % 250}"},
                ),
            )


def node_ids() -> list[str]:
    return [f"n{number}" for number in range(NODES)]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    kv = MemoryKv(asyncio.get_running_loop().time, max_txn_ops=4096)
    await commit(kv, [Change(None, each) for each in objects()])
    async with manager_in(tmp_path / "manager", 3600.0, kv) as running:
        yield running


Ask = Callable[[grpc.Channel], Any]


def plan(channel: grpc.Channel) -> Any:
    """A dry run that moves half of the tasks."""
    control = control_pb2_grpc.ControlStub(channel)
    nodes = control.ListNodes(control_pb2.ListNodesRequest()).nodes
    update = [
        control_pb2.PlannedChange(
            update_node=control_pb2.UpdateNodeRequest(
                node=row.node.id, availability=cast(Any, int(Availability.DRAIN))
            )
        )
        for row in nodes[: NODES // 2]
    ]
    return control.Plan(control_pb2.PlanRequest(changes=update))


def watch(channel: grpc.Channel) -> Any:
    control = control_pb2_grpc.ControlStub(channel)
    return next(control.WatchService(control_pb2.WatchServiceRequest(service="web1")))


def inspect(channel: grpc.Channel) -> Any:
    containers = containers_pb2_grpc.ContainersStub(channel)
    return containers.ListContainers(
        containers_pb2.ListContainersRequest(containers=["web3.7", "s5-00012"])
    )


def create(channel: grpc.Channel) -> Any:
    control = control_pb2_grpc.ControlStub(channel)
    spec = ServiceSpec(name="another", task=TaskSpec(container=ContainerSpec(image="hello:1")))
    return control.CreateService(control_pb2.CreateServiceRequest(spec=to_proto(spec)))


CALLS: dict[str, Ask] = {
    "tasks": lambda c: control_pb2_grpc.ControlStub(c).ListTasks(control_pb2.ListTasksRequest()),
    "containers": lambda c: containers_pb2_grpc.ContainersStub(c).ListContainers(
        containers_pb2.ListContainersRequest()
    ),
    "nodes": lambda c: control_pb2_grpc.ControlStub(c).ListNodes(control_pb2.ListNodesRequest()),
    "services": lambda c: control_pb2_grpc.ControlStub(c).ListServices(
        control_pb2.ListServicesRequest()
    ),
    "images": lambda c: control_pb2_grpc.ControlStub(c).ListImages(control_pb2.ListImagesRequest()),
    "cluster": lambda c: control_pb2_grpc.ControlStub(c).GetCluster(
        control_pb2.GetClusterRequest()
    ),
    "documents": lambda c: documents_pb2_grpc.DocumentsStub(c).ListDocuments(
        documents_pb2.ListDocumentsRequest()
    ),
    "volumes": lambda c: volumes_pb2_grpc.VolumesStub(c).ListVolumes(
        volumes_pb2.ListVolumesRequest()
    ),
    "inspect": inspect,
    "watch": watch,
    "plan": plan,
    "create": create,
}


def channel_of(running: Running) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        running.authority.certificate.encode(),
        running.admin.key.encode(),
        running.admin.certificate.encode(),
    )
    return grpc.secure_channel(
        f"127.0.0.1:{running.identity.port}",
        credentials,
        options=[("grpc.max_receive_message_length", 1 << 30)],
    )


def fetch(running: Running, path: str, cookie: str = "", end: bytes = b"") -> bytes:
    """The body that the manager's web server answers with, up to `end` of a stream."""
    context = ssl.create_default_context(cafile=running.folder / "ca.pem")
    context.check_hostname = False
    context.load_cert_chain(*certificate(running))
    request = urllib.request.Request(f"https://127.0.0.1:{running.identity.port + 2}{path}")
    request.add_header("Cookie", cookie)
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        if not end:
            return bytes(answer.read())
        body = b""
        while not body.endswith(end):
            body += answer.readline()
        return body


def certificate(running: Running) -> tuple[Path, Path]:
    pair = (running.folder / "admin.pem", running.folder / "admin.key")
    pair[0].write_text(running.admin.certificate)
    pair[1].write_text(running.admin.key)
    return pair


def dashboard(running: Running) -> bytes:
    """The first picture that a browser gets."""
    with channel_of(running) as channel:
        opened = dashboard_pb2_grpc.DashboardStub(channel).OpenDashboard(
            dashboard_pb2.OpenDashboardRequest(read_only=True)
        )
    context = ssl.create_default_context(cafile=running.folder / "ca.pem")
    context.check_hostname = False
    page = HTTPSConnection(opened.address, context=context, timeout=60)
    page.request("POST", "/api/session", json.dumps({"ticket": opened.ticket}))
    cookie = str(page.getresponse().headers["Set-Cookie"]).partition(";")[0]
    page.close()
    return fetch(running, "/api/events", cookie, end=b"\n\nevent: happened\n")


PAGES: dict[str, Callable[[Running], bytes]] = {
    "metrics": lambda running: fetch(running, "/metrics"),
    "discovery": lambda running: fetch(running, "/sd"),
    "dashboard": dashboard,
}


async def test_no_call_holds_the_event_loop(running: Running) -> None:
    held: dict[str, str] = {}
    sizes: dict[str, int] = {}
    # The first full collection walks all that other tests of this process have left, too.
    gc.collect()
    with channel_of(running) as channel, measured() as meter:
        asked: dict[str, Callable[[], Any]] = {
            name: partial(call, channel) for name, call in CALLS.items()
        }
        asked |= {name: partial(call, running) for name, call in PAGES.items()}
        # Connections and imports of the first time are not what is measured.
        await asyncio.to_thread(asked["cluster"])
        await asyncio.to_thread(fetch, running, "/")
        for name, call in asked.items():
            meter.reset()
            answer = await asyncio.to_thread(call)
            sizes[name] = len(answer if isinstance(answer, bytes) else answer.SerializeToString())
            if meter.longest > LIMIT:
                held[name] = f"{meter.longest:.3f} s: {meter.culprit}"
    assert not held
    # They did answer with all that there is.
    assert min(sizes[name] for name in ("tasks", "containers", "discovery", "dashboard")) > 10**6
