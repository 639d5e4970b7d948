# SPDX-License-Identifier: Apache-2.0
"""The warm server behind `orc-cni` releases the connections that it has answered."""

from __future__ import annotations

import json
import socket
import threading
import weakref
from pathlib import Path

from orchestrator.cni.plugin import thinclient, warmserver


class _Listener(socket.socket):
    """Remembers, weakly, the sockets that it accepted."""

    accepted: list[weakref.ref[socket.socket]]

    def accept(self) -> tuple[socket.socket, object]:
        sock, address = super().accept()
        self.accepted.append(weakref.ref(sock))
        return sock, address


def _ask(path: Path) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"VERSION" + b"\0" * len(warmserver.PASSED) + b"not JSON")
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while part := client.recv(1 << 16):
            answer += part
    document: dict[str, object] = json.loads(answer[1:])
    return document


def test_client_passes_the_variables_that_the_server_expects() -> None:
    assert [name.decode() for name in thinclient.PASSED] == list(warmserver.PASSED)


def test_answered_connections_are_released(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    with _Listener(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as silent:
        listener.accepted = []
        listener.bind(str(path))
        listener.listen(100)
        serving = threading.Thread(target=warmserver.serve, args=(listener, 0.2))
        serving.start()
        for _ in range(50):
            assert "code" in _ask(path)
        # The last may still be in the hands of the loop that answered it.
        alive = [each for each in listener.accepted if each() is not None]
        assert len(alive) <= 1
        silent.connect(str(path))
        assert "code" in _ask(path)
        silent.close()
        serving.join()
        assert [each for each in listener.accepted if each() is not None] == []
