# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 server of a gateway: one thread for each connection.

Connections are long-lived and few, most threads wait for a manager, and a hijacked connection is
read and written at once: so threads with blocking sockets, on the standard library's server.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from orchestrator.cli.app.errors import CliError
from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.admission import Admission
from orchestrator.dockerapi.http.errors import ApiError, as_api_error, bad_parameter
from orchestrator.dockerapi.http.exchange import Hijack, Reply, Request, Stream, Text
from orchestrator.dockerapi.http.routing import NEWEST, Answer, Router, split_version

log = logging.getLogger(__name__)

_IDLE = 600.0
"""Seconds after which a connection without a request is closed."""
_BUFFER = 1 << 16
_MOST_FIELDS = 1000


class _Sized:
    """A body of known length."""

    malformed = False

    def __init__(self, file: Any, length: int) -> None:
        self._file = file
        self._left = length

    def read(self, most: int) -> bytes:
        data: bytes = self._file.read1(min(most, self._left)) if self._left else b""
        if self._left and not data:
            raise ConnectionResetError("the client closed the connection within a request")
        self._left -= len(data)
        return data


class _Chunked:
    """A body in chunks (RFC 9112, 7.1); trailers are dropped."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = 0
        self._ended = False
        self.malformed = False
        """Whether it is unknown where the next request begins."""

    def read(self, most: int) -> bytes:
        if self._ended or self.malformed:
            return b""
        if not self._left:
            self._left = self._size()
            if not self._left:
                while self._line():
                    pass
                self._ended = True
                return b""
        data: bytes = self._file.read1(min(most, self._left))
        if not data:
            raise ConnectionResetError("the client closed the connection within a request")
        self._left -= len(data)
        if not self._left and self._line():
            raise self._refusal()
        return data

    def _refusal(self) -> ApiError:
        self.malformed = True
        return bad_parameter("malformed chunked encoding")

    def _size(self) -> int:
        text = self._line().partition(b";")[0].strip()
        try:
            if not text or text.startswith((b"-", b"+")):
                raise ValueError
            return int(text, 16)
        except ValueError:
            raise self._refusal() from None

    def _line(self) -> bytes:
        line: bytes = self._file.readline(_BUFFER)
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the client closed the connection within a request")
        return line.rstrip(b"\r\n")


class Hangups:
    """Watches connections whose answers may be silent for long: a client that has gone is noticed
    although nothing is sent. One thread for all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._wake, self._waker = socket.socketpair()
        self._poll.register(self._wake, select.POLLIN)
        threading.Thread(target=self._run, daemon=True, name="hangups").start()

    @contextmanager
    def watch(self, descriptor: int, gone: Callable[[], None]) -> Iterator[None]:
        """Call `gone` once if the other end closes the connection within the body."""
        with self._lock:
            self._callbacks[descriptor] = gone
            self._poll.register(descriptor, select.POLLRDHUP)
        self._waker.send(b".")
        try:
            yield
        finally:
            with self._lock:
                if self._callbacks.pop(descriptor, None) is not None:
                    self._poll.unregister(descriptor)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake.fileno():
                    self._wake.recv(_BUFFER)
                    continue
                with self._lock:
                    gone = self._callbacks.pop(descriptor, None)
                    if gone is not None:
                        self._poll.unregister(descriptor)
                if gone is not None:
                    gone()


class _Duplex:
    """A connection after its headers."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def read(self) -> bytes:
        data: bytes = self._handler.rfile.read1(_BUFFER)
        return data

    def write(self, data: bytes) -> None:
        self._handler.wfile.write(data)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    rbufsize = _BUFFER
    server: Listener

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # of any method: the router knows which are served
            return self._serve
        raise AttributeError(name)

    def version_string(self) -> str:
        """The value of the header Server."""
        return f"Docker/{self.server.gateway.engine_version} (linux)"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged; managers have an audit trail."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A malformed request, as a document like any other refusal."""
        self.close_connection = True
        # Without a version that can be read, no headers would be sent.
        self.request_version = self.protocol_version
        self._refuse(ApiError(HTTPStatus(code), message or HTTPStatus(code).phrase))

    def _serve(self) -> None:
        try:
            request, answer = self._answer()
        except ApiError as error:
            self._refuse(error)
            return
        except CliError as error:
            self._refuse(as_api_error(error))
            return
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return
        except Exception as error:
            log.exception("a request failed", extra={"method": self.command, "path": self.path})
            self._refuse(ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}"))
            return
        try:
            self._send(answer, request)
        except (ConnectionError, TimeoutError, ssl.SSLError):
            self.close_connection = True

    def _answer(self) -> tuple[Request, Answer]:
        parts = urlsplit(self.path)
        version, path = split_version(unquote(parts.path, errors="replace"))
        if self.server.admission is not None:
            self.server.admission.check(cast(ssl.SSLSocket, self.connection))
        route, captured = self.server.router.find(self.command, path)
        try:
            query = parse_qs(parts.query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        except ValueError as error:
            raise bad_parameter(f"invalid query: {error}") from None
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            self.command, path, version, captured, query, headers, self._body(headers)
        )
        return request, route.handler(self.server.gateway, request)

    def _body(self, headers: dict[str, str]) -> Any:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._content: Any = _Chunked(self.rfile)
            return self._content
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            self.close_connection = True
            raise bad_parameter(f"invalid Content-Length {length!r}")
        self._content = _Sized(self.rfile, int(length))
        return self._content

    def _refuse(self, error: ApiError) -> None:
        with suppress(ConnectionError, TimeoutError):
            self._send(Reply({"message": error.message}, error.status), None)

    def _drain(self) -> None:
        """Read what the client still sends of its request, so that its next one can follow; after
        much of it, close instead."""
        content, self._content = getattr(self, "_content", None), None
        with suppress(ApiError, ConnectionError, TimeoutError):
            for _ in range(16):
                if content is None or not (content.malformed or content.read(_BUFFER)):
                    return
                if content.malformed:
                    break
        self.close_connection = True

    def _send(self, answer: Answer, request: Request | None) -> None:
        match answer:
            case Hijack():
                self._hijack(answer, request)
            case Stream():
                self._stream(answer)
            case Text():
                self._whole(answer.text.encode(), "text/plain; charset=utf-8", HTTPStatus.OK, {})
            case Reply():
                self._whole(answer.body, "application/json", answer.status, answer.headers)

    def _head(self, status: HTTPStatus, content_type: str, headers: Any) -> None:
        self.send_response(status)
        self.send_header("Api-Version", f"{NEWEST[0]}.{NEWEST[1]}")
        self.send_header("Docker-Experimental", "false")
        self.send_header("Ostype", "linux")
        if content_type:
            self.send_header("Content-Type", content_type)
        for name, value in headers.items():
            self.send_header(name, value)

    def _whole(self, body: bytes, content_type: str, status: HTTPStatus, headers: Any) -> None:
        self._drain()
        bare = status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        self._head(status, "" if bare or not body else content_type, headers)
        if not bare:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD" and not bare:
            self.wfile.write(body)

    def _stream(self, answer: Stream) -> None:
        self._drain()
        chunked = self.request_version != "HTTP/1.0"
        self._head(HTTPStatus.OK, answer.content_type, answer.headers)
        self.send_header(
            "Transfer-Encoding" if chunked else "Connection", "chunked" if chunked else "close"
        )
        self.end_headers()
        if self.command == "HEAD":
            answer.cancel()
            return
        complete = False
        try:
            with self.server.hangups.watch(self.connection.fileno(), answer.cancel):
                for chunk in answer.chunks:
                    if chunk:
                        self.wfile.write(
                            b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk
                        )
            complete = True
        except CliError as error:
            # The status has been sent: an incomplete body is all that tells the client.
            log.warning("an answer ended early", extra={"path": self.path, "reason": str(error)})
        finally:
            close = getattr(answer.chunks, "close", None)
            if close is not None:
                close()
        if complete and chunked:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def _hijack(self, answer: Hijack, request: Request | None) -> None:
        assert request is not None
        self._drain()
        self.close_connection = True
        if request.upgrades:
            self.send_response_only(HTTPStatus.SWITCHING_PROTOCOLS, "UPGRADED")
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "tcp")
        else:
            self.send_response_only(HTTPStatus.OK)
        self.send_header("Content-Type", answer.content_type)
        self.end_headers()
        self.connection.settimeout(None)
        try:
            answer.serve(_Duplex(self))
        finally:
            # Wakes a thread that reads input; what the client has sent is read, since a client
            # whose data were left gets an error instead of the end.
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
                while self.connection.recv(_BUFFER):
                    pass


class Listener(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Accepts connections at a socket that is bound, each with a thread of its own."""

    daemon_threads = True

    def __init__(
        self,
        bound: socket.socket,
        gateway: Gateway,
        router: Router,
        tls: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        """`tls` is called for each connection: certificates are renewed meanwhile."""
        super().__init__(bound.getsockname(), cast(Any, Handler))
        self.socket = bound
        self.gateway = gateway
        self.router = router
        self.hangups = Hangups()
        self._tls = tls
        self.admission = Admission(gateway) if tls is not None else None
        bound.listen(512)

    def fileno(self) -> int:
        """Of the listening socket."""
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection."""
        connection, address = self.socket.accept()
        return connection, address or ("local", 0)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in its thread."""
        if self._tls is not None:
            request.settimeout(10.0)
            try:
                wrapped = self._tls().wrap_socket(request, server_side=True)
            except OSError:  # of the handshake
                return
            except CliError as error:
                log.warning("a connection was refused", extra={"reason": str(error)})
                return
            with wrapped:
                super().finish_request(wrapped, client_address)
            return
        super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that failed; others go on."""
        log.debug("a connection failed", exc_info=True)


def unix_socket(path: str, mode: int, group: int) -> socket.socket:
    """A Unix socket at this path, in place of one that nobody listens at. Raises OSError."""
    bound = socket.socket(socket.AF_UNIX)
    draft = f"{path}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(draft)
    bound.bind(draft)
    os.chown(draft, -1, group)
    os.chmod(draft, mode)
    os.rename(draft, path)
    return bound
