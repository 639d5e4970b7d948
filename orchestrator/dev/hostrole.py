# SPDX-License-Identifier: Apache-2.0
"""The `--manager-command` of a dev host's agent: its manager is started and stopped by the init.

join ADDRESS OWN    join as a manager, with the token in ORC_JOIN_TOKEN, and start it
leave               stop it, and delete the cluster's keys
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator.dev import hostinit
from orchestrator.identity.host_identity import retire_manager

DATA = "manager"
"""Folder of a promoted host's manager, in the host's folder."""
_DAEMON = "manager"
_PERIOD = 0.1
"""Seconds between questions whether a manager that was stopped has ended."""


def start_request(folder: Path, orc: list[str], env: dict[str, str]) -> dict[str, Any]:
    """The request to the init that starts the manager of a promoted host."""
    argv = [*orc, "manager", "--data-dir", str(folder / DATA)]
    return {"order": "start", "daemon": _DAEMON, "argv": argv, "env": env}


def main(argv: list[str]) -> int:
    """Usage: FOLDER ORC... -- join ADDRESS OWN | leave"""
    folder, split = Path(argv[0]), argv.index("--")
    orc, verb, rest = argv[1:split], argv[split + 1], argv[split + 2 :]
    if verb == "leave":
        _ask(
            folder,
            {"order": "signal", "daemon": _DAEMON, "signal": int(signal.SIGTERM), "wanted": False},
        )
        while (_ask(folder, {"order": "status"}).get(_DAEMON) or {}).get("pid"):
            time.sleep(_PERIOD)
        # It may have been stopped before it noticed that it was removed.
        retire_manager(folder / DATA)
        return 0
    to, own = rest
    command = ["cluster", "join", "--data-dir", str(folder / DATA), "--address", own, to]
    joined = subprocess.run([*orc, *command], check=False)
    if joined.returncode == 0:
        env = {key: text for key, text in os.environ.items() if key != "ORC_JOIN_TOKEN"}
        _ask(folder, start_request(folder, orc, env))
    return joined.returncode


def _ask(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / hostinit.SOCKET))
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as stream:
            reply: dict[str, Any] = json.loads(stream.readline())
    if "error" in reply:
        sys.exit(f"the host's init: {reply['error']}")
    return reply


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
