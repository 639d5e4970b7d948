# SPDX-License-Identifier: Apache-2.0
"""gRPC calls over one HTTP/2 connection: messages in, messages out, a status at the end.

Format: grpc/doc/PROTOCOL-HTTP2.md. A method is found in the generated messages' own description of
its service, so that no module of gRPC's is imported.
"""

from __future__ import annotations

import enum
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from orchestrator.cli.app.interrupts import deferred
from orchestrator.cli.rpc.http2_connection import Connection, ConnectionBroken, Stream, StreamReset

_PACKAGE = "orchestrator.v1"
_PREFIX = struct.Struct("!BL")
"""Before a message: whether it is compressed, and its length."""
_MAX_MESSAGE = 64 << 20
"""Bytes of a message that are accepted."""
_REFUSED_STREAM, _CANCELLED = 7, 8
"""Reasons of a stream's reset (RFC 9113, section 7)."""


class Code(enum.IntEnum):
    """How a call ended."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that ended with a status other than OK, and the manager's message."""

    def __init__(self, code: Code, details: str = "") -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class NotTls(Exception):
    """The peer does not speak TLS 1.3 as a manager does."""


class WrongCertificate(Exception):
    """The peer's certificate was not signed by the CA; the text says why."""


class BadContext(Exception):
    """Our own certificates or key cannot be read."""


def connect(
    address: tuple[str, int],
    *,
    name: str,
    ca: str,
    certificate: str,
    key: str,
    within: float,
    ping_after: float | None = None,
) -> Connection:
    """A connection by mutual TLS; certificates and key are PEM, `name` is the one that the
    peer's certificate must carry, `ping_after` as for `Connection`. Raises OSError (TimeoutError
    after `within` seconds), NotTls, WrongCertificate, BadContext."""
    deadline = time.monotonic() + within
    plain = _dial(address, within)
    try:
        tls = _tls(ca, certificate, key)
        plain.settimeout(max(0.001, deadline - time.monotonic()))
        return Connection(tls.wrap_socket(plain, server_hostname=name.encode()), ping_after)
    except ssl.SSLCertVerificationError as error:
        raise WrongCertificate(error.verify_message) from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        # A manager that dies during the handshake looks the same.
        raise ConnectionResetError("the connection was closed") from None
    except ssl.SSLError as error:
        raise NotTls(str(error)) from None
    finally:
        # No-op after wrap_socket, which has detached it.
        plain.close()


def check_reachable(address: tuple[str, int], *, within: float) -> None:
    """Check that the address accepts connections. Raises OSError (TimeoutError after `within`
    seconds) otherwise."""
    _dial(address, within).close()


def _dial(address: tuple[str, int], within: float) -> socket.socket:
    host, port = address
    # Bytes avoid the import of the IDNA codec.
    return socket.create_connection((host.encode(), port), within)  # type: ignore[arg-type]


def _tls(ca: str, certificate: str, key: str) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.set_alpn_protocols(["h2"])
    try:
        tls.load_verify_locations(cadata=ca)
        # OpenSSL loads keys from files only.
        with _file_of(f"{certificate}\n{key}".encode()) as path:
            tls.load_cert_chain(path)
    except ssl.SSLError as error:
        raise BadContext(str(error)) from None
    return tls


@contextmanager
def _file_of(data: bytes) -> Iterator[str]:
    """The path of a file with this content that only this user can read: in memory where the
    system has such files (Linux), else in the user's temporary folder. It is removed again."""
    if hasattr(os, "memfd_create"):
        file, path, is_named = os.memfd_create("key", os.MFD_CLOEXEC), "", False
        path = f"/proc/self/fd/{file}"
    else:
        import tempfile

        (file, path), is_named = tempfile.mkstemp(), True
    try:
        os.write(file, data)
        if is_named:
            # Windows does not open it a second time before.
            os.close(file)
        yield path
    finally:
        if is_named:
            os.unlink(path)
        else:
            os.close(file)


class Method:
    """`Service.Name` of the managers' API."""

    def __init__(self, service: str, name: str) -> None:
        # Imports only the module of its service, as each is slow to import.
        from google.protobuf.message_factory import GetMessageClass

        module: Any = import_module(f"orchestrator.pb.{service.lower()}_pb2")
        described = module.DESCRIPTOR.services_by_name[service].methods_by_name[name]
        self.reply = GetMessageClass(described.output_type)
        self.path = f"/{_PACKAGE}.{service}/{name}"


class Call:
    """A call in progress: an iterator of the reply's messages. Exceptions of the iterator of
    requests are raised here, too. Other threads may `cancel` it."""

    def __init__(
        self,
        connection: Connection,
        method: Method,
        requests: Any,
        timeout: float | None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> None:
        """`requests`: a message, or an iterable of them. `timeout`: seconds for all of it.
        `metadata`: more headers. Raises ConnectionBroken."""
        self._method = method
        self._until = None if timeout is None else time.monotonic() + timeout
        fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", method.path),
            (":authority", "manager.orc"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        if timeout is not None:
            fields.append(("grpc-timeout", f"{max(1, int(timeout * 1000))}m"))
        fields += metadata
        self._stream: Stream = connection.open(fields)
        self._failure: BaseException | None = None
        self._arrived = bytearray()
        if hasattr(requests, "SerializeToString"):
            self._stream.send(_frame_message(requests), end=True)
        else:
            with deferred:
                threading.Thread(target=self._send, args=(requests,), daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next message. Raises RpcError, ConnectionBroken."""
        while (message := self._parse()) is None:
            try:
                data = self._stream.receive(self._until)
            except TimeoutError:
                self._stream.cancel()
                raise RpcError(Code.DEADLINE_EXCEEDED) from None
            except StreamReset as reset:
                self._raise_failure()
                cancelled = reset.code == _CANCELLED
                code = Code.CANCELLED if cancelled else Code.UNAVAILABLE
                raise RpcError(code, "" if cancelled else str(reset)) from None
            if data is None:
                self._raise_failure()
                self._end()
            else:
                self._arrived += data
        return message

    def one(self) -> Any:
        """The only message. Raises as `__next__`."""
        message = next(self, None)
        if message is None:
            raise RpcError(Code.INTERNAL, "the manager gave no answer")
        for _ in self:
            pass
        return message

    @property
    def metadata(self) -> Mapping[str, str]:
        """Headers and trailers of the reply, as far as they have arrived."""
        return self._stream.fields

    def cancel(self) -> None:
        """Cancel the call."""
        self._stream.cancel()

    def _send(self, requests: Iterable[Any]) -> None:
        try:
            for message in requests:
                self._stream.send(_frame_message(message))
            self._stream.send(b"", end=True)
        except (StreamReset, ConnectionBroken):
            pass  # the reply says why
        except BaseException as error:
            self._failure = error
            self._stream.cancel()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _parse(self) -> Any | None:
        if len(self._arrived) < _PREFIX.size:
            return None
        compressed, size = _PREFIX.unpack_from(self._arrived)
        if compressed or size > _MAX_MESSAGE:
            self._stream.cancel()
            raise RpcError(Code.INTERNAL, f"a message of {size} bytes exceeds the limit")
        end = _PREFIX.size + size
        if len(self._arrived) < end:
            return None
        message = self._method.reply()
        message.ParseFromString(bytes(memoryview(self._arrived)[_PREFIX.size : end]))
        del self._arrived[:end]
        return message

    def _end(self) -> None:
        """Raise the call's status."""
        fields = self._stream.fields
        status = fields.get("grpc-status", "")
        if not status.isdecimal() or int(status) not in Code.__members__.values():
            raise RpcError(Code.UNKNOWN, f"HTTP status {fields.get(':status', 'missing')}")
        if (code := Code(int(status))) is Code.OK:
            raise StopIteration
        from urllib.parse import unquote

        raise RpcError(code, unquote(fields.get("grpc-message", "")).strip())


def _frame_message(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return _PREFIX.pack(0, len(data)) + data
