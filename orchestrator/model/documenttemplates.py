"""Configs and secrets that are templates, as Docker's `--template-driver golang` has them.

Beside the places that a spec may have (`templates`), there are `{{env "NAME"}}`, a variable of the
task's own spec, and `{{secret "TARGET"}}` and `{{config "TARGET"}}`, the data of another of the
task's files, by the target that its spec gives it. Each is one action; Go's pipelines, conditions
and loops are not there, and refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.model.documents import DocumentKind
from orchestrator.model.templates import check_place

_ACTION = re.compile(rb"\{\{(.*?)\}\}", re.DOTALL)
_PLACE = re.compile(r"\.(\w+\.\w+)(?:\.([^\s{}]+))?")
_CALL = re.compile(r'(env|secret|config)\s+"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Filling:
    """What fills a template, for one task."""

    value: Callable[[str, str | None], str]
    """Of a place, as `templates.values`."""
    env: Callable[[str], str]
    """Of a variable; empty when there is none."""
    data: Callable[[DocumentKind, str], bytes]
    """Of another file. Raises ValueError when the task has none."""


def check_template(what: str, data: bytes) -> None:
    """Refuse a template that cannot be filled in. Raises ValueError, with the line, and no more of
    what stands there than a place that is not known: it may be a secret."""
    for match in _ACTION.finditer(data):
        try:
            _parse(match[1])
        except ValueError as error:
            line = data.count(b"\n", 0, match.start()) + 1
            raise ValueError(f"{what}, line {line}: {error}") from None


def fill(data: bytes, filling: Filling) -> bytes:
    """The data of a task's file. Raises ValueError."""

    def filled(match: re.Match[bytes]) -> bytes:
        word, argument = _parse(match[1])
        match word:
            case "env":
                return filling.env(argument or "").encode()
            case "secret":
                return filling.data(DocumentKind.SECRET, argument or "")
            case "config":
                return filling.data(DocumentKind.CONFIG, argument or "")
            case _:
                return filling.value(word, argument).encode()

    return _ACTION.sub(filled, data)


def needed(data: bytes) -> list[tuple[DocumentKind, str]]:
    """The other files that a template has the data of, by kind and target."""
    kinds = {"secret": DocumentKind.SECRET, "config": DocumentKind.CONFIG}
    parsed = (_parse(match[1]) for match in _ACTION.finditer(data))
    return [(kinds[word], argument or "") for word, argument in parsed if word in kinds]


def _parse(action: bytes) -> tuple[str, str | None]:
    """A function's name and argument, or a place's field and label."""
    text = action.decode(errors="replace").strip()
    if (call := _CALL.fullmatch(text)) is not None:
        return call[1], call[2]
    if (place := _PLACE.fullmatch(text)) is not None:
        check_place(place[1], place[2])
        return place[1], place[2]
    raise ValueError(
        'this action is not known; known are places such as {{.Service.Name}}, {{env "NAME"}}, '
        '{{secret "NAME"}} and {{config "NAME"}}'
    )
