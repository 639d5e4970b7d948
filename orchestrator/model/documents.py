# SPDX-License-Identifier: Apache-2.0
"""Secrets and configs: data that the cluster stores and mounts into containers as files.

Both are a `Document`; the difference is that only containers that name a secret can read its
data. A spec names a document by a `FileReference`; which of its versions a service or a
task has is written beside the spec (`Service.documents`, `Task.documents`), as a user's spec is
never edited.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from orchestrator.model.extensible import Extensible
from orchestrator.model.signals import signal_number

SECRETS_FOLDER = "/run/secrets"
"""Folder of secrets whose reference has no absolute target."""

DEFAULT_MODE = 0o444
"""Permission bits of a file whose reference says none."""

KEPT_VERSIONS = 10
"""The newest versions of a document that are kept for a rollback, as a service keeps specs."""

TEMPLATE_DRIVERS = ("golang",)
"""Template drivers of documents; empty: the data is no template."""

_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9])?")


class DocumentKind(IntEnum):
    """What a document is."""

    SECRET = 0
    CONFIG = 1

    @property
    def word(self) -> str:
        """The word for users."""
        return self.name.lower()

    @property
    def limit(self) -> int:
        """Maximum bytes of its data (Docker's limits)."""
        return (500 if self is DocumentKind.SECRET else 1000) << 10


class OnUpdate(IntEnum):
    """Effect of a new version of a document on the containers that have it."""

    ROLL = 0
    """The service's tasks are replaced, as by an update of the service."""
    SIGNAL = 1
    """The file is replaced in the running containers, and their first processes get a signal."""
    NONE = 2
    """No effect; tasks get it with the service's next update."""


@dataclass(frozen=True, slots=True)
class FileReference(Extensible):
    """A secret or config that is mounted into a container as a file."""

    source: str = ""
    """Name of the secret or config."""
    target: str = ""
    """Path in the container: absolute, or below /run/secrets for a secret and / for a config;
    empty: the name."""
    uid: int = 0
    """Owner, in the container's own ids."""
    gid: int = 0
    mode: int = 0
    """Permission bits; 0: 0444."""
    on_update: OnUpdate = OnUpdate.ROLL
    signal: str = ""
    """With SIGNAL: the signal; empty: SIGHUP."""

    def path(self, kind: DocumentKind) -> str:
        """The absolute path in the container."""
        base = SECRETS_FOLDER if kind is DocumentKind.SECRET else "/"
        return posixpath.normpath(posixpath.join(base, self.target or self.source))

    @property
    def signal_number(self) -> int:
        """The signal's number; 0: none."""
        if self.on_update is not OnUpdate.SIGNAL:
            return 0
        return signal_number(self.signal or "SIGHUP")


@dataclass(frozen=True, slots=True)
class Document(Extensible):
    """A secret or config without its data, which the store has sealed, by version."""

    id: str = ""
    kind: DocumentKind = DocumentKind.SECRET
    name: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)
    version: int = 1
    """The newest version; numbers are never reused."""
    kept: tuple[int, ...] = ()
    """The versions whose data is kept, ascending."""
    template_driver: str = ""
    """One of TEMPLATE_DRIVERS: the data is a template that each task's values are filled into."""
    removing: bool = False
    """It is being removed: new users are rejected."""
    remove_when_unused: bool = False
    """A tombstone: a manager removes it when the last task of a removed service has stopped."""
    revision: int = 0


class HasFiles(Protocol):
    """The part of `ContainerSpec` that references need."""

    @property
    def secrets(self) -> tuple[FileReference, ...]: ...

    @property
    def configs(self) -> tuple[FileReference, ...]: ...


def references(spec: HasFiles) -> Iterator[tuple[DocumentKind, FileReference]]:
    """All references of a container, secrets first."""
    for secret in spec.secrets:
        yield DocumentKind.SECRET, secret
    for config in spec.configs:
        yield DocumentKind.CONFIG, config


def check_document_name(kind: DocumentKind, name: str) -> None:
    """Raise ValueError for an invalid name of a secret or config, by Docker's rules."""
    if not name:
        raise ValueError(f"the {kind.word} has no name")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{kind.word} name {name[:70]!r} is not valid; use letters, digits, '-', '_' and '.', "
            "with a letter or digit at both ends, at most 64"
        )


def check_data(kind: DocumentKind, name: str, data: bytes, template_driver: str = "") -> None:
    """Raise ValueError for data that is too large, or an invalid template. The message reveals
    nothing of the data."""
    if not data:
        raise ValueError(f"{kind.word} '{name}' would be empty; give it data")
    if len(data) > kind.limit:
        raise ValueError(
            f"{kind.word} '{name}' has {len(data)} bytes; {kind.limit >> 10} KiB are the most"
        )
    if template_driver not in ("", *TEMPLATE_DRIVERS):
        raise ValueError(
            f"template driver {template_driver!r} is unknown; {', '.join(TEMPLATE_DRIVERS)} is "
            "there"
        )


def check_references(spec: HasFiles, mounted: Iterable[str] = ()) -> None:
    """Raise ValueError for invalid references, regardless of the cluster; `mounted` are the targets
    of the container's mounts."""
    taken = {posixpath.normpath(target): "a mount" for target in mounted}
    modes: dict[tuple[DocumentKind, str], tuple[OnUpdate, int]] = {}
    for kind, each in references(spec):
        what = f"{kind.word} '{each.source}'"
        check_document_name(kind, each.source)
        _check_reference(what, each)
        path = each.path(kind)
        if path == "/" or "\0" in path or any(c in path for c in "\n\r"):
            raise ValueError(f"{what} has the target {each.target!r}, which is no file's path")
        if (other := taken.get(path)) is not None:
            raise ValueError(f"{what} and {other} have the target {path}; each path can be one")
        taken[path] = what
        mode = each.on_update, each.signal_number
        if modes.setdefault((kind, each.source), mode) != mode:
            raise ValueError(
                f"{what} is named twice with different on-update; say the same of both"
            )


def _check_reference(what: str, each: FileReference) -> None:
    for name, number in (("uid", each.uid), ("gid", each.gid)):
        if not 0 <= number < 1 << 31:
            raise ValueError(f"{what} has the {name} {number}, which is no id")
    if not 0 <= each.mode <= 0o777:
        raise ValueError(f"{what} has the mode {each.mode:o}, which is not permission bits (0444)")
    if each.signal and each.on_update is not OnUpdate.SIGNAL:
        raise ValueError(f"{what} names a signal, but is not updated by one; on-update=signal:HUP")
    try:
        each.signal_number  # noqa: B018
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
