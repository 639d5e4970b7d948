"""The `secrets` and `configs` of a file, and what they hold."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import cast

from orchestrator.compose.mountspec import octal
from orchestrator.compose.project import Project
from orchestrator.compose.stack import StackFile, StackGrant
from orchestrator.compose.tree import ComposeError, Map, hint, within
from orchestrator.model.specs import STACK_LABEL

_FOLDERS = {"secrets": "/run/secrets/", "configs": "/"}
"""Where a file is whose target is no absolute path."""
_SOURCES = ("file", "environment", "content")


def files_of(project: Project, kind: str, stack: str) -> dict[str, StackFile]:
    """What a section (`secrets` or `configs`) declares, by its keys. Raises ComposeError."""
    return {
        key: _file(project, kind, key, cast(Map, each), stack)
        for key, each in project.document.section(kind).entries.items()
    }


def grants_of(
    service: Map, at: str, kind: str, files: Mapping[str, StackFile]
) -> tuple[StackGrant, ...]:
    """What a service has of `secrets` or `configs`; `files` are those that are declared, by their
    keys. Raises ComposeError."""
    found = []
    for index, each in enumerate(service.items_of(kind)):
        entry, where = cast(Map, each), within(f"{at}.{kind}", index)
        source = entry.text("source")
        file = files.get(source)
        if file is None:
            words = f"{kind.removesuffix('s')} {source!r} is not declared; add it under {kind}"
            words += f"; {hint(source, files)}" if files else ""
            raise ComposeError(entry.place, where, words)
        target = entry.text("target") or source
        for key in ("uid", "gid"):
            if not entry.text(key, "0").isdecimal():
                words = f"{entry.text(key)!r} is not the number of a user or group"
                raise ComposeError(entry.place_of(key), within(where, key), words)
        found.append(
            StackGrant(
                file.name,
                posixpath.join(_FOLDERS[kind], target),
                entry.text("uid"),
                entry.text("gid"),
                octal(entry, "mode", where) if entry.get("mode") else 0o444,
            )
        )
    return tuple(found)


def _file(project: Project, kind: str, key: str, section: Map, stack: str) -> StackFile:
    at, word = within(kind, key), kind.removesuffix("s")
    external = section.flag("external")
    name = section.text("name") or (key if external else f"{stack}_{key}")
    given = [source for source in _SOURCES if section.get(source) is not None]
    if external:
        if given:
            words = f"it is external, so {given[0]} is not this stack's to say; leave one out"
            raise ComposeError(section.place_of(given[0]), at, words)
        return StackFile(name, section.place, external=True)
    if len(given) != 1:
        words = f"a {word} has one of {', '.join(_SOURCES)}, or external: true"
        raise ComposeError(section.place, at, words)
    labels = {**section.pairs("labels"), STACK_LABEL: stack}
    content = _content(project, section, given[0], within(at, given[0]))
    return StackFile(name, section.place, False, content, labels)


def _content(project: Project, section: Map, source: str, at: str) -> bytes:
    text, place = section.text(source), section.place_of(source)
    if source == "content":
        return text.encode()
    if source == "environment":
        value = project.values.get(text)
        if value is None:
            raise ComposeError(place, at, f"the environment has no {text}")
        return value.encode()
    try:
        return project.read(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ComposeError(place, at, f"cannot read {text}: {reason}") from None
