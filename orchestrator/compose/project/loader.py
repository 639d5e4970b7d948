# SPDX-License-Identifier: Apache-2.0
"""The loader: reads several files into one project: `include`, `extends`, merging, profiles."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from orchestrator.compose.project.variables import Variables, parse_env
from orchestrator.compose.project.yaml_tree import parse
from orchestrator.compose.schema.collection_kinds import without_tags
from orchestrator.compose.schema.file_keys import FILE
from orchestrator.compose.schema.service_keys import SERVICE
from orchestrator.compose.schema.value_kinds import ReadContext
from orchestrator.compose.tree import (
    ComposeError,
    Map,
    Node,
    Place,
    Scalar,
    hint,
    key_path,
    to_python,
)

Read = Callable[[str], bytes]
"""The content of a file by its path; raises OSError."""


@dataclass(frozen=True, slots=True)
class Project:
    """A project in its long form, with access to the files that it refers to."""

    document: Map
    read: Read
    values: Mapping[str, str]
    """Variables of the environment, for secrets and configs made from them."""


SECTIONS = ("services", "networks", "volumes", "secrets", "configs")
_ENV = ".env"


@dataclass(slots=True)
class Loader:
    """Reads a project with injected file access and environment, and collects notes."""

    read: Read
    values: Mapping[str, str]
    """The values of variables."""
    home: str = "/root"
    interpolate: bool = True
    profiles: frozenset[str] = frozenset()
    """Active profiles; `*` activates all."""
    notes: list[str] = field(default_factory=list)
    _trees: dict[str, Map] = field(default_factory=dict)
    """Parsed files."""
    _reading: list[str] = field(default_factory=list)
    """Stack of files whose includes are being read."""

    def text(self, path: str, place: Place | None = None, at: str = "") -> str:
        """A file's text. Raises ComposeError at the position that refers to it."""
        try:
            return self.read(path).decode()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ComposeError(
                place or Place(path, 0), at, _read_error(path, place, reason)
            ) from None
        except UnicodeError:
            raise ComposeError(
                place or Place(path, 0), at, _read_error(path, place, "it is not UTF-8 text")
            ) from None

    def project(self, files: Sequence[str], folder: str) -> Map:
        """The merged project of these files, in its long form. `folder` is the base of their
        relative paths. Raises ComposeError."""
        document = self._merged(files, folder, Variables(self.values))
        document = _with_profiles(document, self.profiles)
        if not self.interpolate:
            return document
        services = {
            name: self._with_env_files(cast(Map, service), key_path("services", name))
            for name, service in document.section("services").entries.items()
        }
        return document.with_entries(
            services=replace(document.section("services"), entries={**services})
        )

    def name(self, files: Sequence[str]) -> str:
        """The project's name from the last file that has one, else empty. Raises ComposeError."""
        found = ""
        for file in files:
            given = self._tree(file).get("name")
            if isinstance(given, Scalar) and not given.is_null:
                text = given.text
                if self.interpolate:
                    text = Variables(self.values).text(text, given.place, "name")
                found = project_name(text)
                if not found:
                    message = f"{text!r} is not a valid name: it has no letter or digit"
                    raise ComposeError(given.place, "name", message)
        return found

    def _tree(self, file: str) -> Map:
        if file not in self._trees:
            self._trees[file] = parse(self.text(file), _display_path(file))
        return self._trees[file]

    def _merged(self, files: Sequence[str], folder: str, variables: Variables) -> Map:
        document: Node | None = None
        for file in files:
            one = self._file(file, folder, variables)
            document = one if document is None else FILE.merge(document, one)
        for name, place in variables.unset.items():
            self._note(f"{place}: variable {name} is not set; using an empty string")
        return _with_contexts(cast(Map, without_tags(document or Map({}, Place("", 0)))), folder)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _file(self, file: str, folder: str, variables: Variables) -> Map:
        """A file with its includes merged and `extends` of its services resolved."""
        self._reading.append(file)
        document = self._document(file, folder, variables)
        services = document.section("services").entries
        extended = {
            name: self._extended(document, name, file, folder, variables, ()) for name in services
        }
        if services:
            document = document.with_entries(
                services=replace(document.section("services"), entries={**extended})
            )
        for entry in document.items_of("include"):
            if not isinstance(entry, Map):
                message = "the path contains variables, which are not interpolated"
                raise ComposeError(entry.place, "include", message)
            document = _with_included(document, self._included(entry, variables))
        self._reading.pop()
        return document.without("include")

    def _document(self, file: str, folder: str, variables: Variables) -> Map:
        tree: Node = self._tree(file)
        if self.interpolate:
            tree = variables.filled(tree)
        reading = ReadContext(folder, self.home, self.notes, raw=not self.interpolate)
        return cast(Map, FILE.read(tree, "", reading))

    def _included(self, entry: Map, variables: Variables) -> Map:
        paths = entry.texts("path")
        if not paths:
            raise ComposeError(entry.place, "include", "path is missing")
        folder = entry.text("project_directory") or posixpath.dirname(paths[0])
        named = entry.texts("env_file")
        values: dict[str, str] = {}
        for file in named or (posixpath.join(folder, _ENV),):
            if named or self._exists(file):
                text = self.text(file, entry.place, "include")
                found = parse_env(text, _display_path(file), {**values, **variables.values})
                values |= {k: v for k, v in found.items() if v is not None}
        for path in paths:
            if path in self._reading:
                chain = (*self._reading[self._reading.index(path) :], path)
                message = f"include cycle: {' -> '.join(map(_display_path, chain))}"
                raise ComposeError(entry.place, "include", message)
            self.text(path, entry.place, "include")  # an error is located where the file is named
        return self._merged(paths, folder, Variables({**values, **variables.values}))

    def _exists(self, file: str) -> bool:
        try:
            self.read(file)
        except OSError:
            return False
        return True

    def _extended(
        self,
        document: Map,
        name: str,
        file: str,
        folder: str,
        variables: Variables,
        chain: tuple[tuple[str, str], ...],
    ) -> Node:
        """A service merged over the one that it extends, in this file or another."""
        service = document.section("services").entries[name]
        if not isinstance(service, Map) or not isinstance(extends := service.get("extends"), Map):
            return service
        at = key_path("services", f"{name}.extends")
        if (file, name) in chain:
            raise ComposeError(extends.place, at, "this service extends itself")
        wanted, other = extends.text("service"), extends.text("file")
        if other and other != file:
            self.text(other, extends.place, at)
            folder, file = posixpath.dirname(other), other
            document = self._document(other, folder, variables)
        known = document.section("services").entries
        if wanted not in known:
            message = (
                f"service '{wanted}' not found in {_display_path(file)}; {hint(wanted, known)}"
            )
            raise ComposeError(extends.place, at, message)
        links = (*chain, (file if not other else extends.place.file, name))
        base = self._extended(document, wanted, file, folder, variables, links)
        return SERVICE.merge(base, service.without("extends"))

    def _with_env_files(self, service: Map, at: str) -> Map:
        """The service with the variables of its env files and the labels of its label files."""
        environment: dict[str, Node] = {}
        for index, each in enumerate(service.items_of("env_file")):
            entry, where = cast(Map, each), key_path(f"{at}.env_file", index)
            path = entry.text("path")
            if entry.text("required") == "false" and not self._exists(path):
                continue
            text = self.text(path, entry.place, where)
            raw = entry.text("format") == "raw"
            earlier = {key: cast(Scalar, value).text for key, value in environment.items()}
            found = parse_env(text, _display_path(path), {**earlier, **self.values}, raw=raw)
            for name, given in found.items():
                value = self.values.get(name) if given is None else given
                if value is not None:
                    environment[name] = Scalar(value, entry.place, False)
        environment |= service.section("environment").entries
        resolved = self._resolved(environment)
        labels: dict[str, Node] = {}
        for path in service.texts("label_file"):
            place = service.place_of("label_file")
            text = self.text(path, place, f"{at}.label_file")
            for name, label in parse_env(text, _display_path(path), {}).items():
                if label is not None:
                    labels[name] = Scalar(label, place, False)
        labels |= service.section("labels").entries
        service = service.without("env_file", "label_file")
        if resolved or service.get("environment"):
            place = service.place_of("environment")
            service = service.with_entries(environment=Map(resolved, place))
        if labels:
            service = service.with_entries(labels=Map(labels, service.place_of("labels")))
        build = service.section("build")
        if args := build.section("args").entries:
            known = {k: v for k, v in self._resolved(args).items() if to_python(v) is not None}
            made = build.with_entries(args=Map(known, build.place_of("args")))
            service = service.with_entries(build=made)
        return service

    def _resolved(self, entries: Mapping[str, Node]) -> dict[str, Node]:
        """Variables by name; those without a value take it from the environment, if set."""
        found = dict(entries)
        for name, value in entries.items():
            own = self.values.get(name)
            if isinstance(value, Scalar) and value.is_null and own is not None:
                found[name] = Scalar(own, value.place, False)
        return found


def project_name(text: str) -> str:
    """A project name as Compose normalizes it: lower case, only letters, digits, `-` and `_`."""
    return re.sub("[^a-z0-9_-]", "", text.lower()).lstrip("_-")


def _read_error(path: str, place: Place | None, reason: str) -> str:
    """The error text; without a referring position, the error's own position names the file."""
    return f"cannot read {_display_path(path)}: {reason}" if place else f"cannot be read: {reason}"


def _display_path(path: str) -> str:
    """A path relative to the working directory, if it is below it."""
    relative = posixpath.relpath(path) if path.startswith("/") else path
    return path if relative.startswith("..") else relative


def _with_included(document: Map, included: Map) -> Map:
    """A file's sections joined with those of an included file. Raises ComposeError for conflicting
    definitions of a name."""
    for section in SECTIONS:
        own, theirs = document.section(section), included.section(section)
        for name, value in theirs.entries.items():
            mine = own.get(name)
            if mine is not None and to_python(mine) != to_python(value):
                raise ComposeError(
                    mine.place,
                    key_path(section, name),
                    f"conflicts with the included definition at {value.place}; rename one of them",
                )
        if theirs.entries:
            together = replace(own, entries={**theirs.entries, **own.entries})
            document = document.with_entries(**{section: together})
    return document


def _with_contexts(document: Map, folder: str) -> Map:
    """The document with the project's folder as the default build context."""
    services = dict(document.section("services").entries)
    for name, service in services.items():
        if not isinstance(service, Map) or not isinstance(build := service.get("build"), Map):
            continue
        if build.get("context") is None:
            context = Scalar(folder, build.place, False)
            services[name] = service.with_entries(build=build.with_entries(context=context))
    if not services:
        return document
    return document.with_entries(services=replace(document.section("services"), entries=services))


def _with_profiles(document: Map, active: frozenset[str]) -> Map:
    """The document without services of inactive profiles and without optional dependencies on
    them. Raises ComposeError for required dependencies on them and for unknown services."""
    services = document.section("services").entries
    kept: dict[str, Node] = {
        name: service
        for name, service in services.items()
        if isinstance(service, Map)
        and (
            "*" in active or not service.texts("profiles") or active & {*service.texts("profiles")}
        )
    }
    for name, service in kept.items():
        assert isinstance(service, Map)
        needs = service.section("depends_on")
        there: dict[str, Node] = {}
        for other, dependency in needs.entries.items():
            at = key_path("services", f"{name}.depends_on.{other}")
            optional = isinstance(dependency, Map) and dependency.text("required") == "false"
            if other in kept:
                there[other] = _condition(dependency)
            elif other in services and optional:
                continue
            elif other in services:
                profiles = ", ".join(cast(Map, services[other]).texts("profiles"))
                message = f"service '{other}' is in profile {profiles}; activate it with --profile"
                raise ComposeError(dependency.place, at, message)
            else:
                message = f"service '{other}' not found; {hint(other, services)}"
                raise ComposeError(dependency.place, at, message)
        for key in ("links", "volumes_from"):
            for index, text in enumerate(service.texts(key)):
                other = text.partition(":")[0]
                if other not in kept:
                    message = f"service '{other}' not found; {hint(other, kept)}"
                    where = key_path(f"services.{name}.{key}", index)
                    raise ComposeError(service.items_of(key)[index].place, where, message)
        if needs.entries != there:
            kept[name] = service.with_entries(depends_on=replace(needs, entries=there))
    section = replace(document.section("services"), entries=kept)
    return document.with_entries(services=section)


def _condition(dependency: Node) -> Node:
    """A dependency with defaults filled in."""
    if not isinstance(dependency, Map):
        return dependency
    defaults: dict[str, Node] = {
        "condition": Scalar("service_started", dependency.place, False),
        "required": Scalar("true", dependency.place),
    }
    return replace(dependency, entries={**defaults, **dependency.entries})
