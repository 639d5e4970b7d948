# SPDX-License-Identifier: Apache-2.0
"""Texts and documents without passwords, tokens and private keys. Pure.

What is removed leaves `(removed)` in its place, so that one sees that there was something. Rather
too much is removed than too little: of environment variables all values, as no rule can tell a
password by its look.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REMOVED = "(removed)"

_WORDS = (
    r"pass(?:word|wd|phrase)|secret|token|ticket|credentials?|api[_-]?key|access[_-]?key|"
    r"private[_-]?key|signing[_-]?key|encryption[_-]?key|authorization|bearer"
)
_SECRET_INSIDE = re.compile(_WORDS, re.IGNORECASE)
"""Wherever it stands in a name."""
_SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:key|pass|pwd|auth|cookie|salt|dsn|session_?id)(?:$|[^a-z])", re.IGNORECASE
)
"""As a word of its own in a name."""
_REFERENCES = frozenset({"secrets", "configs", "secret", "config", "secret_id", "secret_name"})
"""Fields that name an object of the cluster; what it holds is not in them."""
_PLAIN = frozenset({"authority", "author", "token_type", "key_rotation"})
_ENVIRONMENT = frozenset({"env", "environment"})
_LEAST_KNOWN = 6
"""Characters of a value from which on it is looked for everywhere; a shorter one is a word."""

_IN_TEXTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL),
        REMOVED,
    ),
    (re.compile(r"\bORC-1-[0-9a-f]{16,}-[0-9a-z]+"), f"ORC-1-{REMOVED}"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/@]+@", re.IGNORECASE), rf"\1:{REMOVED}@"),
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), rf"\1 {REMOVED}"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), REMOVED),  # JSON web tokens
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), REMOVED),
    (re.compile(r"\b(?:gh[opsu]_|github_pat_|glpat-|xox[abprs]-)[\w-]{10,}"), REMOVED),
)
_IN_LINES = (
    re.compile(
        rf"(\b[\w.-]*(?:{_WORDS})[\w.-]*[\"']?\s*[=:]\s*)"
        r"(\"[^\"]*\"|'[^']*'|[^\s\"',;&}]+)",
        re.IGNORECASE,
    ),
    re.compile(rf"(--?[\w-]*(?:{_WORDS})[\w-]*\s+)(\"[^\"]*\"|'[^']*'|[^\s\"'-]\S*)", re.I),
)
"""What follows a name, as `NAME=…`, `"NAME": "…"` or `--NAME …`, in a line with such a word."""


def is_secret_name(name: str) -> bool:
    """Whether what is called so opens something: `DB_PASSWORD`, `apiKey`, `tls.key`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(_SECRET_NAME.search(words) or _SECRET_INSIDE.search(words))


def scrubbed(text: str, known: Iterable[str] = ()) -> str:
    """A text, such as a log, without secrets that have a known look, and without `known` ones."""
    for value in sorted({value for value in known if len(value) >= _LEAST_KNOWN}, key=len)[::-1]:
        text = text.replace(value, REMOVED)
    for pattern, instead in _IN_TEXTS:
        text = pattern.sub(instead, text)
    return "".join(map(_line, text.splitlines(keepends=True)))


def _line(line: str) -> str:
    if _SECRET_INSIDE.search(line):
        for pattern in _IN_LINES:
            line = pattern.sub(rf"\1{REMOVED}", line)
    return line


def cleaned(value: Any, known: Iterable[str] = (), key: str = "") -> Any:
    """A document as JSON has it, without secrets; `key` is what it is called where it stands."""
    known = tuple(known)
    if isinstance(value, Mapping):
        of_environment = key.lower() in _ENVIRONMENT
        return {
            scrubbed(str(name), known): _hidden(item)
            if of_environment
            else cleaned(item, known, str(name))
            for name, item in value.items()
        }
    if isinstance(value, str):
        return _hidden(value) if _hides(key) else scrubbed(value, known)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if key.lower() in _ENVIRONMENT:
            return [without_value(str(item)) for item in value]
        return _list(value, known, key)
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


def _list(items: Sequence[Any], known: tuple[str, ...], key: str) -> list[Any]:
    """As above; in a command, what follows `--password` goes too."""
    found, hide = [], False
    for item in items:
        found.append(REMOVED if hide and isinstance(item, str) else cleaned(item, known, key))
        hide = isinstance(item, str) and item.startswith("-") and "=" not in item
        hide = hide and is_secret_name(item)
    return found


def _hides(key: str) -> bool:
    return key.lower() not in _REFERENCES | _PLAIN and is_secret_name(key)


def _hidden(value: Any) -> Any:
    return REMOVED if value not in ("", None) else value


def without_value(variable: str) -> str:
    """`NAME=value` as `NAME=(removed)`."""
    name, equals, value = variable.partition("=")
    return f"{name}={REMOVED}" if equals and value else variable


def secret_values(variables: Iterable[str]) -> set[str]:
    """The values of `NAME=value` that are to be found nowhere else, such as in a log."""
    found = set()
    for variable in variables:
        name, _, value = variable.partition("=")
        if is_secret_name(name):
            found.add(value)
    return found
