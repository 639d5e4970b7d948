# SPDX-License-Identifier: Apache-2.0
"""What a test does in a virtual machine that it has booted: commands, over a port.

Started as `python -m tests.vm.hand` inside. It obeys anyone who asks, and only the test can.
"""

from __future__ import annotations

import json
import socket
import socketserver
import subprocess
from dataclasses import dataclass
from typing import Any

from .machine import HAND, LOOPBACK

SECONDS = 600


class _Order(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        order = json.loads(self.rfile.readline())
        if order["stays"]:
            with open(order["stays"], "ab") as log:
                process = subprocess.Popen(
                    order["argv"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            answer = {"status": 0, "output": str(process.pid)}
        else:
            done = subprocess.run(
                order["argv"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            answer = {"status": done.returncode, "output": done.stdout}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def obey() -> None:
    """Do what is asked until the machine is switched off."""
    with _Server(("0.0.0.0", HAND), _Order) as server:
        server.serve_forever()


@dataclass(frozen=True, slots=True)
class Hand:
    """The machine behind a door."""

    door: int

    def run(self, *argv: str, ok: bool = True) -> str:
        """Run a command there: what it printed. It must succeed, unless `ok` is False."""
        answer = self._ask({"argv": argv, "stays": ""})
        assert not ok or answer["status"] == 0, f"{' '.join(argv)}: {answer['output']}"
        return str(answer["output"])

    def start(self, log: str, *argv: str) -> int:
        """Start a command that stays, whose output goes to the file `log` there: its pid."""
        return int(self._ask({"argv": argv, "stays": log})["output"])

    def answers(self) -> bool:
        """Whether the machine is up. Its door is open before that, and then nobody ever answers."""
        try:
            return self._ask({"argv": ["true"], "stays": ""}, within=5) is not None
        except (OSError, ValueError):
            return False

    def _ask(self, order: dict[str, Any], within: float = SECONDS) -> dict[str, Any]:
        with socket.create_connection((LOOPBACK, self.door), timeout=within) as sock:
            sock.sendall(json.dumps(order).encode() + b"\n")
            with sock.makefile("rb") as answer:
                found: dict[str, Any] = json.loads(answer.readline())
                return found


if __name__ == "__main__":
    obey()
