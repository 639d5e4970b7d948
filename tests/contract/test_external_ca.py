# SPDX-License-Identifier: Apache-2.0
"""A cluster whose certificates an external CA signs: cfssl itself, and an endpoint that errs."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from managerhost import Running, manager_again, manager_in
from test_ca_rotation import asks, over, renewed, signing, token_of
from test_data_key_rotation import security, until

from orchestrator.cli.main import orc
from orchestrator.identity import ca
from orchestrator.identity.authority import Authority
from orchestrator.identity.certificates import KeyPair, TlsFiles, issuer_key_id, own_key_id
from orchestrator.identity.key_files import KeyFiles
from orchestrator.model.administration.access import ExternalCa
from orchestrator.model.objects import Cluster
from orchestrator.pb import security_pb2, security_pb2_grpc, types_pb2

NOW = dt.datetime.now(dt.UTC)
AUTH_KEY = "0123456789abcdef0123456789abcdef"
USAGES = ["digital signature", "client auth", "server auth"]
CONFIG = {
    "signing": {
        "default": {"expiry": "1h", "usages": ["digital signature"]},
        "profiles": {
            "orc": {"expiry": "720h", "usages": USAGES},
            "authenticated": {"expiry": "720h", "usages": USAGES, "auth_key": "managers"},
        },
    },
    "auth_keys": {"managers": {"type": "standard", "key": AUTH_KEY}},
}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager") as running:
        yield running


@pytest.fixture(scope="module")
def corporate() -> KeyPair:
    return ca.new_ca("corporate", NOW)


def server_pair(corporate: KeyPair) -> KeyPair:
    return ca.issue(
        corporate,
        common_name="signer",
        role="server",
        cluster_id="corporate",
        now=NOW,
        addresses=["127.0.0.1"],
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cfssl(folder: Path, corporate: KeyPair, clients: str = "") -> Iterator[str]:
    """cfssl's signing endpoint; with `clients`, for those with a certificate of these CAs."""
    own = server_pair(corporate)
    folder.mkdir()
    for name, text in (
        ("ca.pem", corporate.certificate),
        ("ca.key", corporate.key),
        ("tls.pem", own.certificate),
        ("tls.key", own.key),
        ("clients.pem", clients),
        ("config.json", json.dumps(CONFIG)),
    ):
        (folder / name).write_text(text)
    port = free_port()
    command = ["setpriv", "--pdeathsig", "KILL", "cfssl", "serve", "-address", "127.0.0.1"]
    command += ["-port", str(port), "-ca", "ca.pem", "-ca-key", "ca.key", "-config", "config.json"]
    command += ["-tls-cert", "tls.pem", "-tls-key", "tls.key"]
    command += ["-mutual-tls-ca", "clients.pem"] if clients else []
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process,
    ):
        try:
            end = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < end, (folder / "log").read_text()
                    time.sleep(0.05)
            yield f"https://127.0.0.1:{port}/api/v1/cfssl/sign"
        finally:
            process.kill()


Sign = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def endpoint(folder: Path, corporate: KeyPair, answer: Sign) -> Iterator[str]:
    """An HTTPS server that answers signing requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answer(asked)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    own = server_pair(corporate)
    (folder / "endpoint.pem").write_text(own.certificate + own.key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "endpoint.pem")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}/sign"
        finally:
            server.shutdown()
            thread.join()


async def use(running: Running, url: str, corporate: KeyPair, **fields: Any) -> Any:
    """`orc cluster ca external`."""
    external = types_pb2.ExternalCa(
        url=url, profile=fields.get("profile", "orc"), root=corporate.certificate
    )
    request = security_pb2.RotateCaRequest(
        external=external,
        ca_certificate=fields.get("certificate", corporate.certificate),
        auth_key=fields.get("auth_key", ""),
    )
    async with running.channel(running.admin) as channel:
        return await security_pb2_grpc.SecurityStub(channel).RotateCa(request)


async def test_cfssl_signs_for_a_cluster(
    running: Running, corporate: KeyPair, tmp_path: Path
) -> None:
    old = running.authority.certificate
    folder, root = running.folder, corporate.certificate
    with cfssl(tmp_path / "cfssl", corporate, old + root) as url:
        await use(running, url, corporate)
        await until(running, signing)
        admin, _ = await renewed(running, running.admin, old)
        assert issuer_key_id(admin.certificate) == own_key_id(root)
        await until(running, over)
        await until(running, lambda _: (folder / "ca.pem").read_text() == root)
        assert not (folder / "ca.key").exists()
        await asks(running, admin, root)
        running.admin, running.authority = admin, KeyPair(root, "")
        joined = await running.join(await token_of(running))
        assert issuer_key_id(joined.certificate) == own_key_id(root)
        assert joined.ca_certificate == root

        # A command on the manager's host.
        made = Authority.of_host(KeyFiles(folder)).issue(
            common_name="anna",
            role="admin",
            cluster_id=running.identity.cluster_id,
            now=dt.datetime.now(dt.UTC),
        )
        await asks(running, made, root)


async def test_requests_are_authenticated_by_a_key(
    running: Running, corporate: KeyPair, tmp_path: Path
) -> None:
    old, root = running.authority.certificate, corporate.certificate
    key = running.folder / "external-ca.key"
    with cfssl(tmp_path / "cfssl", corporate) as url:
        url = url.replace("/sign", "/authsign")
        for wrong in ("", "fedcba9876543210", "no digits"):
            with pytest.raises(grpc.aio.AioRpcError, match="nothing was changed"):
                await use(running, url, corporate, profile="authenticated", auth_key=wrong)
        started = await use(running, url, corporate, profile="authenticated", auth_key=AUTH_KEY)
        assert AUTH_KEY not in str(started)
        await until(running, signing)
        admin, _ = await renewed(running, running.admin, old)
        assert issuer_key_id(admin.certificate) == own_key_id(root)
        await until(running, over)
        await until(running, lambda _: (running.folder / "ca.pem").read_text() == root)
        assert key.read_text() == AUTH_KEY
        assert key.stat().st_mode & 0o777 == 0o600
        assert AUTH_KEY not in str(running.manager.cache.view.cluster)

        # It is sealed anew with another data key, and still opens.
        running.admin, running.authority = admin, KeyPair(root, "")
        before = running.manager.cache.view.cluster
        await security(running, "RotateDataKey")
        assert before is not None
        await until(running, lambda cluster: cluster.secrets_key_id != before.secrets_key_id)
        await until(running, lambda cluster: not cluster.key_rotation.id)
        cluster = running.manager.cache.view.cluster
        assert cluster is not None
        assert cluster.external_ca.auth_key != before.external_ca.auth_key
        await renewed(running, admin, root)


async def test_the_endpoint_of_an_external_ca_is_changed(
    running: Running, corporate: KeyPair, tmp_path: Path
) -> None:
    old, root = running.authority.certificate, corporate.certificate
    with cfssl(tmp_path / "first", corporate) as url:
        await use(running, url, corporate)
        await until(running, signing)
        running.admin, _ = await renewed(running, running.admin, old)
        running.authority = KeyPair(root, "")
        await until(running, over)
    with cfssl(tmp_path / "second", corporate) as url:
        status = await use(running, url, corporate)
        assert (status.phase, status.external.url) == ("idle", url)
        async with asyncio.timeout(20):
            while True:
                if url in (running.folder / "external-ca.json").read_text():
                    break
                await asyncio.sleep(0.05)
        await renewed(running, running.admin, root)


async def test_a_cluster_begins_with_an_external_ca(corporate: KeyPair, tmp_path: Path) -> None:
    root = corporate.certificate
    with cfssl(tmp_path / "cfssl", corporate) as url:
        url = url.replace("/sign", "/authsign")
        external = ExternalCa(url=url, profile="authenticated", root=root)
        authority = Authority(root, external=external, auth_key=AUTH_KEY)
        async with manager_in(tmp_path / "manager", authority=authority) as running:
            assert not (running.folder / "ca.key").exists()
            await asks(running, running.admin, root)
            joined = await running.join(await token_of(running))
            assert issuer_key_id(joined.certificate) == own_key_id(root)
            cluster = running.manager.cache.view.cluster
            assert cluster is not None
            assert cluster.external_ca.url == url
            assert AUTH_KEY not in str(cluster)
        async with manager_again(running) as again:
            await renewed(again, running.admin, root)


def test_init_refuses_a_ca_that_cannot_be_asked(
    corporate: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    certificate = tmp_path / "ca.pem"
    certificate.write_text(corporate.certificate)
    data = tmp_path / "manager"

    def refused(*flags: str) -> str:
        command = ["cluster", "init", "--advertise", "127.0.0.1", "--data-dir", str(data)]
        done = CliRunner().invoke(orc, [*command, *flags])
        assert done.exit_code, done.stdout
        assert not (data / "manager.json").exists()
        return done.output

    url = f"https://127.0.0.1:{free_port()}/api/v1/cfssl/sign"
    assert "--ca-cert FILE" in refused("--external-ca", url)
    assert "need --external-ca" in refused("--ca-cert", str(certificate))
    flags = ("--ca-cert", str(certificate))
    assert "cannot be asked" in refused("--external-ca", url, *flags)
    assert "is not the address of an external CA" in refused("--external-ca", "ca:1", *flags)


async def test_a_manager_starts_with_an_external_ca(tmp_path: Path, corporate: KeyPair) -> None:
    async with manager_in(tmp_path / "manager") as running:
        clients = running.authority.certificate + corporate.certificate
        with cfssl(tmp_path / "cfssl", corporate, clients) as url:
            await use(running, url, corporate)
            await until(running, signing)
            running.admin, _ = await renewed(running, running.admin, running.authority.certificate)
            await until(running, over)
            running.authority = KeyPair(corporate.certificate, "")
    async with manager_again(running) as again:
        pair = TlsFiles.of(again.folder, "manager").pair.read()
        assert issuer_key_id(pair.certificate) == own_key_id(corporate.certificate)
        # The CA is down: nothing but signing needs it.
        await asks(again, running.admin, corporate.certificate)
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be asked") as refused:
            await renewed(again, running.admin, corporate.certificate)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_cluster_returns_from_an_external_ca(
    running: Running, corporate: KeyPair, tmp_path: Path
) -> None:
    old, root = running.authority.certificate, corporate.certificate
    with cfssl(tmp_path / "cfssl", corporate, old + root) as url:
        await use(running, url, corporate)
        await until(running, signing)
        admin, _ = await renewed(running, running.admin, old)
        await until(running, over)
        await until(running, lambda _: (running.folder / "ca.pem").read_text() == root)
        async with running.channel(admin, root=root) as channel:
            stub = security_pb2_grpc.SecurityStub(channel)
            await stub.RotateCa(security_pb2.RotateCaRequest())
            status = await stub.GetCaStatus(security_pb2.GetCaStatusRequest())
        assert status.phase == "trusting"
        # What the admin trusts from now on includes the new CA, which then signs.
        admin, trusted = await renewed(running, admin, root)
        assert len(ca.certificates_in(trusted)) == 2
        await until(running, signing)
        admin, _ = await renewed(running, admin, trusted)
        await until(running, over)
        cluster = running.manager.cache.view.cluster
        assert cluster is not None
        assert not cluster.external_ca.url
        assert issuer_key_id(admin.certificate) == own_key_id(cluster.ca_certificate)
        assert (running.folder / "ca.key").exists()
        assert not (running.folder / "external-ca.json").exists()


async def test_the_way_back_without_a_node_is_forced(
    running: Running, corporate: KeyPair, tmp_path: Path
) -> None:
    old = running.authority.certificate
    with cfssl(tmp_path / "cfssl", corporate) as url:
        await use(running, url, corporate)
        await until(running, signing)
        running.admin, _ = await renewed(running, running.admin, old)
        running.authority = KeyPair(corporate.certificate, "")
        await until(running, over)
        await running.join(await token_of(running), "absent")
        await security(running, "RotateCa")

        def trusted(cluster: Cluster) -> bool:
            new = own_key_id(cluster.ca_rotation.successor)
            managers = running.manager.cache.view.managers.values()
            return all(new in each.trusted_cas for each in managers)

        await until(running, trusted)
        status = await security(running, "GetCaStatus")
        assert status.phase == "trusting"
        waiting = {each.name: each.reason for each in status.members if each.blocking}
        assert waiting["absent"] == "it is not connected"
        assert waiting["admin"] == "it has run no command since the new CA is trusted"
        await security(running, "RotateCa", force=True)
        await until(running, signing)


def signed(corporate: KeyPair, asked: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """What cfssl replies, or something else than it was asked for."""
    subject = asked["subject"]
    fields: dict[str, Any] = {
        "common_name": subject["CN"],
        "role": subject["names"][0]["O"],
        "cluster_id": subject["names"][0]["OU"],
        "addresses": ["127.0.0.1"],
    }
    request = changed.pop("request", asked["certificate_request"])
    certificate = ca.sign(corporate, request, now=NOW, **{**fields, **changed})
    return {"success": True, "result": {"certificate": certificate}, "errors": []}


ERRORS: dict[str, tuple[Callable[[KeyPair, dict[str, Any]], Any], str]] = {
    "role": (lambda key, asked: signed(key, asked, role="admin"), "with the subject"),
    "holder": (lambda key, asked: signed(key, asked, common_name="x"), "with the subject"),
    "names": (
        lambda key, asked: signed(key, asked, addresses=["10.9.9.9"]),
        "with the names 10.9.9.9, manager.orc",
    ),
    "key": (
        lambda key, asked: signed(key, asked, request=ca.new_request()[1]),
        "of another key than the requested one",
    ),
    "ca": (
        lambda key, asked: signed(ca.new_ca("other", NOW), asked),
        "is not a certificate of the cluster's CA",
    ),
    "old": (
        lambda key, asked: signed(key, asked, lifetime=dt.timedelta(minutes=-1)),
        "that is valid from",
    ),
    "refusal": (
        lambda key, asked: {"success": False, "errors": [{"code": 1, "message": "no such thing"}]},
        "refused to sign: no such thing",
    ),
    "nonsense": (lambda key, asked: ["hello"], "which is not an answer of cfssl"),
}


@pytest.mark.parametrize("error", ERRORS)
async def test_nothing_is_changed_for_a_ca_that_errs(
    running: Running, corporate: KeyPair, tmp_path: Path, error: str
) -> None:
    answer, words = ERRORS[error]
    with (
        endpoint(tmp_path, corporate, lambda asked: answer(corporate, asked)) as url,
        pytest.raises(grpc.aio.AioRpcError) as refused,
    ):
        await use(running, url, corporate)
    said = str(refused.value.details())
    assert said.startswith("nothing was changed: ")
    assert words in said
    cluster = running.manager.cache.view.cluster
    assert cluster is not None
    assert over(cluster)


async def test_a_ca_that_cannot_be_asked_is_refused(
    running: Running, corporate: KeyPair, tmp_path: Path
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="cannot be asked"):
        await use(running, f"https://127.0.0.1:{free_port()}/sign", corporate)
    with pytest.raises(grpc.aio.AioRpcError, match="is not the address of an external CA"):
        await use(running, "http://127.0.0.1/sign", corporate)
    leaf = server_pair(corporate).certificate
    with pytest.raises(grpc.aio.AioRpcError, match="must be a root"):
        await use(running, "https://127.0.0.1:1/sign", corporate, certificate=leaf)
