"""The OCI runtime's complaints, in words for the user."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.agent.runtime.programs import no_interpreter, no_program
from orchestrator.model.states import CANNOT_INVOKE, NOT_FOUND

_MISSING = re.compile(
    r"executable file `(?P<a>[^`]*)` not found"
    r'|exec: "(?P<b>[^"]*)": (?:executable file not found|stat .*: no such file)'
)
_FORBIDDEN = re.compile(
    r"the path `(?P<a>[^`]*)` exists but it is not executable"
    r'|exec: "(?P<b>[^"]*)": permission denied'
)
_FOLDER = re.compile(
    r'the path `(?P<a>[^`]*)` is not a regular file|exec: "(?P<b>[^"]*)": is a dir'
)
_FORMAT = re.compile(r"`(?P<a>[^`]*)`: Exec format error|exec (?P<b>\S+): exec format error")
_INTERPRETER = re.compile(
    r"exec container process (?:\(missing dynamic library\?\) )?`(?P<a>[^`]*)`: No such file(?P<b>)"
)

_KNOWN: tuple[tuple[re.Pattern[str], int, Callable[[str], str]], ...] = (
    (_MISSING, NOT_FOUND, lambda program: f"the image has no program `{program}`"),
    (_FORBIDDEN, CANNOT_INVOKE, lambda program: f"`{program}` in the image is not executable"),
    (_FOLDER, CANNOT_INVOKE, lambda program: f"`{program}` in the image is not a program"),
    (
        _FORMAT,
        CANNOT_INVOKE,
        lambda program: no_program(program, os.uname().machine),
    ),
    (
        _INTERPRETER,
        NOT_FOUND,
        no_interpreter,
    ),
)


UNSAID = "the OCI runtime ended without a word; was it killed?"


def known_failure(text: str) -> RuntimeFailure | None:
    """The failure with a line for the user and a shell's exit status, when `text` tells of a
    program that cannot be run."""
    for pattern, exit_code, words in _KNOWN:
        if match := pattern.search(text):
            return RuntimeFailure(words(match["a"] or match["b"]), exit_code)
    return None


def failure(text: str, doing: str) -> RuntimeFailure:
    """The failure that an OCI runtime's stderr tells of; `doing` is such as `made`."""
    if known := known_failure(text):
        return known
    first = next((line.strip() for line in text.splitlines() if line.strip()), UNSAID)
    return RuntimeFailure(f"the container could not be {doing}: {first}")
