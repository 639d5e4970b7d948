# SPDX-License-Identifier: Apache-2.0
"""Who may read `/metrics`, over real TLS with certificates of two clusters."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.identity import ca
from orchestrator.identity.certificates import NODE_NAME, Issued, KeyPair, TlsFiles
from orchestrator.identity.revocation import Revocations, Revoked
from orchestrator.web.https import CannotListen, listening
from orchestrator.web.scrape import MetricsApp, digest

NOW = dt.datetime.now(dt.UTC)
UNHEARD = 0
"""In place of a status: the server hung up."""


@dataclass
class Server:
    folder: Path
    port: int
    allowed: list[str]
    """Its one element is the digest of the token in force."""
    revocations: Revocations

    async def get(
        self, path: str = "/metrics", *headers: str, cert: str = "", tls: str = "TLSv1_3"
    ) -> tuple[int, str]:
        """Status (or UNHEARD) and body of a request; `cert` names a client certificate."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.maximum_version = ssl.TLSVersion[tls]
        if cert:
            context.load_cert_chain(self.folder / f"{cert}.pem", self.folder / f"{cert}.key")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=NODE_NAME
        )
        lines = [f"GET {path} HTTP/1.1", "Host: node.orc", "Connection: close", *headers, "", ""]
        writer.write("\r\n".join(lines).encode())
        try:
            answer = (await reader.read()).decode()
        except (ssl.SSLError, ConnectionResetError):
            # With TLS 1.3 a client learns after its handshake that it is not wanted.
            answer = ""
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        return int(head.split()[1]) if head else UNHEARD, body


def _write(folder: Path, name: str, pair: KeyPair) -> None:
    (folder / f"{name}.pem").write_text(pair.certificate)
    (folder / f"{name}.key").write_text(pair.key)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    ours, theirs = ca.new_ca("c1", NOW), ca.new_ca("c2", NOW)
    _write(tmp_path, "ca", ours)
    for name, authority, role in (
        ("node", ours, "worker"),
        ("admin", ours, "admin"),
        ("stranger", theirs, "admin"),
    ):
        issued = ca.issue(
            authority, common_name="x1", role=role, cluster_id="c1", now=NOW, addresses=[]
        )
        _write(tmp_path, name, issued)
    registry = CollectorRegistry()
    Gauge("orc_fun", "How much of it", registry=registry).set(7)
    allowed = [digest("sesame")]
    revocations = Revocations()
    app = MetricsApp(registry, "c1", lambda: allowed[0], revocations=revocations)
    files = TlsFiles.of(tmp_path, "node")
    async with listening(app, "127.0.0.1", 0, files) as port:
        yield Server(tmp_path, port, allowed, revocations)


async def test_token_authorizes_a_scrape_that_prometheus_parses(server: Server) -> None:
    status, body = await server.get("/metrics", "Authorization: Bearer sesame")
    assert status == 200
    (family,) = text_string_to_metric_families(body)
    assert [(s.name, s.value) for s in family.samples] == [("orc_fun", 7.0)]


@pytest.mark.parametrize(
    "header", ["", "Authorization: Bearer open", "Authorization: Basic sesame", "Authorization: "]
)
async def test_metrics_require_a_token(server: Server, header: str) -> None:
    status, body = await server.get("/metrics", *filter(None, [header]))
    assert status == 401
    assert "orc cluster token scrape" in body
    assert "orc_fun" not in body


async def test_a_token_that_was_replaced_opens_no_more(server: Server) -> None:
    server.allowed[0] = digest("abracadabra")
    assert (await server.get("/metrics", "Authorization: Bearer sesame"))[0] == 401
    assert (await server.get("/metrics", "Authorization: Bearer abracadabra"))[0] == 200


async def test_empty_token_is_refused_while_no_token_is_set(server: Server) -> None:
    server.allowed[0] = ""
    assert (await server.get("/metrics", "Authorization: Bearer "))[0] == 401


async def test_a_certificate_of_the_cluster_opens_too(server: Server) -> None:
    assert (await server.get(cert="admin"))[0] == 200


@pytest.mark.parametrize("serial", [True, False])
async def test_a_certificate_that_was_revoked_opens_no_more(server: Server, serial: bool) -> None:
    issued = Issued.of((server.folder / "admin.pem").read_text())
    assert issued is not None
    revoked = Revoked(issued.serial if serial else "", "admin", "x1", NOW.timestamp())
    server.revocations.replace([revoked])
    assert (await server.get(cert="admin"))[0] == 401
    assert (await server.get("/metrics", "Authorization: Bearer sesame"))[0] == 200


async def test_client_of_another_cluster_is_refused(server: Server) -> None:
    assert (await server.get(cert="stranger"))[0] == UNHEARD


async def _eventually(server: Server, cert: str, status: int) -> None:
    async with asyncio.timeout(20):
        while True:
            if (await server.get(cert=cert))[0] == status:
                return
            await asyncio.sleep(0.1)


async def test_the_listener_follows_a_rotation_of_the_ca(server: Server) -> None:
    former, new = (server.folder / "ca.pem").read_text(), ca.new_ca("c1", NOW)
    for name, role in (("node", "worker"), ("renewed", "admin")):
        issued = ca.issue(new, common_name="x1", role=role, cluster_id="c1", now=NOW)
        if name == "node":
            TlsFiles.of(server.folder, name).pair.replace(issued)
        else:
            _write(server.folder, name, issued)
    # While both are trusted, a client has both.
    (server.folder / "ca.pem").write_text(new.certificate + former)
    await _eventually(server, "renewed", 200)
    assert (await server.get(cert="admin"))[0] == 200
    (server.folder / "ca.pem").write_text(new.certificate)
    await _eventually(server, "admin", UNHEARD)
    assert (await server.get(cert="renewed"))[0] == 200


async def test_old_tls_is_refused(server: Server) -> None:
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await server.get("/metrics", "Authorization: Bearer sesame", tls="TLSv1_2")


async def test_other_paths_are_not_found(server: Server) -> None:
    assert (await server.get("/secrets", "Authorization: Bearer sesame"))[0] == 404


async def test_port_in_use_is_one_line(server: Server) -> None:
    app = MetricsApp(CollectorRegistry(), "c1", str)
    files = TlsFiles.of(server.folder, "node")
    with pytest.raises(CannotListen, match=f"cannot listen on 127.0.0.1:{server.port}"):
        async with listening(app, "127.0.0.1", server.port, files):
            pass
