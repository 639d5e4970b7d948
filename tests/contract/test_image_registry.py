# SPDX-License-Identifier: Apache-2.0
"""Pulling from a real registry on loopback: complete, interrupted and denied transfers."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from imageregistry import layout_of, registry_in, take_insecure

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_spec import Platform
from orchestrator.agent.images.singleflight import SingleFlight
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer.registry import Registry
from orchestrator.model.names import parse_image
from orchestrator.registries.registry_errors import (
    AccessDenied,
    BlockedByHost,
    CorruptContent,
    ImageNotFound,
    RateLimited,
    RegistryError,
    TlsError,
    Unreachable,
    explain,
)
from orchestrator.registries.skopeo import remote

pytestmark = pytest.mark.root


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a registry that is there for one test; and skopeo takes it as it is."""
    with registry_in(tmp_path) as (name, _):
        yield int(name.partition("/")[0].rpartition(":")[2])


def _insecure(tmp_path: Path, *registries: str) -> None:
    take_insecure(tmp_path / "home", *registries)


@asynccontextmanager
async def _cutting(
    target: int, after: int, times: int, silently: bool = False
) -> AsyncIterator[int]:
    """A way to the registry that breaks off the first `times` answers longer than `after` bytes;
    `silently`: without closing the connection."""
    left = times

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)

        async def upward() -> None:
            while data := await reader.read(1 << 16):
                far_writer.write(data)
                await far_writer.drain()

        up = asyncio.ensure_future(upward())
        count = 0
        try:
            while data := await far_reader.read(1 << 16):
                count += len(data)
                if left and count > after:
                    left -= 1
                    if silently:
                        await up  # until the other side has had enough
                    break
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            up.cancel()
            far_writer.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        # Not waited for: since Python 3.12 that is for connections too, which skopeo may keep.
        server.close()


@pytest.mark.parametrize("docker", [False, True])
async def test_push_and_pull(tmp_path: Path, port: int, docker: bool) -> None:
    _insecure(tmp_path, f"127.0.0.1:{port}")
    registry, name = Registry(tmp_path), f"127.0.0.1:{port}/some/web:1"
    pushed = await registry.push(
        layout_of(tmp_path, 100_000, docker), name, b"", lambda *news: None
    )
    digest = await registry.resolve(name)
    assert digest == pushed
    told: list[tuple[str, int, int]] = []
    async with ImageStore(tmp_path / "store") as store:
        source = registry.source(name, digest, progress=lambda *news: told.append(news))
        async with source as fetch:
            local = await store.ensure(digest, fetch, name)
        assert (local.layers[0] / "data").read_bytes() == (tmp_path / "files/data").read_bytes()
        (image,) = store.inventory()
        assert image.names == (name,)
    assert {done for _, done, total in told if done == total} == {t for _, _, t in told}
    with pytest.raises(ImageNotFound, match="has no image"):
        await registry.resolve(f"127.0.0.1:{port}/some/web:2")


async def test_an_interrupted_blob_is_resumed_or_leaves_nothing(tmp_path: Path, port: int) -> None:
    layout = layout_of(tmp_path, 3_000_000)
    _insecure(tmp_path, f"127.0.0.1:{port}")
    registry = Registry(tmp_path)
    digest = await registry.push(layout, f"127.0.0.1:{port}/web:1", b"", lambda *news: None)
    async with _cutting(port, 1_000_000, times=1) as way, ImageStore(tmp_path / "a") as store:
        _insecure(tmp_path, f"127.0.0.1:{way}")
        async with registry.source(f"127.0.0.1:{way}/web:1", digest) as fetch:
            local = await store.ensure(digest, fetch)
        assert (local.layers[0] / "data").stat().st_size == 3_000_000
    async with _cutting(port, 1_000_000, times=1000) as way, ImageStore(tmp_path / "b") as store:
        _insecure(tmp_path, f"127.0.0.1:{way}")
        with pytest.raises(RegistryError, match=f"127.0.0.1:{way} "):
            async with registry.source(f"127.0.0.1:{way}/web:1", digest) as fetch:
                await store.ensure(digest, fetch)
        assert store.inventory() == ()
        assert list((tmp_path / "b" / "tmp").iterdir()) == []
        assert list((tmp_path / "b" / "layers").iterdir()) == []
    shutil.rmtree(tmp_path / "b")


async def test_a_registry_that_sends_damaged_content_is_named(tmp_path: Path, port: int) -> None:
    _insecure(tmp_path, f"127.0.0.1:{port}")
    registry, name = Registry(tmp_path), f"127.0.0.1:{port}/web:1"
    digest = await registry.push(layout_of(tmp_path, 2_000_000), name, b"", lambda *news: None)
    stored = max((tmp_path / "registry").rglob("data"), key=lambda path: path.stat().st_size)
    data = bytearray(stored.read_bytes())
    data[1_000_000] ^= 0xFF
    stored.write_bytes(data)
    async with ImageStore(tmp_path / "store") as store:
        with pytest.raises(
            CorruptContent, match=f"127.0.0.1:{port} sends damaged content for the image"
        ):
            async with registry.source(name, digest) as fetch:
                await store.ensure(digest, fetch)
        assert store.inventory() == ()
        assert list((tmp_path / "store" / "tmp").iterdir()) == []
        assert list((tmp_path / "store" / "layers").iterdir()) == []


async def test_a_pull_continues_when_the_one_it_joined_is_cancelled(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _insecure(tmp_path, f"127.0.0.1:{port}")
    registry = Registry(tmp_path)
    name = f"127.0.0.1:{port}/web:1"
    digest = await registry.push(layout_of(tmp_path, 3_000_000), name, b"", lambda *news: None)
    asked: list[str] = []
    joined = asyncio.Event()
    run = SingleFlight.run

    async def counted(flights: Any, key: str, work: Any) -> Any:
        asked.append(key)
        if len(asked) > len(set(asked)):
            joined.set()
        return await run(flights, key, work)

    begun = asyncio.Event()

    async def pull(store: ImageStore, way: int) -> str:
        source = registry.source(
            f"127.0.0.1:{way}/web:1",
            digest,
            progress=lambda blob, done, total: begun.set() if 0 < done < total else None,
            there=store.blob_path,
        )
        async with source as fetch:
            return (await store.ensure(digest, fetch)).digest

    monkeypatch.setattr(SingleFlight, "run", counted)
    async with (
        _cutting(port, 1_000_000, times=1000, silently=True) as way,
        ImageStore(tmp_path / "store") as store,
    ):
        _insecure(tmp_path, f"127.0.0.1:{port}", f"127.0.0.1:{way}")
        first = asyncio.create_task(pull(store, way))
        await begun.wait()
        second = asyncio.create_task(pull(store, port))
        await joined.wait()
        first.cancel()
        assert await second == digest
        await asyncio.wait([first])
        assert list((tmp_path / "store" / "tmp").iterdir()) == []


def _note(told: list[tuple[str, int, int]], *news: Any) -> None:
    told.append(news)


async def test_a_push_reports_each_layer_once_pushed(tmp_path: Path, port: int) -> None:
    _insecure(tmp_path, f"127.0.0.1:{port}")
    registry, folder = Registry(tmp_path), layout_of(tmp_path, 3_000_000)
    sizes = {f"sha256:{p.name}": p.stat().st_size for p in folder.iterdir() if len(p.name) == 64}
    for again in (False, True):
        told: list[tuple[str, int, int]] = []
        there: list[str] = []
        heard = partial(_note, told)
        await registry.push(folder, f"127.0.0.1:{port}/one:1", b"", heard, there.append)
        assert all(done <= total == sizes[digest] for digest, done, total in told)
        # The config is so small that it is always sent.
        assert len(there) == (1 if again else 0)
        assert {digest for digest, done, total in told if done == total} == {*sizes} - {*there}


@asynccontextmanager
async def _limiting() -> AsyncIterator[int]:
    """A way to a registry that answers no question about an image, as there were too many."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # It does not speak TLS.
        while (first := await reader.read(1)) and first != b"\x16":
            head = first + await reader.readuntil(b"\r\n\r\n")
            limited = b"/manifests/" in head.splitlines()[0]
            body = b'{"errors": [{"code": "TOOMANYREQUESTS"}]}' if limited else b"{}"
            status = b"429 Too Many Requests" if limited else b"200 OK"
            length = str(len(body)).encode()
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: %b\r\n\r\n%b" % (status, length, body))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_rate_limited_pull_fails_with_the_reason(tmp_path: Path, port: int) -> None:
    async with _limiting() as way:
        _insecure(tmp_path, f"127.0.0.1:{way}")
        with pytest.raises(RateLimited, match=f"127.0.0.1:{way} limits how often"):
            await Registry(tmp_path).resolve(f"127.0.0.1:{way}/web:1", within=2.0)


async def test_a_mirror_replaces_the_registry(tmp_path: Path, port: int) -> None:
    registry = Registry(tmp_path)
    _insecure(tmp_path, f"127.0.0.1:{port}")
    folder = layout_of(tmp_path, 1000)
    pushed = await registry.push(
        folder, f"127.0.0.1:{port}/mirror/library/web:1", b"", lambda *news: None
    )
    (tmp_path / "home/.config/containers/registries.conf").write_text(
        '[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\n'
        f'location = "127.0.0.1:{port}/mirror"\ninsecure = true\n'
    )
    digest = await registry.resolve("web:1")
    assert digest == pushed
    async with ImageStore(tmp_path / "store") as store, registry.source("web:1", digest) as fetch:
        await store.ensure(digest, fetch, "web:1")
        assert store.resolve("docker.io/library/web:1") == pushed


async def test_a_signature_policy_is_enforced(tmp_path: Path, port: int) -> None:
    registry, name = Registry(tmp_path), f"127.0.0.1:{port}/web:1"
    _insecure(tmp_path, f"127.0.0.1:{port}")
    policy = tmp_path / "home/.config/containers/policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    # What is this node's own may be given away all the same.
    digest = await registry.push(layout_of(tmp_path, 1000), name, b"", lambda *news: None)
    async with ImageStore(tmp_path / "store") as store:
        with pytest.raises(
            BlockedByHost, match=r"this node's signature policy \(policy.json\) rejects"
        ):
            async with registry.source(name, digest) as fetch:
                await store.ensure(digest, fetch, name)
        assert store.inventory() == ()


async def test_the_nodes_platform_is_pulled_from_an_index(tmp_path: Path, port: int) -> None:
    registry = Registry(tmp_path)
    _insecure(tmp_path, f"127.0.0.1:{port}")
    folder = layout_of(tmp_path, 1000)
    ours = f"127.0.0.1:{port}/many"
    pushed = await registry.push(folder, f"{ours}:amd64", b"", lambda *news: None)
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "size": (folder / "manifest.json").stat().st_size,
        "digest": pushed,
    }
    kind = "application/vnd.oci.image.index.v1+json"
    for tag, architectures in (("all", ("s390x", "amd64", "arm64")), ("few", ("s390x", "arm64"))):
        manifests = [
            {**entry, "platform": {"os": "linux", "architecture": each}} for each in architectures
        ]
        data = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v2/many/manifests/{tag}",
            data, {"Content-Type": kind}, method="PUT",
        )  # fmt: skip
        await asyncio.to_thread(urllib.request.urlopen, request)
    amd64 = Platform("linux", "amd64")
    async with ImageStore(tmp_path / "store", amd64) as store:
        digest = await registry.resolve(f"{ours}:all")
        async with registry.source(f"{ours}:all", digest) as fetch:
            local = await store.ensure(digest, fetch, f"{ours}:all")
        assert local.digest == pushed
        assert store.resolve(f"{ours}@{digest}") == pushed
        digest = await registry.resolve(f"{ours}:few")
        with pytest.raises(ImageError, match="linux/amd64: it has linux/arm64, linux/s390x"):
            async with registry.source(f"{ours}:few", digest) as fetch:
                await store.ensure(digest, fetch, f"{ours}:few")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("x509: certificate signed by unknown authority", "put its CA into"),
        ("x509: certificate has expired or is not yet valid: current time", "renew it there"),
        ("x509: certificate is valid for a.example, not b.example", "is for other names"),
        ("remote error: tls: certificate required", "put client.cert and client.key"),
    ],
)
def test_certificate_errors(said: str, words: str) -> None:
    error = explain("r", "r/x:1", f'time="…" level=fatal msg="{said}"')
    assert type(error) is TlsError
    assert words in str(error)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "reading manifest 1 in r/x: toomanyrequests: You have reached your pull rate",
            RateLimited,
        ),
        ("pinging r: Get https://r/v2/: x509: certificate signed by unknown", TlsError),
        ("pinging r: http: server gave HTTP response to HTTPS client", TlsError),
        ("reading manifest 1 in r/x: unauthorized: authentication required", AccessDenied),
        ("requested access to the resource is denied", AccessDenied),
        ("reading manifest 1 in r/x: manifest unknown", ImageNotFound),
        ("reading manifest 1 in r/x: StatusCode: 404, not here", ImageNotFound),
        ("corrupted blob, expecting sha256:1a404b, got sha256:404404", CorruptContent),
        ("dial tcp: lookup r: no such host", Unreachable),
        ("proxyconnect tcp: dial tcp 10.0.0.1:3128: connect: connection refused", Unreachable),
        ("pinging r: Get https://r/v2/: Proxy Authentication Required", Unreachable),
    ],
)
def test_errors_of_registries_are_distinguished(said: str, kind: type[RegistryError]) -> None:
    error = explain("r", "r/x:1", f'time="…" level=fatal msg="{said}"')
    assert type(error) is kind
    assert "\n" not in str(error)


def test_references_for_skopeo() -> None:
    assert remote(parse_image("alpine")) == "docker://docker.io/library/alpine:latest"
    assert remote(parse_image("me/x:2")) == "docker://docker.io/me/x:2"
    assert remote(parse_image("r:5/x:2"), "sha256:" + "0" * 64).endswith("r:5/x@sha256:" + "0" * 64)
