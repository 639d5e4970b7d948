# SPDX-License-Identifier: Apache-2.0
"""Containers at a terminal by the docker CLI."""

from __future__ import annotations

import pytest
from dockerclient import CLI, Docker, Run
from ptydriver import at_terminal

pytestmark = [pytest.mark.root, pytest.mark.e2e]

DETACH = b"\x10\x11"
"""Ctrl-P Ctrl-Q."""


def test_shell_at_a_terminal_has_its_size_and_exit_status(docker: Docker, box: str) -> None:
    with at_terminal(docker.env, "run", "-it", "--rm", box, program=CLI) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"stty size\n")
        terminal.expect(b"40 123")
        terminal.resize(30, 100)
        terminal.type(b"until stty size | grep -q '30 100'; do sleep 0.1; done; echo re''sized\n")
        terminal.expect(b"resized")
        terminal.type(b"exit 6\n")
        assert terminal.finish() == 6


def test_program_finds_the_size_of_its_terminal_when_it_starts(docker: Docker, box: str) -> None:
    with at_terminal(
        docker.env, "run", "-it", "--rm", box, "stty", "size", program=CLI
    ) as terminal:
        terminal.expect(b"40 123")
        assert terminal.finish() == 0


def test_attached_terminal_is_detached_by_keys_and_attached_again(docker: Docker, box: str) -> None:
    words = ("run", "-it", "--name", "shell", box)
    with at_terminal(docker.env, *words, program=CLI) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"A=ke''pt\n")
        terminal.expect(b"# ")
        terminal.type(DETACH)
        terminal.finish()
    assert docker.inspect("shell")["State"]["Running"] is True
    with at_terminal(docker.env, "attach", "shell", program=CLI) as terminal:
        terminal.type(b"echo $A; exit 3\n")
        terminal.expect(b"kept")
        assert terminal.finish() == 3


def test_exec_at_a_terminal(docker: Docker, run: Run) -> None:
    run("main", "sleep 1000")
    with at_terminal(docker.env, "exec", "-it", "main", "sh", program=CLI) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"tty && exit 4\n")
        terminal.expect(b"/dev/")
        assert terminal.finish() == 4


def test_interrupt_reaches_the_container(docker: Docker, box: str) -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    words = ("run", "-it", "--rm", box, "sh", "-c", script)
    with at_terminal(docker.env, *words, program=CLI) as terminal:
        terminal.expect(b"ready")
        terminal.type(b"\x03")
        terminal.expect(b"caught")
        assert terminal.finish() == 5
