# SPDX-License-Identifier: Apache-2.0
"""A small forward proxy (RFC 9110, 7.7 and 9.3.6) that knows names that nobody else knows."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class ForwardProxy:
    """One that runs."""

    url: str
    asked: list[str] = field(default_factory=list)
    """What it was asked for so far: METHOD HOST:PORT."""


@contextmanager
def forward_proxy(address: str, names: Mapping[str, str]) -> Iterator[ForwardProxy]:
    """Run one at an address of this machine; `names` says at which HOST:PORT a HOST:PORT is."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            host, _, port = self._real(self.path).rpartition(":")
            with socket.create_connection((host, int(port)), timeout=10) as there:
                self.send_response(200)
                self.end_headers()
                self.close_connection = True
                _pump(self.connection, there)

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            with_query = f"{url.path}?{url.query}" if url.query else url.path
            there = http.client.HTTPConnection(self._real(url.netloc), timeout=10)
            there.putrequest(self.command, with_query, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # a name may stand several times
                there.putheader(name, value)
            there.endheaders()
            answer = there.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            there.close()

        do_HEAD = do_GET

        def _real(self, name: str) -> str:
            proxy.asked.append(f"{self.command} {name}")
            return names.get(name, name)

        def log_message(self, *_: object) -> None:
            """Nothing: what counts is in `asked`."""

    with ThreadingHTTPServer((address, 0), Handler) as server:
        proxy = ForwardProxy(f"http://{address}:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def _pump(here: socket.socket, there: socket.socket) -> None:
    """Carry bytes both ways until one side has no more."""
    with suppress(ConnectionError):
        while True:
            for ready in select.select([here, there], [], [])[0]:
                if not (data := ready.recv(65536)):
                    return
                (there if ready is here else here).sendall(data)
