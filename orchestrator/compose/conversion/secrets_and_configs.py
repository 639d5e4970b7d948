# SPDX-License-Identifier: Apache-2.0
"""Conversion of a file's `secrets` and `configs`, with their data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from orchestrator.compose.project.loader import Project
from orchestrator.compose.schema.value_kinds import ReadContext
from orchestrator.compose.stack import StackFile
from orchestrator.compose.tree import ComposeError, Map, hint, key_path
from orchestrator.model.documents import (
    DocumentKind,
    FileReference,
    check_data,
    check_document_name,
)
from orchestrator.model.specs import STACK_LABEL

_SOURCES = ("file", "environment", "content")


def files_of(project: Project, kind: str, stack: str, reading: ReadContext) -> dict[str, StackFile]:
    """The declarations of a section (`secrets` or `configs`), by key. Raises ComposeError."""
    return {
        key: _file(project, kind, key, cast(Map, each), stack, reading)
        for key, each in project.document.section(kind).entries.items()
    }


def grants_of(
    service: Map, at: str, kind: str, files: Mapping[str, StackFile]
) -> tuple[FileReference, ...]:
    """A service's references to `secrets` or `configs`. `files` are the declared ones, by key.
    Raises ComposeError."""
    found = []
    for index, each in enumerate(service.items_of(kind)):
        entry, where = cast(Map, each), key_path(f"{at}.{kind}", index)
        source = entry.text("source")
        file = files.get(source)
        if file is None:
            message = f"{kind.removesuffix('s')} {source!r} is not declared; add it under {kind}"
            message += f"; {hint(source, files)}" if files else ""
            raise ComposeError(entry.place, where, message)
        ids = {}
        for key in ("uid", "gid"):
            text = entry.text(key, "0")
            if not text.isdecimal():
                message = f"{text!r} is not a numeric user or group ID"
                raise ComposeError(entry.place_of(key), key_path(where, key), message)
            ids[key] = int(text)
        mode = int(entry.text("mode", "0"))
        # Containers see the name in the compose file, not the one in the cluster.
        target = entry.text("target") or source
        found.append(FileReference(file.name, target, ids["uid"], ids["gid"], mode))
    return tuple(found)


def _file(
    project: Project, kind: str, key: str, section: Map, stack: str, reading: ReadContext
) -> StackFile:
    at, word = key_path(kind, key), kind.removesuffix("s")
    external = section.flag("external")
    name = section.text("name") or (key if external else f"{stack}_{key}")
    given = [source for source in _SOURCES if section.get(source) is not None]
    if external:
        for source in given:
            message = f"ignored: the {word} is external"
            reading.note(section.place_of(source), key_path(at, source), message)
        return StackFile(DocumentKind[word.upper()], name, section.place, external=True)
    if len(given) != 1:
        message = f"a {word} takes exactly one of {', '.join(_SOURCES)}, or external: true"
        raise ComposeError(section.place, at, message)
    labels = {**section.pairs("labels"), STACK_LABEL: stack}
    content = _content(project, section, given[0], key_path(at, given[0]))
    template = section.text("template_driver")
    file = StackFile(
        DocumentKind[word.upper()], name, section.place, False, content, labels, template
    )
    try:
        check_document_name(file.kind, name)
        check_data(file.kind, name, content, template)
    except ValueError as error:
        raise ComposeError(section.place_of(given[0]), key_path(at, given[0]), str(error)) from None
    return file


def _content(project: Project, section: Map, source: str, at: str) -> bytes:
    text, place = section.text(source), section.place_of(source)
    if source == "content":
        return text.encode()
    if source == "environment":
        value = project.values.get(text)
        if value is None:
            raise ComposeError(place, at, f"environment variable {text} is not set")
        return value.encode()
    try:
        return project.read(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ComposeError(place, at, f"cannot read {text}: {reason}") from None
