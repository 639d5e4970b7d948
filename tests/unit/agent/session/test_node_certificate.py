# SPDX-License-Identifier: Apache-2.0
"""A node's certificate is renewed over its sessions, which may end at any time: real gRPC."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from agentfakes import until

from orchestrator.agent.session.credentials import NodeCertificate
from orchestrator.identity import ca
from orchestrator.identity.certificates import KeyPair, TlsFiles, issuer_key_id, own_key_id
from orchestrator.pb import certificates_pb2, certificates_pb2_grpc, dispatch_pb2

NOW = dt.datetime.now(dt.UTC)
FORMER, NEW = ca.new_ca("c1", NOW), ca.new_ca("c1", NOW)


class Signer(certificates_pb2_grpc.CertificatesServicer):
    """Signs with the new CA. Requests block until `answers` is set."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def Renew(self, request: Any, context: Any) -> certificates_pb2.RenewReply:
        self.asked.set()
        await self.answers.wait()
        return certificates_pb2.RenewReply(certificate=signed(NEW, request.csr))


def signed(by: KeyPair, request: str) -> str:
    return ca.sign(by, request, common_name="n1", role="worker", cluster_id="c1", now=NOW)


@asynccontextmanager
async def served(signer: Signer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    certificates_pb2_grpc.add_CertificatesServicer_to_server(signer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_renewal_goes_on_after_a_session_that_ended_during_it(tmp_path: Path) -> None:
    key, request = ca.new_request()
    files = TlsFiles.of(tmp_path, "node")
    files.ca.write_text(FORMER.certificate)
    files.pair.replace(KeyPair(signed(FORMER, request), key))
    sessions: list[grpc.aio.Channel] = []
    certificate = NodeCertificate(files, lambda: sessions[-1] if sessions else None)
    signer = Signer()
    async with served(signer) as address:
        renewing = asyncio.create_task(certificate.run(0.5))
        try:
            order = dispatch_pb2.Trust(signer=own_key_id(NEW.certificate))
            async with grpc.aio.insecure_channel(address) as first:
                sessions.append(first)
                certificate.trust(order)
                await signer.asked.wait()
            signer.answers.set()
            async with grpc.aio.insecure_channel(address) as second:
                sessions.append(second)
                certificate.trust(order)
                await until(lambda: issuer_key_id(files.pair.read().certificate) == order.signer)
        finally:
            renewing.cancel()
