# SPDX-License-Identifier: Apache-2.0
"""Hosts and clients of other releases at a real manager: one minor release apart they work, further
apart they are refused in one line that says both versions and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.cli.app.contexts import Context
from orchestrator.cli.app.errors import Refused
from orchestrator.cli.rpc.client import Client
from orchestrator.daemon.process import Supervisor
from orchestrator.identity import ca, join_tokens
from orchestrator.identity.certificates import KeyPair
from orchestrator.identity.join import JoinRefused, join
from orchestrator.manager.cluster.schema import Schema
from orchestrator.manager.daemon import CannotServe, Manager, ManagerSettings
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import SCHEMA
from orchestrator.manager.store.kv import Put
from orchestrator.model.administration.managers import Manager as ManagerObject
from orchestrator.model.administration.managers import ManagerPresence
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.pb import (
    control_pb2,
    dispatch_pb2,
    dispatch_pb2_grpc,
    documents_pb2,
    managers_pb2,
    managers_pb2_grpc,
)

OWN = "1.5.0"
"""The version of the manager."""

NEAR = ("1.5.0", "1.5.7", "1.4.9", "1.6.0", "1.6.0rc1")
OLDER = ("1.3.9", "0.5.0", "0.1.0")
NEWER = ("1.7.0", "2.0.0")


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr("orchestrator.manager.daemon.__version__", OWN)
    monkeypatch.setattr("orchestrator.manager.cluster.version_skew.__version__", OWN)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    async with manager_in(tmp_path / "manager") as running:
        yield running


def check_refusal(text: str, version: str) -> None:
    """The refusal of a version is one line with both versions and the remedy."""
    assert "\n" not in text
    assert f"has version {version}, more than 1 minor release from {OWN}" in text
    assert "install a release from 1.4 to 1.6 there" in text
    assert ("upgrade" in text) == (version in NEWER)


@contextmanager
def of_version(version: str, module: str) -> Any:
    """A module of the other side has this version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{module}.__version__", version)
        yield


async def join_as(running: Running, role: str, version: str) -> Any:
    secret = running.identity.worker_token if role == "worker" else running.identity.manager_token
    token = str(join_tokens.JoinToken(ca.digest(running.authority.certificate), secret))
    address = f"127.0.0.1:{running.identity.port + 1}"
    with of_version(version, "orchestrator.identity.join"):
        return await asyncio.to_thread(
            join, address, token, f"host-{version}", roles=(role,), own="127.0.0.1"
        )


@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_hosts_of_a_neighbouring_release_join(running: Running, role: str) -> None:
    for version in NEAR:
        assert (await join_as(running, role, version)).role == role


@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_hosts_of_other_releases_do_not_join(running: Running, role: str) -> None:
    for version in (*OLDER, *NEWER):
        with pytest.raises(JoinRefused) as refused:
            await join_as(running, role, version)
        check_refusal(str(refused.value), version)
    # A host of release 0.1 does not say its version.
    with pytest.raises(JoinRefused) as refused:
        await join_as(running, role, "")
    check_refusal(str(refused.value), "0.1.0")
    assert not running.manager.cache.view.nodes


async def test_a_host_must_work_with_every_manager(running: Running) -> None:
    other = ManagerObject(id="m2", hostname="second", version="1.4.0")
    revision = await commit(running.kv, [Change(None, other)])
    await running.manager.cache.wait_for(revision)
    with pytest.raises(JoinRefused, match=r"has version 1\.6\.0, more than 1 minor release from "):
        await join_as(running, "worker", "1.6.0")
    assert await join_as(running, "worker", "1.5.0")


async def enroll(running: Running, version: str, schema: int = 0) -> Any:
    """Enrol a manager, which had its certificate with a release that could join."""
    joined = await join_as(running, "manager", OWN)
    async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
        request = managers_pb2.EnrollRequest(
            hostname="second",
            address="127.0.0.1",
            port=1,
            peer_port=2,
            version=version,
            schema=schema,
        )
        return await managers_pb2_grpc.MembershipStub(channel).Enroll(request, timeout=60)


async def test_managers_of_other_releases_do_not_enrol(running: Running) -> None:
    for version in (*OLDER, *NEWER):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await enroll(running, version)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        check_refusal(refused.value.details() or "", version)
    assert len(running.manager.cache.view.managers) == 1
    assert await enroll(running, "1.6.0")


async def test_a_manager_that_does_not_know_the_final_schema_does_not_enrol(
    running: Running,
) -> None:
    """It would become a member of etcd, and refuse to start."""
    await running.kv.txn([], [Put(SCHEMA, Schema(version=2, requested=2).encode())])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await enroll(running, OWN)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "schema version 2, and this release knows 1" in (refused.value.details() or "")
    assert len(running.manager.cache.view.managers) == 1
    assert await enroll(running, OWN, schema=2)


async def session(channel: grpc.aio.Channel, version: str) -> str:
    """The first message of an agent's session. Raises AioRpcError."""
    call = dispatch_pb2_grpc.DispatchStub(channel).Session(timeout=60)
    description = to_proto(NodeDescription(hostname="host", version=version))
    await call.write(dispatch_pb2.AgentMessage(hello=dispatch_pb2.Hello(description=description)))
    message = await call.read()
    if message is grpc.aio.EOF:
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(await call.code(), nothing, nothing, await call.details())
    call.cancel()
    return str(message.WhichOneof("kind"))


async def test_agents_of_a_neighbouring_release_have_sessions(running: Running) -> None:
    joined = await join_as(running, "worker", OWN)
    async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
        for version in (*OLDER, *NEWER):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await session(channel, version)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            check_refusal(refused.value.details() or "", version)
        for version in NEAR:
            assert await session(channel, version) == "welcome"


async def test_calls_of_clients_of_other_releases_are_refused(running: Running) -> None:
    endpoint = f"127.0.0.1:{running.identity.port}"
    admin = running.admin
    context = Context("t", (endpoint,), running.authority.certificate, admin.certificate, admin.key)

    def call(version: str, method: str, request: Any) -> Any:
        with of_version(version, "orchestrator.cli.rpc.client"), Client(context) as client:
            return client.call(method, request)

    for version in NEAR:
        create = documents_pb2.CreateDocumentRequest(name=f"of-{version}", data=b"x")
        assert await asyncio.to_thread(call, version, "Documents.CreateDocument", create)
    for version in (*OLDER, *NEWER):
        create = documents_pb2.CreateDocumentRequest(name=f"of-{version}", data=b"x")
        with pytest.raises(Refused) as refused:
            await asyncio.to_thread(call, version, "Documents.CreateDocument", create)
        check_refusal(str(refused.value), version)
        # What is in the way of an upgrade can be checked from any release.
        info = await asyncio.to_thread(call, version, "GetCluster", control_pb2.GetClusterRequest())
        assert info.version


async def test_a_manager_does_not_start_beside_a_release_that_it_does_not_work_with(
    running: Running, tmp_path: Path
) -> None:
    others = (
        (ManagerObject(id="m2", hostname="second"), "manager second"),
        (Node(id="n1", state=NodeState.READY), "node third"),
    )
    for version in ("1.3.0", "1.7.0"):
        for found, name in others:
            written: list[Any] = [
                ManagerObject(id="m2", hostname="second", version=version)
                if isinstance(found, ManagerObject)
                else Node(
                    id="n1",
                    state=NodeState.READY,
                    description=NodeDescription(hostname="third", version=version),
                )
            ]
            if isinstance(found, ManagerObject):
                written.append(ManagerPresence(id="m2"))
            await commit(running.kv, [Change(None, each) for each in written])
            again = Manager(
                ManagerSettings(running.folder), running.identity, running.kv, Supervisor("", 0.0)
            )
            with pytest.raises(ExceptionGroup) as refused:
                await again.run()
            reason = refused.value.exceptions[0]
            assert isinstance(reason, CannotServe)
            assert f"more than 1 minor release from {version} of {name}" in str(reason)
            await running.manager.cache.wait_for((await running.kv.list("/")).revision)
            view = running.manager.cache.view
            gone = [
                each
                for table in (view.managers, view.nodes, view.manager_presence)
                if (each := table.get(found.id)) is not None
            ]
            await commit(running.kv, [Change(each, None) for each in gone])
