# SPDX-License-Identifier: Apache-2.0
"""Completion, as bash, zsh and fish themselves do it, of what a manager knows."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from orchestrator.cli.app import completion_names
from orchestrator.cli.app.contexts import Context, save_context
from orchestrator.cli.completion import completers
from orchestrator.cli.main import orc
from orchestrator.cli.rpc import calls
from orchestrator.pb import control_pb2 as pb

BIN = Path(sys.executable).parent
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(orc completion bash)"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -Uz compinit; compinit -D -u; source <(orc completion zsh)",
    ),
}


def environment() -> dict[str, str]:
    own = {"PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "vt100", "HISTFILE": ""}
    return {**os.environ, **own}


def completed(shell: str, lines: Sequence[str], folder: Path) -> list[str]:
    """What becomes of each line when Tab is pressed at its end."""
    if shell == "fish":
        script = 'orc completion fish | source; for line in $argv; complete -C "$line"; end'
        done = subprocess.run(
            ["fish", "--no-config", "-c", script, *lines],
            env={**environment(), "HOME": str(folder)},
            cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        )  # fmt: skip
        words = [each.partition("\t")[0] for each in done.stdout.splitlines()]
        return [
            f"{line.rpartition(' ')[0]} {word}" for line, word in zip(lines, words, strict=True)
        ]
    argv, setup = SHELLS[shell]
    out = folder / "words"
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(argv[0], argv, environment())
    try:
        os.write(fd, f"{setup}; echo re''ady\r".encode())
        _read(fd, b"ready")
        for line in lines:
            # Then to the line's start, and its words into a file.
            keys = f"{line}\t\x01echo >>{out} \x05; echo do''ne\r"
            os.write(fd, keys.encode())
            _read(fd, b"done")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)
    return out.read_text().splitlines()


def _read(fd: int, until: bytes) -> None:
    seen, deadline = b"", time.monotonic() + 30
    while until not in seen:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {until!r} in {seen!r}"
        seen += os.read(fd, 1 << 16)


@pytest.fixture
def cluster(manager: Any) -> None:
    answers = manager.script.answers
    answers["ListServices"] = pb.ListServicesReply(
        services=[{"service": {"spec": {"name": name}}} for name in ("web", "db")]
    )
    answers["ListNodes"] = pb.ListNodesReply(
        nodes=[{"node": {"description": {"hostname": name}}} for name in ("node1", "other")]
    )
    answers["ListImages"] = pb.ListImagesReply(images=[{"names": ["hello:1", "world:2.5"]}])


TYPED = {
    "orc node insp": "orc node inspect",
    "orc node inspect n": "orc node inspect node1",
    "orc rmi world:2": "orc rmi world:2.5",
    "orc service scale w": "orc service scale web=",
    "orc ps --filter node=o": "orc ps --filter node=other",
    "orc --context=te": "orc --context=test",
    "orc service create --update-order=sta": "orc service create --update-order=start-first",
    "orc plan service scale d": "orc plan service scale db=",
    "orc load arch": "orc load archive.tar",
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_in_a_shell(shell: str, cluster: None, tmp_path: Path) -> None:
    (tmp_path / "archive.tar").touch()
    assert completed(shell, list(TYPED), tmp_path) == list(TYPED.values())


def answer(line: str) -> list[list[str]]:
    """What `orc` tells a shell: kind, word, and what is said of it."""
    done = subprocess.run(
        [BIN / "orc"], env={**os.environ, "_ORC_COMPLETE": "bash_complete", "ORC_LINE": line},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [each.split("\t") for each in done.stdout.splitlines()]


def test_only_plannable_commands_complete_after_plan(cluster: None) -> None:
    words = {word for _, word, _ in answer("orc plan ")}
    assert {"service", "stack", "run"} <= words
    assert not {"ps", "network"} & words
    assert "ls" not in {word for _, word, _ in answer("orc plan service ")}
    assert ["plain", "--format"] in [each[:2] for each in answer("orc plan --fo")]


def test_assignments_before_the_command_are_ignored(cluster: None) -> None:
    assert [word for _, word, _ in answer("ORC_DEBUG=1 orc node inspect ot")] == ["other"]


def test_commands_come_with_their_summaries(config: Path) -> None:
    assert answer("orc sec") == [["plain", "secret", "Passwords and keys for containers"]]


def test_command_listing_imports_no_daemon(config: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", BIN / "orc"],
        env={**os.environ, "_ORC_COMPLETE": "zsh_complete", "ORC_LINE": "orc "},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "agent" in done.stdout
    for heavy in ("numpy", "orchestrator.agent", "orchestrator.manager", "rich"):
        assert f"| {heavy}" not in done.stderr.replace("|   ", "| ")


def test_bundle_does_not_wait_for_silent_managers(config: Path, authority: Any) -> None:
    pair = authority.issue("admin")
    with ExitStack() as stack:
        deaf = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        endpoints = tuple(f"127.0.0.1:{each.getsockname()[1]}" for each in deaf)
        save_context(Context("deaf", endpoints, authority.pem, pair.certificate, pair.key))
        waited = []
        connect = calls.connect

        def noting(address: Any, **options: Any) -> Any:
            waited.append(options["within"])
            return connect(address, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calls, "connect", noting)
            found = completers.nodes(click.Context(orc), click.Argument(["node"]), "")
    assert found == []
    assert len(waited) == 3
    assert sum(waited) <= 2 * completers.TIMEOUT


def test_every_name_has_a_completer() -> None:
    registered = completion_names._completers
    assert sorted(registered) == sorted(get_args(completion_names.Name))
