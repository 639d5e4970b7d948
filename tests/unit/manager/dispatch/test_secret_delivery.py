# SPDX-License-Identifier: Apache-2.0
"""Which node is sent which secrets, and that the store never has them open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.manager.dispatch.endpoint_delivery import EndpointFeed
from orchestrator.manager.dispatch.network_assignments import NetworkAssignments
from orchestrator.manager.dispatch.node_session import NodeSession
from orchestrator.manager.dispatch.secret_delivery import SecretDelivery, files_of
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.document_store import DocumentStore
from orchestrator.manager.security.vault import Vault
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.keys import SEALED
from orchestrator.manager.store.kv import Put
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.documents import Document, DocumentKind, FileReference, OnUpdate
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Object
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import documents_pb2

DB = Document(id="d1", name="db", kept=(1,))
CONF = Document(id="d2", kind=DocumentKind.CONFIG, name="conf", kept=(1,), template_driver="golang")
WEB = Service(id="web", spec=ServiceSpec(name="web"))
NODES = [
    Node(id=id, state=NodeState.READY, description=NodeDescription(hostname=f"host-{id}"))
    for id in ("n1", "n2")
]


def task(id: str, node_id: str, *secrets: FileReference, **fields: object) -> Task:
    container = ContainerSpec(image="web:1", env=("X=y",), secrets=secrets)
    made = Task(
        id=id,
        service_id="web",
        service_name="web",
        slot=3,
        node_id=node_id,
        spec=TaskSpec(container=container),
        status=TaskStatus(TaskState.RUNNING),
        documents={"d1": 1},
    )
    return replace(made, **fields)  # type: ignore[arg-type]


USES = FileReference(source="db")


class Leader:
    """A view that changes, and the sessions of two nodes."""

    def __init__(self, *objects: Object) -> None:
        self.view = ClusterView.of([WEB, DB, CONF, *NODES, *objects])
        self.feed = EndpointFeed(self.view, lambda: 0.0, 2.0)
        self.sessions = {id: NodeSession(id, NetworkAssignments()) for id in ("n1", "n2")}

    def change(self, before: Object | None, after: Object | None) -> None:
        self.view = self.view.evolve([Change(before, after)])
        self.feed.update(self.view, [Change(before, after)])

    def sent(self, node_id: str) -> tuple[list[str], dict[str, list[str]]]:
        """Keys of the data that goes to a node now, and task → keys that its order names. Data
        comes before the order."""
        keys: list[str] = []
        orders: dict[str, list[str]] = {}
        for message in self.sessions[node_id].messages(self.view, self.feed):
            if message.HasField("payload"):
                assert not orders
                assert not message.payload.data
                keys.append(message.payload.key)
            elif message.HasField("assignments"):
                for each in message.assignments.tasks:
                    orders[each.task.id] = [file.payload for file in each.files]
        return keys, orders


def test_only_the_nodes_of_tasks_that_name_it_are_sent_a_secret() -> None:
    leader = Leader(task("t1", "n1", USES), task("t2", "n2"))
    assert leader.sent("n1") == (["d1.1"], {"t1": ["d1.1"]})
    assert leader.sent("n2") == ([], {"t2": []})


def test_a_secret_is_sent_once_for_many_tasks() -> None:
    leader = Leader(task("t1", "n1", USES))
    leader.sent("n1")
    leader.change(None, task("t3", "n1", USES))
    assert leader.sent("n1") == ([], {"t3": ["d1.1"]})


def test_an_unused_secret_is_sent_again_when_needed() -> None:
    first = task("t1", "n1", USES)
    leader = Leader(first)
    leader.sent("n1")
    ended = replace(first, status=TaskStatus(TaskState.SHUTDOWN))
    leader.change(first, ended)
    assert leader.sent("n1") == ([], {"t1": []}), "its node gets the order to delete it"
    leader.change(None, task("t2", "n1", USES))
    assert leader.sent("n1") == (["d1.1"], {"t2": ["d1.1"]})


def test_new_session_begins_with_the_complete_set() -> None:
    leader = Leader(task("t1", "n1", USES))
    leader.sent("n1")
    leader.sessions["n1"] = NodeSession("n1", NetworkAssignments())
    assert leader.sent("n1") == (["d1.1"], {"t1": ["d1.1"]})


def test_a_new_version_goes_to_running_tasks_where_they_are_signalled() -> None:
    signalled = replace(USES, on_update=OnUpdate.SIGNAL)
    leader = Leader(task("t1", "n1", signalled), task("t2", "n2", USES))
    leader.sent("n1"), leader.sent("n2")
    leader.change(DB, replace(DB, version=2, kept=(1, 2)))
    assert leader.sent("n1") == (["d1.2"], {"t1": ["d1.2"]})
    assert leader.sent("n2") == ([], {})


def test_files_in_an_assignment() -> None:
    reference = replace(USES, target="/etc/pw", uid=1, gid=2, mode=0o400)
    view = Leader().view
    (file,) = files_of(view, task("t1", "n1", reference))
    assert (file.name, file.target, file.uid, file.gid, file.mode, file.signal) == (
        "secret db", "/etc/pw", 1, 2, 0o400, 0
    )  # fmt: skip
    signalled = replace(USES, on_update=OnUpdate.SIGNAL, signal="USR1")
    (file,) = files_of(view, task("t1", "n1", signalled))
    assert (file.target, file.mode, file.signal) == ("/run/secrets/db", 0o444, 10)


@pytest.fixture
def kv() -> MemoryKv:
    return MemoryKv(lambda: 0.0)


async def opened(kv: MemoryKv, vault: Vault, payload: documents_pb2.Payload) -> object:
    """What of a payload goes to a node."""
    cache = Cache(kv)
    container = ContainerSpec(
        image="web:1",
        env=("X=y",),
        secrets=(replace(USES, target="pw"),),
        configs=(FileReference(source="conf"),),
    )
    one = task("t1", "n1", spec=TaskSpec(container=container))
    cache.view = ClusterView.of([WEB, DB, CONF, *NODES, one])
    await SecretDelivery(cache, DocumentStore(kv, vault)).fill(payload)
    return payload.error or payload.data


async def test_data_is_decrypted_for_its_task(kv: MemoryKv, tmp_path: Path) -> None:
    vault = Vault.at(tmp_path)
    store = DocumentStore(kv, vault)
    template = b'{{.Service.Name}}.{{.Task.Slot}}@{{.Node.Hostname}} {{env "X"}} {{secret "pw"}}'
    await kv.txn([], [store.write(DB, b"horse\xff"), store.write(CONF, template)])
    written = (await kv.list(SEALED)).entries
    assert [entry.key for entry in written] == [f"{SEALED}d1/1", f"{SEALED}d2/1"]
    assert not [entry for entry in written if b"horse" in entry.value or b"Slot" in entry.value]
    plain = documents_pb2.Payload(key="d1.1", document="d1", version=1)
    assert await opened(kv, vault, plain) == b"horse\xff"
    filled = documents_pb2.Payload(key="d2.1.t1", document="d2", version=1, task="t1")
    assert await opened(kv, vault, filled) == b"web.3@host-n1 y horse\xff"


async def test_reasons_for_missing_data(kv: MemoryKv, tmp_path: Path) -> None:
    vault = Vault.at(tmp_path)
    await kv.txn([], [DocumentStore(kv, vault).write(DB, b"horse")])
    await kv.txn([], [DocumentStore(kv, vault).write(CONF, b'{{secret "nope"}}')])
    (sealed, _) = (await kv.list(SEALED)).entries

    def payload(**fields: object) -> documents_pb2.Payload:
        fields = {"key": "k", "document": "d1", "version": 1, **fields}
        return documents_pb2.Payload(**fields)  # type: ignore[arg-type]

    assert await opened(kv, vault, payload(version=7)) == (
        "version 7 of secret 'db' is not kept any more"
    )
    other = Vault(b"k" * 32)
    assert "secret 'db' cannot be opened: it was encrypted with another key" in str(
        await opened(kv, other, payload())
    )
    assert await opened(kv, vault, payload(document="d2", task="t1")) == (
        "config 'conf' cannot be filled in: the task has no secret 'nope'"
    )
    # A version's data in the place of another's does not open.
    await kv.txn([], [Put(f"{SEALED}d1/2", sealed.value)])
    assert "cannot be opened" in str(await opened(kv, vault, payload(version=2)))
