# SPDX-License-Identifier: Apache-2.0
"""Rotation of the CA by managers on one store, with a node: real gRPC, real TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_again, manager_beside, manager_in
from test_data_key_rotation import security, until

from orchestrator.identity import ca
from orchestrator.identity.certificates import Issued, KeyPair, TlsFiles, issuer_key_id, own_key_id
from orchestrator.identity.join import JoinRefused
from orchestrator.identity.join_tokens import parse
from orchestrator.identity.renewal import keep_renewed
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.security import certificates as certificates_module
from orchestrator.manager.store.commit import commit
from orchestrator.model.administration.access import CaRotation
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import NodeDescription
from orchestrator.model.objects import Cluster
from orchestrator.pb import (
    certificates_pb2,
    certificates_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dispatch_pb2,
    dispatch_pb2_grpc,
)


@pytest.fixture
async def leader(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "leader") as running:
        yield running


@pytest.fixture
async def follower(leader: Running, tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_beside(leader, tmp_path / "follower") as running:
        yield running


def signing(cluster: Cluster) -> bool:
    return bool(cluster.ca_rotation.signing_since)


def all_renewed(running: Running, cluster: Cluster) -> bool:
    """Whether the certificates of all managers are of the CA that signs."""
    signer = own_key_id(cluster.ca_certificate)
    managers = running.manager.cache.view.managers.values()
    return all(each.certificate_ca == signer for each in managers)


def over(cluster: Cluster) -> bool:
    return cluster.ca_rotation == CaRotation()


async def renewed(running: Running, pair: KeyPair, root: str) -> tuple[KeyPair, str]:
    """The next certificate of a holder, and the CAs that it is to trust."""
    key, request = ca.new_request()
    async with running.channel(pair, root=root) as channel:
        reply = await certificates_pb2_grpc.CertificatesStub(channel).Renew(
            certificates_pb2.RenewRequest(csr=request)
        )
    return KeyPair(reply.certificate, key), reply.ca_certificates


async def asks(running: Running, pair: KeyPair, root: str) -> None:
    async with running.channel(pair, root=root) as channel:
        request = control_pb2.GetClusterRequest()
        await control_pb2_grpc.ControlStub(channel).GetCluster(request, timeout=20)


async def opened(channel: grpc.aio.Channel) -> Any:
    """A session of node n1."""
    call = dispatch_pb2_grpc.DispatchStub(channel).Session()
    description = to_proto(NodeDescription(hostname="n1", address="10.0.0.1"))
    hello = dispatch_pb2.Hello(description=description)
    await call.write(dispatch_pb2.AgentMessage(hello=hello))
    return call


async def end_of(session: Any) -> None:
    while await session.read() is not grpc.aio.EOF:
        pass


async def node(running: Running, pair: KeyPair, root: str, told: list[Any]) -> KeyPair:
    """An agent's session, renewed and opened anew when the manager says so; its last pair."""
    while True:
        async with running.channel(pair, root=root) as channel:
            call = await opened(channel)
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("kind") != "trust":
                    continue
                told.append(message.trust)
                root = message.trust.ca_certificates
                if issuer_key_id(pair.certificate) != message.trust.signer:
                    pair, _ = await renewed(running, pair, root)


async def test_all_members_renew_and_then_the_former_ca_is_refused(
    leader: Running, follower: Running
) -> None:
    old = leader.authority.certificate
    joined = await leader.join(leader.token, "n1")
    told: list[Any] = []
    session = asyncio.create_task(
        node(follower, KeyPair(joined.certificate, joined.key), old, told)
    )
    try:
        await until(leader, lambda _: leader.manager.cache.view.sessions)
        await asks(leader, leader.admin, old)
        started = await security(leader, "RotateCa")
        assert started.phase == "trusting"
        await until(leader, signing)
        # One that trusts the former CA alone reaches managers that have renewed.
        new = leader.manager.cache.view.cluster
        assert new is not None
        signer = own_key_id(new.ca_certificate)
        assert new.ca_certificate != old

        def members_renewed(_: Cluster) -> bool:
            view = leader.manager.cache.view
            managers = {each.certificate_ca for each in view.managers.values()}
            return managers == {signer} and [
                each.certificate_ca for each in view.sessions.values()
            ] == [signer]

        await until(leader, members_renewed)
        await asks(leader, leader.admin, old)
        status = await security(leader, "GetCaStatus")
        assert status.phase == "renewing"
        assert [each.name for each in status.members if each.blocking] == ["admin"]
        admin, trusted = await renewed(leader, leader.admin, old)
        assert trusted == new.trusted_cas
        await until(leader, over)
        await until(leader, lambda _: (follower.folder / "ca.pem").read_text() != trusted)
        for each in (leader, follower):
            assert (each.folder / "ca.pem").read_text() == new.ca_certificate
            await asks(each, admin, new.ca_certificate)
            with pytest.raises(grpc.aio.AioRpcError):
                await asks(each, leader.admin, new.ca_certificate)
        assert not session.done()
    finally:
        session.cancel()


async def test_a_node_whose_renewed_certificate_was_lost_keeps_a_session_to_renew_it(
    leader: Running,
) -> None:
    root = leader.authority.certificate
    joined = await leader.join(leader.token, "n1")
    pair = KeyPair(joined.certificate, joined.key)
    await security(leader, "RotateCa")
    await until(leader, signing)
    await renewed(leader, pair, root)  # the answer does not arrive
    ended = 0
    async with leader.channel(pair, root=root) as channel:
        while True:
            ending = asyncio.create_task(end_of(await opened(channel)))
            await asyncio.wait([ending], timeout=2)
            if not ending.done():
                break
            ended += 1
            assert ended < 3, "each session ends before it can be used to renew"
        again, _ = await renewed(leader, pair, root)
        await ending
    async with leader.channel(again, root=root) as channel:
        await opened(channel)
        signer = issuer_key_id(again.certificate)

        def present(_: Cluster) -> bool:
            sessions = leader.manager.cache.view.sessions.values()
            return [each.certificate_ca for each in sessions] == [signer]

        await until(leader, present)


async def token_of(running: Running) -> str:
    async with running.channel(running.admin) as channel:
        request = control_pb2.GetClusterRequest()
        reply = await control_pb2_grpc.ControlStub(channel).GetCluster(request)
    return str(reply.worker_token)


async def test_a_new_ca_comes_with_new_join_tokens(leader: Running) -> None:
    await security(leader, "RotateCa")
    # The manager follows the store: it presents the new CA once its own certificate is of it.
    await until(leader, lambda cluster: signing(cluster) and all_renewed(leader, cluster))
    with pytest.raises(JoinRefused, match="before a rotation of the cluster's CA"):
        await leader.join(leader.token)
    token = await token_of(leader)
    former = replace(parse(token), secret=parse(leader.token).secret)
    with pytest.raises(JoinRefused, match="not valid"):
        await leader.join(str(former))
    joined = await leader.join(token)
    view = leader.manager.cache.view
    assert view.cluster is not None
    assert issuer_key_id(joined.certificate) == own_key_id(view.cluster.ca_certificate)


async def test_a_join_waits_until_the_manager_presents_the_new_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew = asyncio.Event()

    async def kept_renewed(files: Any, request: Any, sign: Any, **more: Any) -> None:
        async def late(asked: str) -> str:
            await renew.wait()
            return str(await sign(asked))

        await keep_renewed(files, request, late, **more)

    monkeypatch.setattr(certificates_module, "keep_renewed", kept_renewed)
    async with manager_in(tmp_path) as running:
        await security(running, "RotateCa")
        await until(running, signing)
        asyncio.get_running_loop().call_later(1.0, renew.set)
        joined = await running.join(await token_of(running))
        assert renew.is_set()
        view = running.manager.cache.view
        assert view.cluster is not None
        assert issuer_key_id(joined.certificate) == own_key_id(view.cluster.ca_certificate)


async def test_a_rotation_goes_on_after_a_restart_and_can_be_forced(tmp_path: Path) -> None:
    async with manager_in(tmp_path) as running:
        await running.join(running.token, "absent")
        await security(running, "RotateCa")
        await until(running, signing)
    async with manager_again(running) as again:
        status = await security(again, "GetCaStatus")
        assert status.phase == "renewing"
        waiting = {each.name: each.reason for each in status.members if each.blocking}
        assert waiting["absent"] == "it is not connected"
        await security(again, "RotateCa", force=True)
        await until(again, over)
        cluster = again.manager.cache.view.cluster
        assert cluster is not None
        pair = TlsFiles.of(again.folder, "manager").pair.read()
        assert issuer_key_id(pair.certificate) == own_key_id(cluster.ca_certificate)


async def test_a_certificate_that_is_not_renewed_any_more_is_replaced(leader: Running) -> None:
    root, cache = leader.authority.certificate, leader.manager.cache
    await asks(leader, leader.admin, root)
    had = Issued.of(leader.admin.certificate)
    assert had is not None
    await until(leader, lambda _: had.serial in cache.view.certificates)
    known = cache.view.certificates[had.serial]
    older = replace(known, since=known.issued_at - 400 * 86400)
    await cache.wait_for(await commit(leader.kv, [Change(known, older)]))
    with pytest.raises(grpc.aio.AioRpcError, match="renewed for a year"):
        await renewed(leader, leader.admin, root)
    await security(leader, "RotateCa")
    await until(leader, signing)
    pair, _ = await renewed(leader, leader.admin, root)
    has = Issued.of(pair.certificate)
    assert has is not None
    assert has.ca != had.ca
    assert has.ends == had.ends


async def test_a_rotation_ends_without_admins_who_do_not_come_in_time(leader: Running) -> None:
    await security(leader, "RotateCa", admins_within=3600.0)
    await until(leader, signing)
    status = await security(leader, "GetCaStatus")
    assert status.admins_until == pytest.approx(status.started_at + 3600.0, abs=60)
    assert "admin" in [each.kind for each in status.members if each.blocking]
    await security(leader, "RotateCa", admins_within=0.1)
    await until(leader, over)
    await until(
        leader, lambda _: len(ca.certificates_in((leader.folder / "ca.pem").read_text())) == 1
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await asks(leader, leader.admin, (leader.folder / "ca.pem").read_text())
