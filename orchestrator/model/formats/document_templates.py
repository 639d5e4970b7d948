# SPDX-License-Identifier: Apache-2.0
"""Configs and secrets that are templates, as Docker's `--template-driver golang` has them.

They are templates as a spec's variables are (`task_templates`), with three more functions: `env
"NAME"`, a variable of the task's own spec, and `secret "TARGET"` and `config "TARGET"`, the data of
another of the task's files, by the target that its spec gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.model.documents import DocumentKind
from orchestrator.model.formats.gotemplate import FUNCTIONS, BadTemplate, Template
from orchestrator.model.formats.task_templates import EXAMPLES, Facts, UnknownPlace, place

_MOST = 4 << 20
"""Maximum characters of a template's result."""


@dataclass(frozen=True, slots=True)
class Filling:
    """The values for a template, for one task."""

    facts: Facts
    env: Callable[[str], str]
    """Of a variable; empty when there is none."""
    data: Callable[[DocumentKind, str], bytes]
    """Of another file. Raises ValueError when the task has none."""


_HELP = (
    "this action is not known; known are places such as {{.Service.Name}}, the functions env, "
    "secret and config, and Go's if, range, with, printf, eq, index and others"
)
_EXAMPLES = Filling(EXAMPLES, lambda _: "1", lambda _kind, _target: b"1")


def check_template(kind: DocumentKind, name: str, data: bytes) -> None:
    """Raise ValueError, with the line, for an invalid template. For a secret, the message quotes
    nothing but an unknown placeholder."""
    try:
        _template(data, _EXAMPLES).check(EXAMPLES.tree)
    except BadTemplate as error:
        hidden = kind is DocumentKind.SECRET and not isinstance(error, UnknownPlace)
        words = _HELP if hidden else str(error)
        raise ValueError(f"{kind.word} '{name}', line {error.line}: {words}") from None


def fill(data: bytes, filling: Filling) -> bytes:
    """The data of a task's file. Raises ValueError, whose text reveals no data."""
    try:
        text = _template(data, filling).render(filling.facts.tree, _MOST)
    except BadTemplate as error:
        raise ValueError(f"line {error.line} cannot be evaluated") from None
    return text.encode(errors="surrogateescape")


def _template(data: bytes, filling: Filling) -> Template:
    def other(kind: DocumentKind) -> Callable[[str], str]:
        return lambda target: _text(filling.data(kind, target))

    own = {
        "env": filling.env,
        "secret": other(DocumentKind.SECRET),
        "config": other(DocumentKind.CONFIG),
    }
    return Template(_text(data), {**FUNCTIONS, **own}, place)


def _text(data: bytes) -> str:
    """Any bytes as text, from which `fill` makes the same bytes again."""
    return data.decode(errors="surrogateescape")
