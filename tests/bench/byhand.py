# SPDX-License-Identifier: Apache-2.0
"""What a user does by hand, as whole commands: `run --rm`, `exec`, and a key at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.bench import image
from tests.bench.cluster import ORC, BenchError, Cluster
from tests.bench.docker import Docker
from tests.bench.tables import Table, at_most, median, seconds, spread, times

ROUNDS = 21
KEYS = 50
EXEC_TARGET, KEY_TARGET = 0.120, 0.020
"""Seconds."""
_TRUE = ("/bin/busybox", "true")
_BOX = "by-hand"
_PATIENCE = 10.0


@dataclass(slots=True)
class ByHand:
    """Seconds of each round, by what was done and with what: `run`, `exec`, `key`."""

    orc: dict[str, list[float]] = field(default_factory=lambda: {n: [] for n in _NAMES})
    docker: dict[str, list[float]] = field(default_factory=lambda: {n: [] for n in _NAMES})
    interpreter: list[float] = field(default_factory=list)
    """A bare interpreter, which every `orc` command has to start."""


_NAMES = ("run", "exec", "key")


def measure(cluster: Cluster, docker: Docker | None) -> ByHand:
    """Measure by turns. Raises BenchError when something does not run."""
    result = ByHand()
    sides = [(ORC, dict(os.environ), result.orc)]
    if docker is not None and shutil.which("docker") is not None:
        sides.append(("docker", {**os.environ, "DOCKER_HOST": docker.host}, result.docker))
    for program, environment, _ in sides:
        _timed(environment, program, "run", "-d", "--name", _BOX, image.NAME)
        _timed(environment, program, "run", "--rm", image.NAME, *_TRUE)
    try:
        for _ in range(ROUNDS):
            result.interpreter.append(_timed(dict(os.environ), sys.executable, "-c", ""))
            for program, environment, took in sides:
                took["run"].append(_timed(environment, program, "run", "--rm", image.NAME, *_TRUE))
                took["exec"].append(_timed(environment, program, "exec", _BOX, *_TRUE))
        for program, environment, took in sides:
            took["key"] = _keys(environment, program)
    finally:
        for program, environment, _ in sides:
            _timed(environment, program, "rm", "-f", _BOX)
    return result


def _timed(environment: Mapping[str, str], *argv: str) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    if done.returncode != 0:
        raise BenchError(f"{os.path.basename(argv[0])} {argv[1]}: {done.stderr.strip()}")
    return took


def _keys(environment: Mapping[str, str], program: str) -> list[float]:
    """From a key that is typed until what it does is seen, in a raw terminal whose other end gives
    back what it gets."""
    took = []
    echo = ("/bin/busybox", "sh", "-c", "stty raw -echo; printf ready; exec cat")
    with _terminal(environment, (program, "exec", "-it", _BOX, *echo)) as fd:
        _await(fd, b"ready")
        for number in range(KEYS):
            key = bytes((ord("a") + number % 26,))
            began = time.perf_counter()
            os.write(fd, key)
            _await(fd, key)
            took.append(time.perf_counter() - began)
    return took


@contextmanager
def _terminal(environment: Mapping[str, str], argv: Sequence[str]) -> Iterator[int]:
    """A command at a pseudo-terminal: the other end of it. It is killed at the end."""
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.execvpe(argv[0], list(argv), dict(environment))
    try:
        yield fd
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)


def _await(fd: int, text: bytes) -> None:
    seen, deadline = b"", time.monotonic() + _PATIENCE
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise BenchError(f"{text!r} was not seen at the terminal, but {seen!r}")
        seen += os.read(fd, 1 << 16)


def report(result: ByHand, absent: str) -> Table:
    """`absent`: why there is nothing of Docker, or empty. Pure."""
    shown = {"run": "run --rm IMAGE true", "exec": "exec CONTAINER true", "key": "exec -it: a key"}
    rows = [("a bare interpreter", *_figures(result.interpreter), "", "")]
    for name, words in shown.items():
        ours, theirs = result.orc[name], result.docker[name]
        ratio = times(median(theirs) / median(ours)) if theirs else ""
        rows.append((f"`orc {words}`", *_figures(ours), ratio, _target(name, ours, theirs)))
        if theirs:
            rows.append((f"`docker {words}`", *_figures(theirs), "", ""))
    return Table(
        "By hand",
        ("what", "rounds", "median", "least to most, ms", "Orc is faster by", "target"),
        tuple(rows),
        (
            "Whole commands, the interpreter's start included; a node that the scheduler chose.",
            *([absent + "."] if absent else []),
        ),
    )


def _target(name: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    if name == "exec":
        return at_most(median(ours), EXEC_TARGET, "120 ms")
    if name == "key":
        return at_most(median(ours), KEY_TARGET, "20 ms")
    return at_most(median(ours), median(theirs) / 2, "half of Docker's") if theirs else ""


def _figures(took: Sequence[float]) -> tuple[str, str, str]:
    return str(len(took)), seconds(median(took)), spread(took)
