# SPDX-License-Identifier: Apache-2.0
"""Objects with enum values of a newer version, one for each enum field of all stored kinds: a
manager of this version shows them and leaves them as they are, and plans all others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from managerhost import Running, manager_in
from test_manager import agent, deploy, web

from orchestrator.cli.app.contexts import Context, save_context
from orchestrator.cli.main import orc
from orchestrator.manager.store.keys import _KINDS, object_key
from orchestrator.manager.store.kv import Put
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.documents import Document
from orchestrator.model.networks import OVERLAY
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster, Network, Volume
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import control_pb2_grpc, dispatch_pb2, types_pb2

NOVEL = 999
"""A number that no enum has."""

Way = tuple[FieldDescriptor, ...]
"""Fields from a message to an enum in it."""


def ways(descriptor: Descriptor, before: Way = ()) -> Iterator[Way]:
    """The ways from a message to each enum in it."""
    for field in descriptor.fields:
        if field.enum_type is not None:
            yield (*before, field)
        elif (inner := field.message_type) is not None and not inner.GetOptions().map_entry:
            yield from ways(inner, (*before, field))


def with_novelty(message: Any, way: Way) -> Any:
    """Set the enum at the end of a way to a number that this version does not know."""
    *fields, last = way
    inner = message
    for field in fields:
        part = getattr(inner, field.name)
        inner = part.add() if hasattr(part, "add") else part
    value = getattr(inner, last.name)
    if hasattr(value, "append"):
        value.append(NOVEL)
    else:
        setattr(inner, last.name, NOVEL)
    return message


def stored() -> Iterator[tuple[str, Any]]:
    """Every kind with enums, in a valid object, and one with a novelty for each of them."""
    for kind in _KINDS:
        descriptor = getattr(types_pb2, kind.__name__).DESCRIPTOR
        for number, way in enumerate(ways(descriptor)):
            name = f"{kind.__name__.lower()}-{number}"
            if kind is Cluster:
                continue  # there is only one: see below
            yield ".".join(field.name for field in way), with_novelty(valid(kind, name), way)


def valid(kind: type, name: str) -> Any:
    """A message of a kind with enums."""
    container = TaskSpec(container=ContainerSpec(image="hello:1"))
    samples: dict[type, Any] = {
        Service: Service(id=name, spec=ServiceSpec(name=name, replicas=1, task=container)),
        Task: Task(id=name, container_name=name, spec=container, node_id="none"),
        Orphan: Orphan(id=name, node_id="none", task=Task(id=name, container_name=name)),
        Node: Node(id=name, description=NodeDescription(hostname=name), state=NodeState.DOWN),
        Network: Network(id=name, name=name, driver=OVERLAY, subnet="10.9.0.0/24", vni=77),
        Volume: Volume(id=name),
        Document: Document(id=name, name=name),
    }
    assert kind in samples, f"{kind.__name__} has an enum: it needs a sample here"
    return to_proto(samples[kind])


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    async with manager_in(tmp_path / "manager", 600.0) as running:
        save_context(
            Context(
                "t",
                (f"127.0.0.1:{running.identity.port}",),
                running.authority.certificate,
                running.admin.certificate,
                running.admin.key,
            )
        )
        yield running


async def command(*words: str) -> Result:
    """Run `orc`."""
    return await asyncio.to_thread(CliRunner().invoke, orc, words)


SHOWS = {
    "Service": "service inspect",
    "Task": "inspect",
    "Node": "node inspect",
    "Network": "network inspect",
    "Volume": "volume inspect",
    "Document": "config inspect",
}
"""Command that shows an object, by kind."""

CHANGES = {
    "Service": "service update -d {0} --label-add a=b",
    "Task": "rename {0} {0}-renamed",
    "Node": "node update {0} --label-add a=b",
    "Network": "network rm {0}",
    "Volume": "volume rm {0}",
    "Document": "config rm {0}",
    "Orphan": "orphan adopt {0}",
}
"""Command that would change it."""

LISTS = (
    *(("node", "ls"), ("service", "ls"), ("ps", "-a"), ("network", "ls"), ("volume", "ls")),
    *(("secret", "ls"), ("config", "ls"), ("images",), ("job", "ls"), ("stack", "ls")),
    *(("cluster", "info"), ("system", "df"), ("orphan", "ls"), ("manager", "ls")),
)


async def check_lists() -> None:
    """All lists show all."""
    for words in LISTS:
        done = await command(*words)
        assert done.exit_code == 0, (words, done.output, done.exception)
    done = await command("cluster", "upgrade", "--check", "--format", "json")
    assert not done.exception or isinstance(done.exception, SystemExit), done.output
    assert "findings" in json.loads(done.stdout)


async def test_objects_with_novel_enum_values_are_shown_and_left_as_they_are(
    running: Running,
) -> None:
    found = list(stored())
    kinds = {type(message).__name__ for _, message in found}
    assert kinds >= {"Service", "Task", "Node", "Network", "Volume", "Document"}
    bytes_of = {
        object_key(from_proto(message)): message.SerializeToString(deterministic=True)
        for _, message in found
    }
    revision = await running.kv.txn([], [Put(key, value) for key, value in bytes_of.items()])
    await running.manager.cache.wait_for(revision)
    assert running.manager.cache.view.quarantined.keys() == bytes_of.keys()

    async with (
        agent(running, "one") as node,
        running.channel(running.admin) as channel,
    ):
        control = control_pb2_grpc.ControlStub(channel)
        # Others are planned.
        await deploy(running, control, web(replicas=2))
        await node.until(lambda: len(node.tasks) == 2)
        await node.report(*node.tasks, state=TaskState.RUNNING)
        await node.until(lambda: node.acknowledged == node.sequence)
        await check_lists()
        for way, message in found:
            kind, id = type(message).__name__, message.id
            # A document of a novel kind is neither a secret nor a config.
            if kind in SHOWS and way != "kind":
                for form in ((), ("--format", "table")):
                    done = await command(*SHOWS[kind].split(), id, *form)
                    assert done.exit_code == 0, (way, done.output, done.exception)
            done = await command(*CHANGES[kind].format(id).split())
            assert done.exit_code != 0, (way, done.output)
            assert isinstance(done.exception, SystemExit), (way, done.output, done.exception)
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
            assert "Error: " not in done.stderr, done.stderr
        for key, value in bytes_of.items():
            entry = await running.kv.get(key)
            assert entry is not None, f"{key} is gone"
            assert entry.value == value, f"{key} was changed"


async def test_a_cluster_with_a_novel_strategy_works(running: Running) -> None:
    cluster = running.manager.cache.view.cluster
    assert cluster is not None
    message = to_proto(cluster)
    message.ClearField("revision")
    message.strategy = cast(Any, NOVEL)
    key, value = object_key(cluster), message.SerializeToString(deterministic=True)
    await running.manager.cache.wait_for(await running.kv.txn([], [Put(key, value)]))
    async with agent(running, "one") as node, running.channel(running.admin) as channel:
        await deploy(running, control_pb2_grpc.ControlStub(channel), web())
        await node.until(lambda: node.tasks)
        await check_lists()
        done = await command("cluster", "update", "--strategy", "binpack")
        assert done.exit_code != 0
    entry = await running.kv.get(key)
    assert entry is not None
    assert entry.value == value


async def test_novel_values_in_the_status_of_a_newer_agent_do_no_harm(running: Running) -> None:
    async with agent(running, "one") as node, running.channel(running.admin) as channel:
        await deploy(running, control_pb2_grpc.ControlStub(channel), web())
        await node.until(lambda: node.tasks)
        [task] = node.tasks
        for way in ways(types_pb2.TaskStatus.DESCRIPTOR):
            await node.report(task, state=TaskState.RUNNING)
            status = to_proto(TaskStatus(state=TaskState.RUNNING, at=float(node.sequence + 1)))
            node.sequence += 1
            statuses = {task: with_novelty(status, way)}
            report = dispatch_pb2.StatusReport(sequence=node.sequence, statuses=statuses)
            await node.say(statuses=report)
            await node.until(lambda: node.acknowledged == node.sequence)
        await node.report(task, state=TaskState.RUNNING, pid=8)
        await node.until(lambda: node.acknowledged == node.sequence)
        view = running.manager.cache.view
        assert not view.quarantined
        assert view.tasks[task].status.pid == 8
        await check_lists()
