# SPDX-License-Identifier: Apache-2.0
"""A manager that answers what a test tells it to, and certificates for it."""

from __future__ import annotations

import datetime as dt
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator.cli.app.contexts import Context
from orchestrator.pb import control_pb2_grpc


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: str
    key: str


class Authority:
    """A CA for one test run."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._make("test CA", self._key, ca=True)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, name: str, expired: bool = False) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._make(name, key, expired=expired)
        return Pair(
            certificate.public_bytes(serialization.Encoding.PEM).decode(),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode(),
        )

    def _make(
        self, name: str, key: ec.EllipticCurvePrivateKey, ca: bool = False, expired: bool = False
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(now + dt.timedelta(days=-1 if expired else 90))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if not ca:
            names = x509.SubjectAlternativeName([x509.DNSName("manager.orc")])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


class Refusal(Exception):
    """What a scripted method raises to answer with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


@dataclass
class Script:
    """The manager's answers: a message, a Refusal, or a function of the request; for a stream a
    list of messages and refusals, or a generator function."""

    answers: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    """(method, request or list of requests), as received."""

    def request(self, method: str) -> Any:
        """The last request of a method."""
        return [request for name, request in self.requests if name == method][-1]


def servicer(script: Script, base: type = control_pb2_grpc.ControlServicer) -> Any:
    """An implementation of a service that answers by the script."""
    methods: dict[str, Callable[..., Any]] = {}
    streams = {"WatchService", "Logs", "LoadImage", "BuildImage", "Pull", "Push", "Collect"}
    for name, _ in inspect.getmembers(base, inspect.isfunction):
        methods[name] = _stream(script, name) if name in streams else _unary(script, name)
    return type("Scripted", (base,), methods)()


def _unary(script: Script, name: str) -> Callable[..., Any]:
    def method(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        script.requests.append((name, request))
        answer = script.answers[name]
        try:
            if callable(answer):
                answer = answer(request)
            if isinstance(answer, Refusal):
                raise answer
        except Refusal as refusal:
            context.abort(refusal.code, str(refusal))
        return answer

    return method


def _stream(script: Script, name: str) -> Callable[..., Any]:
    def method(self: Any, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        received = list(request) if name in ("LoadImage", "BuildImage") else request
        script.requests.append((name, received))
        answer = script.answers[name]
        for message in answer(received) if callable(answer) else answer:
            if isinstance(message, Refusal):
                context.abort(message.code, str(message))
            yield message

    return method


@dataclass
class Manager:
    """A running scripted manager and the context that reaches it."""

    script: Script
    port: int
    context: Context
    server: Any


class Relay:
    """A way to a port on which connections can be cut, held up, and looked at."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._cut_next = False
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                if self._cut_next:
                    self._cut_next = False
                    self._say_hello_only(near, far)
                    continue
                self._pairs.append((near, far))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._flowing.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _say_hello_only(self, near: socket.socket, far: socket.socket) -> None:
        """TLS 1.3: the client's second flight ends its handshake, and the server's needs it."""
        threading.Thread(target=self._pump, args=(far, near), daemon=True).start()
        with near, far:
            far.sendall(near.recv(1 << 16))
            near.recv(1 << 16)
            near.shutdown(socket.SHUT_RDWR)
            far.shutdown(socket.SHUT_RDWR)

    def cut_next(self) -> None:
        """End the next connection after its handshake, before the manager's first word."""
        self._cut_next = True

    def cut(self) -> None:
        """End every connection."""
        while self._pairs:
            for end in self._pairs.pop():
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def hold(self) -> None:
        """Pass on nothing more, and let nobody know: as a stopped process does."""
        self._flowing.clear()

    def close(self) -> None:
        self._flowing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
