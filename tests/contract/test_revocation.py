# SPDX-License-Identifier: Apache-2.0
"""Revoked certificates: real managers and a node's real blob server, over real TLS.

The attackers: a removed node that goes on dialing, and an admin whose certificate was revoked while
streams are open.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from managerhost import Running, manager_again, manager_beside, manager_in

from orchestrator.agent.images.image_gc import DiskThresholds
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.network.endpoint_table import EndpointTable
from orchestrator.agent.session.channels import Channels, serve_blobs
from orchestrator.agent.session.credentials import NodeCertificate, RevocationStore
from orchestrator.agent.session.session import Dialer, Node, Session
from orchestrator.agent.settings import Settings
from orchestrator.agent.statedb import StateDb
from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.cli.app.contexts import Context, dump_context
from orchestrator.identity import ca
from orchestrator.identity.authority import Authority
from orchestrator.identity.bootstrap import new_admin, store_node
from orchestrator.identity.certificates import Issued, KeyPair, TlsFiles
from orchestrator.identity.host_identity import NodeIdentity
from orchestrator.identity.join import Joined
from orchestrator.identity.revocation import REVOKED_SERIAL, Revocations, Revoked
from orchestrator.identity.tls import (
    NODE_NAME,
    channel_credentials,
    channel_options,
    server_credentials,
)
from orchestrator.manager.api.client_calls import ClientCalls
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.security import certificates as certificates_module
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import CERTIFICATE_TURN
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.nodes import NodeDescription
from orchestrator.model.specs import Resources
from orchestrator.pb import (
    access_pb2,
    access_pb2_grpc,
    blobs_pb2,
    blobs_pb2_grpc,
    certificates_pb2,
    certificates_pb2_grpc,
    containers_pb2,
    containers_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dispatch_pb2,
    dispatch_pb2_grpc,
)

PATIENCE = 60.0
"""Seconds after which what should happen has not."""
BLOB_SIZE = 64 << 20
"""Bytes, more than all buffers between two ends of a stream, so that it stays open."""


DIALING: dict[str, asyncio.Task[str]] = {}
"""The dialers of the nodes of `blob_server`, by the names of their folders."""


class IdleWorker:
    """A node without containers."""

    orphans = SimpleNamespace(state=(), tasks=())

    def remove_orphans(self, times: int, tasks: object) -> None:
        pass

    def apply(self, *args: object, **settings: object) -> None:
        pass

    def take(self, payload: object) -> None:
        pass


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager", node_timeout=30.0) as running:
        yield running


@asynccontextmanager
async def blob_server(folder: Path, joined: Joined) -> AsyncIterator[tuple[str, Dialer]]:
    """A node's real blob server and session, with a blob for whoever may have it: HOST:PORT."""
    identity = prepared(folder, joined)
    settings = Settings(
        identity=identity,
        data_dir=folder,
        run_dir=folder,
        cgroup_parent="",
        labels={},
        runtime="crun",
        offered=Resources(),
        generic={},
        max_layer=0,
        build_memory=0,
        marks=DiskThresholds(),
        key_age=0.0,
        blob_port=0,
        metrics_port=0,
    )

    class OneBlob:
        def blob_path(self, digest: str) -> Path:
            return folder / "blob"

    with StateDb(folder / "state.db") as db:
        revocations = Revocations()
        kept = RevocationStore(db, revocations, lambda: dt.datetime.now(dt.UTC).timestamp())
        server, port = await serve_blobs(settings, cast(ImageStore, OneBlob()), revocations)
        wake = asyncio.Event()

        async def nothing(*args: object) -> None:
            pass

        dialer = Dialer(
            db=db,
            joined_by=lambda: identity.managers,
            dial=Channels(settings).manager,
            new_session=lambda: Session(
                Node(
                    lambda: NodeDescription(
                        hostname=folder.name, address="127.0.0.1", blob_port=port
                    ),
                    "boot",
                    list,
                ),
                worker=cast(Any, IdleWorker()),
                endpoints=EndpointTable(db, (), wake.set, identity.node_id),
                reporter=StatusReporter(wake.set),
                wake=wake,
                open_tunnel=nothing,
                remove_images=nothing,
                scrapable=lambda digest: None,
                revoked=kept.take,
            ),
            rng=random.Random(0),
            serial=lambda: NodeCertificate(TlsFiles.of(folder, "node"), lambda: None).serial,
        )
        DIALING[folder.name] = dialing = asyncio.create_task(dialer.run())
        try:
            yield f"127.0.0.1:{port}", dialer
        finally:
            dialing.cancel()
            await asyncio.gather(dialing, return_exceptions=True)
            await server.stop(None)


def prepared(folder: Path, joined: Joined) -> NodeIdentity:
    """What a node's data folder holds, with a blob."""
    folder.mkdir(exist_ok=True)
    if not (folder / "node.json").exists():
        store_node(folder, joined, "127.0.0.1")
    # Sparse: to write all of it would stop the manager, which is in this process, from renewing its
    # lease in time on a busy disk.
    with (folder / "blob").open("wb") as blob:
        blob.truncate(BLOB_SIZE)
    return NodeIdentity(
        joined.node_id, joined.cluster_id, joined.role, "127.0.0.1", joined.managers
    )


def node_channel(running: Running, address: str, pair: KeyPair) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        running.authority.certificate.encode(), pair.key.encode(), pair.certificate.encode()
    )
    return grpc.aio.secure_channel(
        address, credentials, options=[*channel_options(NODE_NAME), LOCAL_POOL]
    )


LOCAL_POOL = ("grpc.use_local_subchannel_pool", 1)


def pair_of(joined: Joined) -> KeyPair:
    return KeyPair(joined.certificate, joined.key)


def another_admin(running: Running, name: str) -> KeyPair:
    return new_admin(
        Authority.local(running.authority),
        running.identity.cluster_id,
        dt.datetime.now(dt.UTC),
        name=name,
    )


def get_blob(channel: grpc.aio.Channel) -> Any:
    return blobs_pb2_grpc.BlobsStub(channel).Get(blobs_pb2.GetBlobRequest(digest="sha256:00"))


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call or stream ends by itself."""
    async with asyncio.timeout(PATIENCE):
        with suppress(grpc.aio.AioRpcError):
            while hasattr(call, "read") and await call.read() is not grpc.aio.EOF:
                pass
        return await call.code(), await call.details() or ""


def info(channel: grpc.aio.Channel) -> Any:
    return control_pb2_grpc.ControlStub(channel).GetCluster(control_pb2.GetClusterRequest())


async def revoke(running: Running, kind: str, name: str, by: KeyPair, **more: Any) -> Any:
    async with running.channel(by) as channel:
        return await access_pb2_grpc.AccessStub(channel).Revoke(
            access_pb2.RevokeRequest(kind=kind, name=name, **more)
        )


async def listed(running: Running, by: KeyPair) -> dict[str, Any]:
    """Serial number → row."""
    async with running.channel(by) as channel:
        reply = await access_pb2_grpc.AccessStub(channel).ListCertificates(
            access_pb2.ListCertificatesRequest()
        )
    return {row.certificate.id: row for row in reply.certificates}


async def recorded(running: Running, pair: KeyPair) -> str:
    """The serial number of a certificate, once it is recorded."""
    issued = Issued.of(pair.certificate)
    assert issued is not None
    cache = running.manager.cache
    async with asyncio.timeout(60), cache.subscribe() as feed:
        while issued.serial not in cache.view.certificates:
            await feed.next()
    return issued.serial


async def renew(channel: grpc.aio.Channel) -> KeyPair:
    key, request = ca.new_request()
    reply = await certificates_pb2_grpc.CertificatesStub(channel).Renew(
        certificates_pb2.RenewRequest(csr=request)
    )
    return KeyPair(reply.certificate, key)


async def remove_node(running: Running, node_id: str) -> None:
    async with running.channel(running.admin) as channel:
        await control_pb2_grpc.ControlStub(channel).RemoveNode(
            control_pb2.RemoveNodeRequest(node=node_id, force=True)
        )


async def until_connected(dialer: Dialer) -> None:
    async with asyncio.timeout(60):
        while not dialer.connected_to:  # noqa: ASYNC110 - a plain attribute
            await asyncio.sleep(0.01)


async def test_a_removed_node_gets_no_more_images_of_its_peers(
    running: Running, tmp_path: Path
) -> None:
    peer, removed = await running.join(running.token), await running.join(running.token)
    async with (
        blob_server(tmp_path / "peer", peer) as (address, dialer),
        node_channel(running, address, pair_of(removed)) as channel,
    ):
        await until_connected(dialer)
        open_stream = get_blob(channel)
        assert (await open_stream.read()).total == BLOB_SIZE
        await remove_node(running, removed.node_id)
        # What is under way ends, and what it already has connected is worth nothing.
        code, text = await refusal(open_stream)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "was revoked at" in text
        assert "the node was removed from the cluster" in text
        assert (await refusal(get_blob(channel)))[0] is grpc.StatusCode.UNAUTHENTICATED
        # Nor is a connection that it opens anew.
        async with node_channel(running, address, pair_of(removed)) as again:
            assert (await refusal(get_blob(again)))[0] is grpc.StatusCode.UNAUTHENTICATED
        # Others are served as before.
        async with node_channel(running, address, pair_of(peer)) as own:
            assert (await get_blob(own).read()).total == BLOB_SIZE


async def test_a_peer_refuses_a_removed_node_also_after_a_restart_without_managers(
    running: Running, tmp_path: Path
) -> None:
    peer, removed = await running.join(running.token), await running.join(running.token)
    async with (
        blob_server(tmp_path / "peer", peer) as (address, dialer),
        node_channel(running, address, pair_of(removed)) as channel,
    ):
        await until_connected(dialer)
        await remove_node(running, removed.node_id)
        open_stream = get_blob(channel)
        assert (await refusal(open_stream))[0] is grpc.StatusCode.UNAUTHENTICATED
    alone = Joined(**{**_fields(peer), "managers": ("127.0.0.1:1",)})
    async with (
        blob_server(tmp_path / "peer", alone) as (address, _),
        node_channel(running, address, pair_of(removed)) as channel,
    ):
        assert (await refusal(get_blob(channel)))[0] is grpc.StatusCode.UNAUTHENTICATED


def _fields(joined: Joined) -> dict[str, Any]:
    return {name: getattr(joined, name) for name in Joined.__slots__}


async def test_disconnected_peer_learns_of_a_revocation_when_it_reconnects(
    running: Running, tmp_path: Path
) -> None:
    peer, removed = await running.join(running.token), await running.join(running.token)
    await remove_node(running, removed.node_id)
    async with (
        blob_server(tmp_path / "peer", peer) as (address, dialer),
        node_channel(running, address, pair_of(removed)) as channel,
    ):
        await until_connected(dialer)
        open_stream = get_blob(channel)
        assert (await refusal(open_stream))[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("away", [False, True])
async def test_removed_or_revoked_node_gets_the_reason(
    running: Running, tmp_path: Path, away: bool
) -> None:
    removed, revoked = await running.join(running.token), await running.join(running.token)
    peer = await running.join(running.token)

    async def expel() -> None:
        await remove_node(running, removed.node_id)
        await revoke(running, "node", revoked.node_id, running.admin, reason="stolen")

    if away:
        await expel()
    async with (
        blob_server(tmp_path / "removed", removed) as (_, first),
        blob_server(tmp_path / "revoked", revoked) as (_, second),
        blob_server(tmp_path / "peer", peer) as (_, third),
    ):
        await until_connected(third)
        if not away:
            await until_connected(first)
            await until_connected(second)
            await expel()
        async with asyncio.timeout(PATIENCE):
            assert "(the node was removed from the cluster)" in await DIALING["removed"]
            assert "(stolen)" in await DIALING["revoked"]
        assert not DIALING["peer"].done()


async def test_removal_notices_are_accepted_from_managers_only(
    running: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The attacker: another node, with its own certificate, at a manager's address."""
    victim, attacker = await running.join(running.token), await running.join(running.token)
    issued = Issued.of(victim.certificate)
    assert issued is not None
    asked = 0

    class Impostor(dispatch_pb2_grpc.DispatchServicer):  # type: ignore[misc]
        async def Session(self, messages: Any, context: Any) -> None:
            nonlocal asked
            asked += 1
            trailing = ((REVOKED_SERIAL, issued.serial),)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "removed", trailing)

    prepared(tmp_path / "attacker", attacker)
    server = grpc.aio.server()
    dispatch_pb2_grpc.add_DispatchServicer_to_server(Impostor(), server)
    credentials = server_credentials(TlsFiles.of(tmp_path / "attacker", "node"))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    deceived = Joined(**{**_fields(victim), "managers": (f"127.0.0.1:{port}",)})
    try:
        async with blob_server(tmp_path / "victim", deceived), asyncio.timeout(PATIENCE):
            while caplog.text.count("no session: ") < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not DIALING["victim"].done()
            # The same words of a host with a manager's certificate would count.
            async with grpc.aio.secure_channel(
                f"127.0.0.1:{port}",
                channel_credentials(TlsFiles.of(tmp_path / "victim", "node")),
                options=channel_options(NODE_NAME),
            ) as channel:
                call = dispatch_pb2_grpc.DispatchStub(channel).Session()
                assert (await refusal(call))[0] is grpc.StatusCode.UNAUTHENTICATED
            assert asked == 1
    finally:
        await server.stop(None)


async def test_node_missing_in_a_restored_backup_gets_no_removal_notice(
    running: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    joined = await running.join(running.token)
    node = running.manager.cache.view.nodes[joined.node_id]
    await commit(running.kv, [Change(node, None)])
    async with blob_server(tmp_path / "node", joined), asyncio.timeout(PATIENCE):
        while "the cluster has no node" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not DIALING["node"].done()


async def test_a_removed_node_gets_neither_a_session_nor_a_certificate(running: Running) -> None:
    joined = await running.join(running.token)
    async with running.channel(pair_of(joined)) as channel:
        session = dispatch_pb2_grpc.DispatchStub(channel).Session()
        await session.write(dispatch_pb2.AgentMessage(hello=dispatch_pb2.Hello()))
        assert (await session.read()).HasField("welcome")
        await remove_node(running, joined.node_id)
        await refusal(session)
        code, text = await refusal(dispatch_pb2_grpc.DispatchStub(channel).Session())
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert text.endswith(
            "(the node was removed from the cluster); its agent stops its tasks and leaves; run "
            "'orc cluster join' to join again"
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await renew(channel)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    # The host itself is welcome as another node.
    anew = await running.join(running.token)
    async with running.channel(pair_of(anew)) as channel:
        await renew(channel)


async def test_a_revoked_node_stays_in_the_list_and_is_cut_off(running: Running) -> None:
    joined = await running.join(running.token, "host-1")
    async with running.channel(pair_of(joined)) as channel:
        session = dispatch_pb2_grpc.DispatchStub(channel).Session()
        hello = dispatch_pb2.Hello()
        hello.description.hostname = "host-1"
        await session.write(dispatch_pb2.AgentMessage(hello=hello))
        assert (await session.read()).HasField("welcome")
        reply = await revoke(running, "node", "host-1", running.admin, reason="stolen")
        assert reply.revocation.name == joined.node_id
        code, text = await refusal(session)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "(stolen)" in text
    assert joined.node_id in running.manager.cache.view.nodes


async def test_a_refusal_names_the_certificate_and_the_request(running: Running) -> None:
    anna = another_admin(running, "anna")
    issued = Issued.of(anna.certificate)
    assert issued is not None
    async with running.channel(anna) as channel:
        await info(channel)
        await recorded(running, anna)
        await revoke(running, "admin", "anna", running.admin)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await control_pb2_grpc.ControlStub(channel).RemoveNode(
                control_pb2.RemoveNodeRequest(node="node1"), metadata=(("orc-request-id", "mine"),)
            )
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    told = dict(refused.value.trailing_metadata())
    assert told == {REVOKED_SERIAL: issued.serial, "orc-request-id": "mine"}


async def test_streams_of_a_revoked_admin_end_and_it_cannot_come_back(running: Running) -> None:
    anna = another_admin(running, "anna")
    async with running.channel(anna) as channel, running.channel(running.admin) as other:
        others = containers_pb2_grpc.ContainersStub(other).Events(containers_pb2.EventsRequest())
        events = containers_pb2_grpc.ContainersStub(channel).Events(containers_pb2.EventsRequest())
        successor = await renew(channel)
        await recorded(running, anna)
        await under_way(running, "anna")
        reply = await revoke(running, "admin", "anna", running.admin, reason="laptop stolen")
        serials = {each.id for each in reply.certificates}
        assert serials == {await recorded(running, anna), await recorded(running, successor)}
        code, text = await refusal(events)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "was revoked at" in text
        assert "(laptop stolen); ask an administrator for a new context" in text
        for pair in (anna, successor):
            async with running.channel(pair) as again:
                assert (await refusal(info(again)))[0] is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await renew(again)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        # Another admin's stream goes on.
        await running.join(running.token)
        async with asyncio.timeout(60):
            assert (await others.read()).type == "node"
        others.cancel()
    # A certificate that is issued later under that name counts.
    async with running.channel(another_admin(running, "anna")) as channel:
        await info(channel)


async def test_unused_certificate_is_revoked_with_its_holder(
    running: Running,
) -> None:
    used, unused = another_admin(running, "anna"), another_admin(running, "anna")
    async with running.channel(used) as channel:
        await info(channel)
    await recorded(running, used)
    await revoke(running, "admin", "anna", running.admin)
    async with running.channel(unused) as channel:
        assert (await refusal(info(channel)))[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("by", ["serial", "fingerprint", "colons"])
async def test_certificate_is_revoked_by_its_serial_number(running: Running, by: str) -> None:
    one, other = another_admin(running, "anna"), another_admin(running, "anna")
    for pair in (one, other):
        async with running.channel(pair) as channel:
            await info(channel)
        await recorded(running, pair)
    issued = Issued.of(one.certificate)
    assert issued is not None
    word = {
        "serial": issued.serial,
        "fingerprint": issued.fingerprint[:16],
        "colons": bytes.fromhex(issued.fingerprint).hex(":").upper(),
    }[by]
    await revoke(running, "certificate", word, running.admin)
    async with running.channel(one) as channel:
        assert (await refusal(info(channel)))[0] is grpc.StatusCode.UNAUTHENTICATED
    async with running.channel(other) as channel:
        await info(channel)


async def test_revoking_the_own_or_a_managers_certificate_is_refused(running: Running) -> None:
    async with running.channel(running.admin) as channel:
        await info(channel)
    await recorded(running, running.admin)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await revoke(running, "admin", "admin", running.admin)
    assert "certificate of your own context" in (refused.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await revoke(running, "manager", running.identity.manager_id, running.admin, force=True)
    assert "serves this cluster" in (refused.value.details() or "")
    with suppress(grpc.aio.AioRpcError):  # ended with all other calls
        await revoke(running, "admin", "admin", running.admin, force=True)
    async with running.channel(running.admin) as channel:
        assert (await refusal(info(channel)))[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("admin", "ana", "did you mean 'anna'?"),
        ("node", "nowhere", "no node 'nowhere'"),
        ("certificate", "ffff", "no certificate with the serial number"),
        ("certificate", "f", "no certificate with the serial number"),
        ("user", "anna", "say node, manager, admin, certificate or session"),
        ("admin", "", "specify whose"),
    ],
)
async def test_revoking_an_unknown_holder_is_refused(
    running: Running, kind: str, name: str, words: str
) -> None:
    anna = another_admin(running, "anna")
    async with running.channel(anna) as channel:
        await info(channel)
    await recorded(running, anna)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await revoke(running, kind, name, running.admin)
    assert words in (refused.value.details() or "")


async def test_another_manager_ends_streams_too_and_a_restarted_one_refuses(
    running: Running, tmp_path: Path
) -> None:
    anna = another_admin(running, "anna")
    async with (
        manager_beside(running, tmp_path / "other") as other,
        other.channel(anna) as channel,
    ):
        await info(channel)
        events = containers_pb2_grpc.ContainersStub(channel).Events(containers_pb2.EventsRequest())
        await recorded(running, anna)
        await revoke(running, "admin", "anna", running.admin)
        assert (await refusal(events))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await refusal(info(channel)))[0] is grpc.StatusCode.UNAUTHENTICATED
    async with manager_again(other) as restarted, restarted.channel(anna) as channel:
        assert (await refusal(info(channel)))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_ends_whose_holder_is_revoked_while_it_begins(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = another_admin(running, "anna")
    revoked = Revoked("", "admin", "anna", time.time() + 60, "laptop lost")
    position = ClientCalls._position

    def revoke_then(self: ClientCalls, context: Any) -> Any:
        loop = asyncio.get_running_loop()
        loop.call_soon(running.manager._revocations.replace, [revoked])
        return position(self, context)

    async with running.channel(anna) as channel:
        await info(channel)
        monkeypatch.setattr(ClientCalls, "_position", revoke_then)
        events = containers_pb2_grpc.ContainersStub(channel).Events(containers_pb2.EventsRequest())
        assert (await refusal(events))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_every_certificate_is_listed(running: Running) -> None:
    joined = await running.join(running.token, "host-1")
    async with running.channel(pair_of(joined)) as channel:
        successor = await renew(channel)
    own = TlsFiles.of(running.folder, "manager").pair.read()
    await recorded(running, own)
    rows = await listed(running, running.admin)
    serial = await recorded(running, running.admin)
    found = {
        id: (row.certificate.role, row.certificate.name, row.certificate.hostname, row.current)
        for id, row in rows.items()
    }
    assert found == {
        serial: ("admin", "admin", "", True),
        await recorded(running, own): ("manager", running.identity.manager_id, "", False),
        await recorded(running, pair_of(joined)): ("worker", joined.node_id, "host-1", False),
        await recorded(running, successor): ("worker", joined.node_id, "host-1", False),
    }
    assert {row.certificate.address for row in rows.values()} == {"127.0.0.1"}
    issued = Issued.of(successor.certificate)
    assert issued is not None
    row = rows[issued.serial]
    assert row.certificate.expires_at == issued.ends
    assert row.certificate.expires_at - row.certificate.issued_at == ca.LIFETIME.total_seconds()
    await remove_node(running, joined.node_id)
    rows = await listed(running, running.admin)
    assert {row.certificate.role for row in rows.values() if row.revoked_at} == {"worker"}
    assert {row.reason for row in rows.values() if row.revoked_at} == {
        "the node was removed from the cluster"
    }
    # Its name is still known, for those who missed that it is gone.
    reply = await revoke(running, "node", "host-1", running.admin)
    assert len(reply.certificates) == 2


async def test_records_go_when_their_certificates_have_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates_module, "_SWEEP", 0.01)
    async with manager_in(tmp_path / "manager") as running:
        records = running.manager._records
        joined = await running.join(running.token)
        await remove_node(running, joined.node_id)
        cache = running.manager.cache
        assert cache.view.certificates
        assert cache.view.revocations
        later = max(each.expires_at for each in cache.view.revocations.values()) + 1
        monkeypatch.setattr(records, "_now", lambda: later)
        async with asyncio.timeout(60), cache.subscribe() as feed:
            while cache.view.certificates or cache.view.revocations:
                await feed.next()


async def test_an_admins_certificate_is_renewed_for_a_year(running: Running) -> None:
    now, short = dt.datetime.now(dt.UTC), dt.timedelta(days=10)
    pair = new_admin(
        Authority.local(running.authority), running.identity.cluster_id, now, short, "anna"
    )
    async with running.channel(pair) as channel:
        await info(channel)
    serial = await recorded(running, pair)
    cache = running.manager.cache

    async def begun(serial: str, days: int) -> float:
        """Have the first of its certificates be that old."""
        known = cache.view.certificates[serial]
        older = replace(known, since=known.issued_at - days * 86400)
        await cache.wait_for(await commit(running.kv, [Change(known, older)]))
        return older.since

    since = await begun(serial, 300)
    async with running.channel(pair) as channel:
        last = Issued.of((await renew(channel)).certificate)
    assert last is not None
    assert abs(last.ends - (since + certificates_module.ADMIN_RENEWAL)) < 1
    assert cache.view.certificates[last.serial].since == since
    await begun(serial, 360)
    async with running.channel(pair) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await renew(channel)
        assert refused.value.details() == "an admin's certificate is renewed for a year"
        await info(channel)
    # A node's is renewed for as long as it is one.
    joined = await running.join(running.token)
    await begun(await recorded(running, pair_of(joined)), 3000)
    async with running.channel(pair_of(joined)) as channel:
        await renew(channel)


class Interrupted(MemoryKv):
    """A store in which something happens just before a renewal is written."""

    before_renewal: Any = None

    async def txn(self, guards: Any, ops: Any) -> int:
        renewal = any(op.key == CERTIFICATE_TURN for op in ops) and any(
            "/certificates/" in op.key for op in ops
        )
        if renewal and self.before_renewal is not None:
            happens, self.before_renewal = self.before_renewal, None
            await happens()
        return await super().txn(guards, ops)


async def test_a_renewal_under_way_is_refused_when_its_holder_is_revoked(tmp_path: Path) -> None:
    kv = Interrupted(asyncio.get_running_loop().time)
    async with manager_in(tmp_path / "manager", kv=kv) as running:
        anna = another_admin(running, "anna")
        async with running.channel(anna) as channel:
            await info(channel)
            await recorded(running, anna)

            async def happens() -> None:
                await revoke(running, "admin", "anna", running.admin)

            kv.before_renewal = happens
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await renew(channel)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await recorded(running, anna)
        names = [each.name for each in running.manager.cache.view.certificates.values()]
        assert names.count("anna") == 1


async def orc(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from orchestrator.cli.main import main; main()",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "XDG_CONFIG_HOME": str(folder)},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def _serial(running: Running) -> str:
    issued = Issued.of(TlsFiles.of(running.folder, "manager").pair.read().certificate)
    assert issued is not None
    return issued.serial


async def completed(folder: Path, line: str) -> list[str]:
    """What a shell is offered at the end of a line."""
    environment = {"XDG_CONFIG_HOME": str(folder), "_ORC_COMPLETE": "bash_complete"}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("orc"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment, "ORC_LINE": line},
    )
    out, _ = await process.communicate()
    return [each.split("\t")[1] for each in out.decode().splitlines()]


async def test_the_command_line_lists_and_revokes(running: Running, tmp_path: Path) -> None:
    contexts = tmp_path / "config" / "orc" / "contexts"
    contexts.mkdir(parents=True)
    endpoint = f"127.0.0.1:{running.identity.port}"
    for name, pair in (("root", running.admin), ("anna", another_admin(running, "anna"))):
        context = Context(
            name, (endpoint,), running.authority.certificate, pair.certificate, pair.key
        )
        (contexts / f"{name}.json").write_text(dump_context(context))
    folder = tmp_path / "config"
    status, _, _ = await orc(folder, "--context", "anna", "node", "ls")
    assert status == 0
    assert await completed(folder, "orc -c root cluster revoke admin an") == ["anna"]
    serial = _serial(running)
    line = f"orc -c root cluster revoke certificate {serial[:8]}"
    assert await completed(folder, line) == [serial]
    follower = asyncio.create_task(orc(folder, "--context", "anna", "events"))
    await under_way(running, "anna")
    status, out, err = await orc(folder, "-c", "root", "cluster", "certificates", "--format=json")
    assert (status, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["anna"]["state"] == "valid"
    assert rows["admin"]["current"] is True
    status, out, err = await orc(
        folder, "-c", "root", "cluster", "revoke", "admin", "anna", "--reason", "left"
    )
    assert (status, out.split()) == (0, [rows["anna"]["id"]])
    assert "orc cluster token --rotate worker" in err
    async with asyncio.timeout(60):
        status, _, err = await follower
    assert status == 1
    assert "was revoked at" in err
    assert len(err.splitlines()) == 1
    status, _, err = await orc(folder, "-c", "anna", "node", "ls")
    assert status == 1
    assert err.startswith("orc: this certificate was revoked at ")
    assert "(left)" in err
    status, out, _ = await orc(folder, "-c", "root", "cluster", "certificates")
    [line] = [line for line in out.splitlines() if " anna " in line]
    assert "revoked 2" in line
    assert "(left)" in line


async def under_way(running: Running, name: str) -> None:
    """Wait until a call of this caller's is."""
    async with asyncio.timeout(PATIENCE):
        while not any(  # noqa: ASYNC110 - nobody else asks, so nothing tells
            each.identity.id == name for each in running.manager._revocations._calls
        ):
            await asyncio.sleep(0.01)
