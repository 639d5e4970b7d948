# SPDX-License-Identifier: Apache-2.0
"""The gateway's HTTP server, by raw sockets."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.exchange import Duplex, Hijack, Reply, Request, Stream
from orchestrator.dockerapi.http.routing import Router, Routes
from orchestrator.dockerapi.http.server import Listener, unix_socket

ROUTES = Routes()
GONE = threading.Event()
FOREVER = threading.Event()


class _Gateway:
    engine_version = "1.2.3"


@ROUTES.route("POST", "/echo")
def echo(gateway: Gateway, request: Request) -> Reply:
    return Reply(request.json())


@ROUTES.route("GET", "/query")
def query(gateway: Gateway, request: Request) -> Reply:
    return Reply({"flag": request.flag("flag"), "number": request.number("number")})


@ROUTES.route("GET", "/things/{id}/json")
def thing(gateway: Gateway, request: Request) -> Reply:
    return Reply({"id": request["id"], "version": request.version})


@ROUTES.route("GET", "/stream")
def stream(gateway: Gateway, request: Request) -> Stream:
    return Stream(iter([b"one", b"", b"two"]))


@ROUTES.route("GET", "/silent")
def silent(gateway: Gateway, request: Request) -> Stream:
    def chunks() -> Iterator[bytes]:
        yield b"begun"
        FOREVER.wait(30)

    def gone() -> None:
        GONE.set()
        FOREVER.set()

    return Stream(chunks(), cancel=gone)


@ROUTES.route("POST", "/upper")
def upper(gateway: Gateway, request: Request) -> Hijack:
    def serve(connection: Duplex) -> None:
        while data := connection.read():
            connection.write(data.upper())
        connection.write(b"end")

    return Hijack(serve)


@ROUTES.route("POST", "/short")
def short(gateway: Gateway, request: Request) -> Hijack:
    """Ends while a thread still reads the client's input."""

    def serve(connection: Duplex) -> None:
        threading.Thread(target=connection.read, daemon=True).start()
        connection.write(b"bye")

    return Hijack(serve)


@ROUTES.route("GET", "/broken")
def broken(gateway: Gateway, request: Request) -> Reply:
    raise KeyError("x")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("s") / "s")
    listener = Listener(
        unix_socket(path, 0o600, -1), cast(Gateway, _Gateway()), Router(ROUTES), None
    )
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield path
    listener.shutdown()
    listener.server_close()


class Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self._path)


def raw(path: str, text: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(path)
    connection.sendall(text)
    return connection


def everything(connection: socket.socket) -> bytes:
    found = b""
    while data := connection.recv(4096):
        found += data
    return found


def ask(connection: Connection, method: str, url: str, **given: Any) -> tuple[int, Any]:
    connection.request(method, url, **given)
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if text else None


def test_requests_of_one_connection(path: str) -> None:
    connection = Connection(path)
    assert ask(connection, "POST", "/echo", body=b'{"a":1}') == (200, {"a": 1})
    assert ask(connection, "GET", "/query?flag=1&number=7") == (200, {"flag": True, "number": 7})
    status, found = ask(connection, "GET", "/v1.41/things/x/json")
    assert (status, found) == (200, {"id": "x", "version": [1, 41]})


def test_a_body_in_chunks(path: str) -> None:
    connection = Connection(path)
    body = iter([b'{"a":', b"1}"])
    assert ask(
        connection,
        "POST",
        "/echo",
        body=body,
        encode_chunked=True,
        headers={"Transfer-Encoding": "chunked"},
    ) == (200, {"a": 1})
    assert ask(connection, "GET", "/query?number=1")[0] == 200


@pytest.mark.parametrize(
    ("method", "url", "body", "status", "words"),
    [
        ("GET", "/nothing", None, 404, "page not found"),
        ("POST", "/query", None, 405, "method not allowed"),
        ("GET", "/v9.99/query", None, 400, "too new"),
        ("GET", "/v1.1/query", None, 400, "too old"),
        ("GET", "/query?number=x", None, 400, "number"),
        ("POST", "/echo", b"{", 400, "invalid JSON"),
        ("POST", "/echo", b"[1]", 400, "must be an object"),
        ("GET", "/broken", None, 500, "x"),
    ],
)
def test_refusals_are_documents(
    path: str, method: str, url: str, body: bytes | None, status: int, words: str
) -> None:
    connection = Connection(path)
    code, document = ask(connection, method, url, body=body)
    assert code == status
    assert words in document["message"]
    # The connection can be used again.
    assert ask(connection, "GET", "/query")[0] == 200


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\r\n\r\n",
        b"GET /query HTTP/9.9\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /query?" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["line", "version", "length", "chunk", "long"],
)
def test_malformed_requests_are_refused(path: str, text: bytes) -> None:
    connection = raw(path, text)
    answer = everything(connection)
    assert answer.split(b" ")[1] in (b"400", b"414", b"505"), answer[:200]
    assert b'{"message":' in answer


def test_a_stream_is_sent_in_chunks(path: str) -> None:
    connection = Connection(path)
    connection.request("GET", "/stream")
    answer = connection.getresponse()
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.headers["Server"] == "Docker/1.2.3 (linux)"
    assert answer.read() == b"onetwo"


def test_a_silent_stream_ends_with_its_client(path: str) -> None:
    GONE.clear()
    FOREVER.clear()
    connection = raw(path, b"GET /silent HTTP/1.1\r\nHost: docker\r\n\r\n")
    while b"begun" not in connection.recv(4096):
        pass
    connection.close()
    assert GONE.wait(10)


@pytest.mark.parametrize("upgrade", [True, False])
def test_a_hijacked_connection_with_a_half_close(path: str, upgrade: bool) -> None:
    headers = b"Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else b""
    connection = raw(path, b"POST /upper HTTP/1.1\r\nHost: docker\r\n" + headers + b"\r\n")
    connection.sendall(b"hello")
    connection.shutdown(socket.SHUT_WR)
    head, _, output = everything(connection).partition(b"\r\n\r\n")
    assert (b"101 UPGRADED" in head) is upgrade
    assert output == b"HELLOend"


def test_a_hijacked_connection_ends_although_its_input_is_open(path: str) -> None:
    connection = raw(path, b"POST /short HTTP/1.1\r\nHost: docker\r\nUpgrade: tcp\r\n\r\nunread")
    assert everything(connection).endswith(b"bye")


def test_a_socket_takes_the_place_of_a_former_one(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = unix_socket(path, 0o600, -1)
    second = unix_socket(path, 0o640, -1)
    second.listen()
    assert Path(path).stat().st_mode & 0o777 == 0o640
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    first.close()
    second.close()
