# SPDX-License-Identifier: Apache-2.0
"""The `console` blocks of a page, and a shell that runs them as its reader would."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```console(?: (?P<kind>\w+))?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_WATCH = re.compile(r"^watch (-n \d+ )?")
_MARK = b"\0"


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a page, and what the page says that it prints."""

    command: str
    shown: str
    line: int
    kind: str
    """The word after `console` in the block's first line."""

    @property
    def watched(self) -> bool:
        """It is looked at until it shows what the page says."""
        return _WATCH.match(self.command) is not None

    @property
    def once(self) -> str:
        return _WATCH.sub("", self.command)

    def matches(self, output: str) -> bool:
        """`…` stands for any text within a line, or by itself for any lines; the widths of columns,
        which follow from the ids in them, do not count."""
        lines = [" ".join(line.split()) for line in self.shown.splitlines()]
        pattern = "".join(
            r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
            for line in lines
        )
        said = "".join(" ".join(line.split()) + "\n" for line in output.splitlines())
        return re.fullmatch(pattern, said) is not None


def steps(page: Path) -> Iterator[Step]:
    """The commands of a page's console blocks, in order: lines after `$ `, with those that go on
    after a backslash or `> `; what follows is what they print."""
    text = page.read_text()
    for block in _FENCE.finditer(text):
        first = text.count("\n", 0, block.start("body")) + 1
        command: list[str] = []
        shown: list[str] = []
        start = first
        for number, line in enumerate(block["body"].splitlines(), first):
            if line.startswith("$ "):
                if command:
                    yield _step(command, shown, start, block["kind"])
                command, shown, start = [line[2:]], [], number
            elif line.startswith("> ") and not shown:
                command.append(line[2:])
            else:
                shown.append(line)
        if command:
            yield _step(command, shown, start, block["kind"])


def _step(command: list[str], shown: list[str], line: int, kind: str | None) -> Step:
    return Step("\n".join(command), "\n".join(shown), line, kind or "")


class Shell:
    """A bash that lives over all commands, so that variables and folders stay as they are."""

    _LOOP = 'while IFS= read -r -d "" step; do eval "$step" </dev/null; printf "\\0%s\\0" $?; done'

    def __init__(self, command: Callable[..., list[str]], env: Mapping[str, str]) -> None:
        """`command` makes of the words of the shell's command those that start it where it is to
        be."""
        self._bash = subprocess.Popen(
            command("bash", "-c", self._LOOP),
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, command: str, within: float = 90.0) -> tuple[str, int]:
        """What a command prints on both its outputs, and its exit status."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(command.encode() + _MARK)
        self._bash.stdin.flush()
        deadline = time.monotonic() + within
        said = b""
        while said.count(_MARK) < 2:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._bash.stdout], [], [], max(left, 0))
            assert ready, f"{command!r} goes on after {within} s: {said.decode()}"
            more = os.read(self._bash.stdout.fileno(), 65536)
            assert more, f"{command!r} ended the shell: {said.decode()}"
            said += more
        text, status, _ = said.split(_MARK)
        return text.decode(), int(status)

    def close(self) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.close()
        self._bash.wait(timeout=60)
