# SPDX-License-Identifier: Apache-2.0
"""Who may do what: a real manager's ports, real TLS, and certificates of every wrong kind."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.identity import ca, join_tokens
from orchestrator.identity.bootstrap import AlreadyThere, init_cluster, store_node
from orchestrator.identity.certificates import KeyPair
from orchestrator.identity.join import JoinRefused, join
from orchestrator.pb import control_pb2, control_pb2_grpc, dispatch_pb2, dispatch_pb2_grpc


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager") as running:
        yield running


async def info(channel: grpc.aio.Channel) -> Any:
    stub = control_pb2_grpc.ControlStub(channel)
    return await stub.GetCluster(control_pb2.GetClusterRequest(), timeout=60)


async def hello(channel: grpc.aio.Channel) -> list[str]:
    """Begin a session; the kinds of the first two messages that come back."""
    call = dispatch_pb2_grpc.DispatchStub(channel).Session(timeout=60)
    await call.write(dispatch_pb2.AgentMessage(hello=dispatch_pb2.Hello()))
    kinds = []
    while len(kinds) < 2:
        message = await call.read()
        if message is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(
                await call.code(),
                await call.initial_metadata(),
                await call.trailing_metadata(),
                await call.details(),
            )
        kinds.append(message.WhichOneof("kind"))
    call.cancel()
    return kinds


async def test_an_administrator_may_use_the_control_api(running: Running) -> None:
    async with running.channel(running.admin) as channel:
        reply = await info(channel)
    assert reply.id == running.identity.cluster_id
    assert reply.worker_token == running.token


async def test_keys_are_for_their_owner_only(running: Running, tmp_path: Path) -> None:
    joined = await running.join(running.token)
    store_node(tmp_path / "node", joined, "")
    for key in (
        running.folder / "ca.key",
        running.folder / "manager.key",
        running.folder / "manager.json",
        tmp_path / "node" / "node.key",
    ):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key


async def test_a_host_joins_and_may_hold_a_session(running: Running) -> None:
    joined = await running.join(running.token)
    assert (joined.role, joined.cluster_id) == ("worker", running.identity.cluster_id)
    assert joined.managers == (f"127.0.0.1:{running.identity.port}",)
    async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
        assert await hello(channel) == ["welcome", "endpoints"]


@pytest.mark.parametrize("role", ["worker", "manager", "stranger"])
async def test_only_administrators_may_use_the_control_api(
    running: Running, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running.channel(running.issue(role)) as channel:
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(grpc.aio.AioRpcError) as refused,
        ):
            await info(channel)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert f"the role '{role}' may not call" in (refused.value.details() or "")
    assert "call refused" in caplog.text


async def test_an_administrator_cannot_pose_as_a_node(running: Running) -> None:
    async with running.channel(running.admin) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await hello(channel)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_node_that_the_cluster_does_not_know_is_refused(running: Running) -> None:
    # Its certificate is in order, and was not revoked.
    async with running.channel(running.issue("worker", name="gone")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await hello(channel)
    assert "the cluster has no node gone" in (refused.value.details() or "")


async def test_a_certificate_of_another_cluster_is_refused(running: Running) -> None:
    # Signed by the right CA, so that the handshake passes: the subject decides.
    async with running.channel(running.issue("admin", cluster="other")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await info(channel)
    assert "another cluster" in (refused.value.details() or "")


async def test_foreign_expired_and_missing_certificates_fail_the_handshake(
    running: Running,
) -> None:
    now = dt.datetime.now(dt.UTC)
    foreign = ca.issue(
        ca.new_ca(running.identity.cluster_id, now),
        common_name="admin",
        role="admin",
        cluster_id=running.identity.cluster_id,
        now=now,
    )
    expired = running.issue("admin", days=-ca.LIFETIME.days - 1)
    for pair in (foreign, expired, None):
        async with running.channel(pair) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await info(channel)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_false_manager_is_refused_by_clients(running: Running) -> None:
    other = ca.new_ca("other", dt.datetime.now(dt.UTC))
    async with running.channel(running.admin, root=other.certificate) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await info(channel)
    assert "CERTIFICATE_VERIFY_FAILED" in (refused.value.details() or "")


async def test_a_node_cannot_pose_as_a_manager(running: Running) -> None:
    # A node's certificate lacks the managers' DNS name that every client insists on.
    from cryptography import x509

    joined = await running.join(running.token)
    certificate = x509.load_pem_x509_certificate(joined.certificate.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [ca.NODE_NAME]


async def test_a_wrong_secret_is_refused_and_logged(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = str(
        join_tokens.JoinToken(ca.digest(running.authority.certificate), join_tokens.new_secret())
    )
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(JoinRefused, match="not valid"),
    ):
        await running.join(wrong)
    assert "join refused" in caplog.text


async def test_token_of_another_cluster_does_not_reveal_its_secret(running: Running) -> None:
    with pytest.raises(JoinRefused, match="its CA differs"):
        await running.join(str(join_tokens.JoinToken("0" * 64, running.identity.worker_token)))


async def test_a_rotated_token_is_worth_nothing(running: Running) -> None:
    async with running.channel(running.admin) as channel:
        reply = await control_pb2_grpc.ControlStub(channel).RotateToken(
            control_pb2.RotateTokenRequest(role="worker")
        )
    with pytest.raises(JoinRefused, match="any more"):
        await running.join(running.token)
    assert (await running.join(reply.token)).role == "worker"


def test_malformed_token_is_refused() -> None:
    with pytest.raises(join_tokens.BadToken, match="ORC-1-"):
        join("127.0.0.1:1", "SWMTKN-1-abc", "host")


def test_joining_an_address_without_a_manager_is_refused() -> None:
    text = str(join_tokens.JoinToken("0" * 64, join_tokens.new_secret()))
    with pytest.raises(JoinRefused, match="is 'orc manager' running there"):
        join("127.0.0.1:1", text, "host")


async def test_a_second_cluster_in_one_folder_is_refused(running: Running) -> None:
    with pytest.raises(AlreadyThere, match="already"):
        init_cluster(running.folder, "127.0.0.1", 7420, "10.128.0.0/14")


async def test_tls_below_1_3_is_refused(running: Running) -> None:
    def handshake(version: ssl.TLSVersion, port: int) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = version
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as raw,
            context.wrap_socket(raw) as tls,
        ):
            return tls.version()

    join_port = running.identity.port + 1
    assert await asyncio.to_thread(handshake, ssl.TLSVersion.TLSv1_3, join_port) == "TLSv1.3"
    for port in (join_port, running.identity.port):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(handshake, ssl.TLSVersion.TLSv1_2, port)
