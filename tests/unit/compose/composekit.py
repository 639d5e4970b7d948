# SPDX-License-Identifier: Apache-2.0
"""Compose files as a test has them: texts by name, in no file system."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from orchestrator.compose.conversion.assembly import stack_of
from orchestrator.compose.project.loader import Loader, Project
from orchestrator.compose.schema.value_kinds import ReadContext
from orchestrator.compose.stack import Stack
from orchestrator.compose.tree import ComposeError, Map, to_python
from orchestrator.model.specs import ServiceSpec

Files = Mapping[str, str] | str
"""Texts by path below the project's folder, the first of them first; or that of `compose.yaml`."""
FOLDER = "/project"


class Given:
    """A project that was read."""

    def __init__(
        self,
        files: Files,
        values: Mapping[str, str] | None = None,
        *,
        named: int = 1,
        profiles: frozenset[str] = frozenset(),
    ) -> None:
        texts = {"compose.yaml": files} if isinstance(files, str) else files
        self._files = {posixpath.join(FOLDER, name): text for name, text in texts.items()}
        self.loader = Loader(self.read, dict(values or {}), "/home/user", profiles=profiles)
        self.document: Map = self.loader.project([*self._files][:named], FOLDER)

    def read(self, path: str) -> bytes:
        try:
            return self._files[path].encode()
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None

    @property
    def notes(self) -> list[str]:
        return self.loader.notes

    def stack(self, name: str = "s") -> Stack:
        reading = ReadContext(FOLDER, "/home/user", self.notes)
        return stack_of(Project(self.document, self.read, self.loader.values), name, reading)


def services(files: Files, *arguments: Any, **options: Any) -> dict[str, Any]:
    """The services of a project, in their long form."""
    found: Any = to_python(Given(files, *arguments, **options).document.section("services"))
    return dict(found)


def service(body: str, *more: str) -> ServiceSpec:
    """The spec of the one service whose keys these are; `more` are further sections."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    image = "" if "image:" in body or "build:" in body else "    image: web:1\n"
    text = f"services:\n  web:\n{image}{lines}\n" + "\n".join(more)
    (only,) = Given(text).stack().services
    return only.spec


def refusal(files: Files, *arguments: Any, **options: Any) -> str:
    """The one line with which a project is refused."""
    try:
        Given(files, *arguments, **options).stack()
    except ComposeError as error:
        text = str(error)
        assert "\n" not in text
        return text.replace(f"{FOLDER}/", "")
    raise AssertionError("it was not refused")
