"""The OCI runtime's complaints, in words for the user."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

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

_KNOWN: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (_MISSING, lambda program: f"the image has no program `{program}`"),
    (_FORBIDDEN, lambda program: f"`{program}` in the image is not executable"),
    (_FOLDER, lambda program: f"`{program}` in the image is not a program"),
    (
        _FORMAT,
        lambda program: (
            f"`{program}` is no program for this node ({os.uname().machine}): "
            "it is damaged, made for another architecture, or a script without `#!`"
        ),
    ),
    (
        _INTERPRETER,
        lambda program: f"`{program}` needs an interpreter or loader that the image does not have",
    ),
)


def known_failure(text: str) -> str | None:
    """One line for the user, when `text` tells of a program that cannot be run."""
    for pattern, words in _KNOWN:
        if match := pattern.search(text):
            return words(match["a"] or match["b"])
    return None


def explain(text: str, doing: str) -> str:
    """One line for the user from an OCI runtime's stderr; `doing` is such as `made`."""
    if known := known_failure(text):
        return known
    first = next((line.strip() for line in text.splitlines() if line.strip()), "it gave no reason")
    return f"the container could not be {doing}: {first}"
