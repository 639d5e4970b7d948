# SPDX-License-Identifier: Apache-2.0
"""`--secret` and `--config` of commands that create containers; `-add` and `-rm` of updates."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli.app.completion_names import completes
from orchestrator.model.documents import DocumentKind, FileReference, OnUpdate
from orchestrator.model.specs import ContainerSpec

F = TypeVar("F", bound=Callable[..., Any])

_HELP = (
    "NAME, or source=…,target=…,uid=…,gid=…,mode=0444,on-update=roll|signal[:HUP]|none; repeatable."
)
_COMPLETIONS = {
    DocumentKind.SECRET: completes("secrets"),
    DocumentKind.CONFIG: completes("configs"),
}


def document_options(function: F) -> F:
    """Add the flags of a new service or container."""
    for kind in reversed(DocumentKind):
        function = click.option(
            f"--{kind.word}",
            f"{kind.word}s",
            multiple=True,
            metavar=kind.word.upper(),
            shell_complete=_COMPLETIONS[kind],
            help=f"Mount a {kind.word} as a file: {_HELP}",
        )(function)
    return function


def document_edit_options(function: F) -> F:
    """Add the flags of an update."""
    for kind in reversed(DocumentKind):
        function = click.option(
            f"--{kind.word}-rm",
            multiple=True,
            metavar="NAME",
            shell_complete=_COMPLETIONS[kind],
            help=f"Remove a {kind.word}; repeatable.",
        )(function)
        function = click.option(
            f"--{kind.word}-add",
            multiple=True,
            metavar=kind.word.upper(),
            shell_complete=_COMPLETIONS[kind],
            help=f"Add a {kind.word}: {_HELP}",
        )(function)
    return function


def with_documents(spec: ContainerSpec, values: Mapping[str, Any]) -> ContainerSpec:
    """The container with the flags of `document_options`. Raises a usage error for one that cannot
    be read."""
    return replace(
        spec,
        secrets=_references(DocumentKind.SECRET, values.get("secrets") or ()),
        configs=_references(DocumentKind.CONFIG, values.get("configs") or ()),
    )


def edit_documents(spec: ContainerSpec, values: Mapping[str, Any]) -> ContainerSpec:
    """The container with the flags of `document_edit_options`: an added one replaces one with the
    same target."""
    return replace(
        spec,
        secrets=_edited(DocumentKind.SECRET, spec.secrets, values),
        configs=_edited(DocumentKind.CONFIG, spec.configs, values),
    )


def _edited(
    kind: DocumentKind, references: tuple[FileReference, ...], values: Mapping[str, Any]
) -> tuple[FileReference, ...]:
    removed = values.get(f"{kind.word}_rm") or ()
    added = _references(kind, values.get(f"{kind.word}_add") or ())
    taken = {each.path(kind) for each in added}
    kept = [
        each for each in references if each.source not in removed and each.path(kind) not in taken
    ]
    return (*kept, *added)


def _references(kind: DocumentKind, texts: Iterable[str]) -> tuple[FileReference, ...]:
    return tuple(parse_reference(kind, text) for text in texts)


def parse_reference(kind: DocumentKind, text: str) -> FileReference:
    """`NAME`, or `source=NAME,target=…` with further keys; a value with a comma is quoted as in
    CSV. Raises a usage error."""
    try:
        (fields,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError):
        fields = []
    if len(fields) == 1 and "=" not in text:
        return FileReference(source=text)
    reference = FileReference()
    for field in fields:
        key, equals, value = field.partition("=")
        reader = _KEYS.get(key.strip().lower())
        if reader is None or not equals:
            raise click.BadParameter(
                f"{kind.word} {text!r} has the unknown key {key!r}; known are {', '.join(_KEYS)}"
            )
        try:
            reference = reader(reference, value)
        except ValueError as error:
            raise click.BadParameter(f"{kind.word} {text!r}: {error}") from None
    if not reference.source:
        raise click.BadParameter(f"{kind.word} {text!r} has no source; for example source=NAME")
    return reference


def parse_on_update(text: str) -> tuple[OnUpdate, str]:
    """`roll`, `none`, `signal` or `signal:SIGHUP`: the action and the signal, empty for SIGHUP.
    Raises ValueError."""
    word, colon, signal = text.partition(":")
    found = OnUpdate.__members__.get(word.upper())
    if found is None or (colon and (found is not OnUpdate.SIGNAL or not signal)):
        raise ValueError(f"on-update {text!r} is not one of roll, signal[:SIGHUP], none")
    return found, signal


def _on_update(reference: FileReference, value: str) -> FileReference:
    what, signal = parse_on_update(value)
    return replace(reference, on_update=what, signal=signal)


def _text(name: str) -> Callable[[FileReference, str], FileReference]:
    return lambda reference, value: replace(reference, **{name: value})  # type: ignore[arg-type]


def _id(name: str) -> Callable[[FileReference, str], FileReference]:
    def read(reference: FileReference, value: str) -> FileReference:
        if not (value.isascii() and value.isdecimal()):
            raise ValueError(f"{name} {value!r} is not a number; names cannot be resolved here")
        return replace(reference, **{name: int(value)})  # type: ignore[arg-type]

    return read


def _mode(reference: FileReference, value: str) -> FileReference:
    try:
        return replace(reference, mode=int(value, 8))
    except ValueError:
        raise ValueError(f"mode {value!r} is not an octal number, such as 0400") from None


_KEYS: dict[str, Callable[[FileReference, str], FileReference]] = {
    "source": _text("source"),
    "src": _text("source"),
    "target": _text("target"),
    "uid": _id("uid"),
    "gid": _id("gid"),
    "mode": _mode,
    "on-update": _on_update,
}
