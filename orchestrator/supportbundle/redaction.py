# SPDX-License-Identifier: Apache-2.0
"""Redaction of passwords, tokens and private keys in texts and documents. Pure.

Removed values are replaced by `(removed)`. Redaction errs on the side of removing too much: values
of environment variables are always removed, as passwords cannot be recognised by their form.
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
_SECRET_WORD = re.compile(_WORDS, re.IGNORECASE)
"""Anywhere in a name."""
_SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:key|pass|pwd|auth|cookie|salt|dsn|session_?id)(?:$|[^a-z])", re.IGNORECASE
)
"""As a separate word in a name."""
_REFERENCES = frozenset({"secrets", "configs", "secret", "config", "secret_id", "secret_name"})
"""Fields with the name of an object in the cluster, without its content."""
_PLAIN = frozenset({"authority", "author", "token_type", "key_rotation"})
_ENVIRONMENT = frozenset({"env", "environment"})
_MIN_KNOWN_LENGTH = 6
"""Minimum length of a known value to be removed everywhere; shorter ones may be ordinary words."""

_TEXT_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
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
_LINE_PATTERNS = (
    re.compile(
        rf"(\b[\w.-]*(?:{_WORDS})[\w.-]*[\"']?\s*[=:]\s*)"
        r"(\"[^\"]*\"|'[^']*'|[^\s\"',;&}]+)",
        re.IGNORECASE,
    ),
    re.compile(rf"(--?[\w-]*(?:{_WORDS})[\w-]*\s+)(\"[^\"]*\"|'[^']*'|[^\s\"'-]\S*)", re.I),
)
"""Values after a name with a secret word: `NAME=…`, `"NAME": "…"` or `--NAME …`."""


def is_secret_name(name: str) -> bool:
    """Whether a name suggests a secret: `DB_PASSWORD`, `apiKey`, `tls.key`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(_SECRET_NAME.search(words) or _SECRET_WORD.search(words))


def scrubbed(text: str, known: Iterable[str] = ()) -> str:
    """A text, such as a log, without secrets of recognisable forms and without `known` ones."""
    for value in sorted({value for value in known if len(value) >= _MIN_KNOWN_LENGTH}, key=len)[
        ::-1
    ]:
        text = text.replace(value, REMOVED)
    for pattern, replacement in _TEXT_PATTERNS:
        text = pattern.sub(replacement, text)
    return "".join(map(_line, text.splitlines(keepends=True)))


def _line(line: str) -> str:
    if _SECRET_WORD.search(line):
        for pattern in _LINE_PATTERNS:
            line = pattern.sub(rf"\1{REMOVED}", line)
    return line


def cleaned(value: Any, known: Iterable[str] = (), key: str = "") -> Any:
    """A JSON-like document without secrets; `key` is its key in the enclosing document."""
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
    """A list without secrets, including arguments after flags such as `--password`."""
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
    """`NAME=value` with the value redacted."""
    name, equals, value = variable.partition("=")
    return f"{name}={REMOVED}" if equals and value else variable


def secret_values(variables: Iterable[str]) -> set[str]:
    """Values of `NAME=value` variables that must not appear elsewhere, such as in a log."""
    found = set()
    for variable in variables:
        name, _, value = variable.partition("=")
        if is_secret_name(name):
            found.add(value)
    return found
