# SPDX-License-Identifier: Apache-2.0
"""Tables that fit the terminal, and what is never cut."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.output.screen import align_columns, display_width, pad_cell
from orchestrator.pb import control_pb2 as pb

ORC = str(Path(sys.executable).with_name("orc"))


def test_fitting_table_is_unchanged() -> None:
    lines = [["NAME", "IMAGE"], ["web", "hello:1"]]
    assert align_columns(lines, 80) == align_columns(lines) == ["NAME   IMAGE", "web    hello:1"]


@pytest.mark.parametrize(
    ("room", "row"),
    [
        (41, "4f0c2d9e1b7a   sh -c 'sleep 1000'   web.1"),
        (37, "4f0c2d9e1b7a sh -c 'sleep 1000' web.1"),
        (34, "4f0c2d9e1b7a sh -c 'sleep 1… web.1"),
        (10, "4f0c2d9e1b7a sh -c '… web.1"),
    ],
)
def test_command_is_truncated_first_and_ids_never(room: int, row: str) -> None:
    lines = [["CONTAINER ID", "COMMAND", "NAMES"], ["4f0c2d9e1b7a", "sh -c 'sleep 1000'", "web.1"]]
    assert align_columns(lines, room)[1] == row


def test_names_are_truncated_only_if_the_table_fits_then() -> None:
    lines = [["NAME", "ID"], ["a-very-long-name-of-a-service", "uxy7ncdmuq5o"]]
    assert align_columns(lines, 30)[1] == "a-very-long-name… uxy7ncdmuq5o"
    assert align_columns(lines, 15)[1] == "a-very-long-name-of-a-service uxy7ncdmuq5o"


TEXTS = st.text(st.characters(exclude_categories=("C", "M", "Z")), max_size=40)


@given(st.lists(st.lists(TEXTS, min_size=3, max_size=3), max_size=5), st.integers(40, 200))
def test_columns_align_within_the_width(rows: list[list[str]], room: int) -> None:
    shown = align_columns([["COMMAND", "IMAGE", "PORTS"], *rows], room)
    assert all(display_width(line) <= room for line in shown)
    assert len(shown) == len(rows) + 1


@given(TEXTS, st.integers(1, 60))
def test_cell_width(text: str, width: int) -> None:
    assert display_width(pad_cell(text, width)) == width


def at_terminal(columns: int, *argv: str, term: str = "xterm") -> str:
    """What a command prints on a terminal that is so wide."""
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
        os.execve(argv[0], argv, {**env, "TERM": term})
    seen = b""
    try:
        while data := os.read(fd, 1 << 16):
            seen += data
    except OSError:
        pass  # how a terminal says that its last user has gone
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, seen
    return seen.decode()


def test_listing_fits_a_terminal_and_is_untruncated_in_a_pipe(manager: Any) -> None:
    image = f"registry.example.org/{'team/' * 20}web:1"
    manager.script.answers["ListServices"] = pb.ListServicesReply(
        services=[{"service": {"spec": {"name": "web", "task": {"container": {"image": image}}}}}]
    )
    shown = at_terminal(80, ORC, "service", "ls")
    assert "…" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert image in at_terminal(80, ORC, "service", "ls", "--format", "json")
    piped = subprocess.run([ORC, "service", "ls"], capture_output=True, text=True, check=True)
    assert image in piped.stdout


COUNTING = """
import sys
from orchestrator.cli.output import screen
screen.PROGRESS_DELAY = 0.0
assert list(screen.metered([b"a", b"bc"], "loading it", 3)) == [b"a", b"bc"]
assert list(screen.metered([b"a"], "in silence", quiet=True)) == [b"a"]
print("rich" in sys.modules)
"""


def test_long_transfer_shows_a_bar_on_a_terminal() -> None:
    shown = at_terminal(100, sys.executable, "-c", COUNTING)
    assert "loading it" in shown
    assert "in silence" not in shown
    plain = at_terminal(100, sys.executable, "-c", COUNTING, term="dumb")
    piped = subprocess.run(
        [sys.executable, "-c", COUNTING], capture_output=True, text=True, check=True
    )
    assert [plain.strip(), piped.stdout.strip()] == ["False", "False"]


def test_no_colour_is_without_colours() -> None:
    code = (
        "from orchestrator.cli.service.live_view import LiveView\n"
        "print(LiveView()._console.no_color)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NO_COLOR": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "True\n"
