# SPDX-License-Identifier: Apache-2.0
"""Programs that serve an agent end without an error when it is killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from orchestrator.daemon import bareprogram


def test_network_helper_ends_when_its_answer_is_not_read(tmp_path: Path) -> None:
    read, write = os.pipe()
    command = (sys.executable, "-m", "orchestrator.cni.helper", tmp_path / "a", tmp_path / "b")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE
    ) as helper:
        os.close(write)
        os.close(read)
        _, errors = helper.communicate(b"no request\nno request\n", timeout=60)
    assert (helper.returncode, errors) == (0, b"")


def test_maker_of_namespaces_ends_when_its_answer_is_not_read() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = bareprogram.command("orchestrator.agent.runtime.isolation.nsmaker")
    with subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE) as maker:
        theirs.close()
        with open("/proc/self/ns/user", "rb") as own:
            # A process cannot join its own namespace, so the answer is an error.
            socket.send_fds(ours, [b"join"], [own.fileno()])
        ours.recv(1, socket.MSG_PEEK)
        ours.close()
        _, errors = maker.communicate(timeout=60)
    assert (maker.returncode, errors) == (0, b"")
