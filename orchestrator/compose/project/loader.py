# SPDX-License-Identifier: Apache-2.0
"""The loader: several files become one project, by `include`, `extends`, merging and profiles."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from orchestrator.compose.project.variables import Variables, parse_env
from orchestrator.compose.project.yaml_tree import parse
from orchestrator.compose.schema.collection_kinds import settled
from orchestrator.compose.schema.file_keys import FILE
from orchestrator.compose.schema.service_keys import SERVICE
from orchestrator.compose.schema.value_kinds import Reading
from orchestrator.compose.tree import (
    ComposeError,
    Map,
    Node,
    Place,
    Scalar,
    hint,
    plain,
    within,
)

Read = Callable[[str], bytes]
"""The content of a file by its path; raises OSError."""


@dataclass(frozen=True, slots=True)
class Project:
    """A project in its long form, and what the files hold that it names."""

    document: Map
    read: Read
    values: Mapping[str, str]
    """Our environment, for what is made from it."""


SECTIONS = ("services", "networks", "volumes", "secrets", "configs")
_ENV = ".env"


@dataclass(slots=True)
class Loader:
    """What the reading of a project needs from outside, and what it has to say."""

    read: Read
    values: Mapping[str, str]
    """What variables stand for."""
    home: str = "/root"
    interpolate: bool = True
    profiles: frozenset[str] = frozenset()
    """Those that are active; `*` is all."""
    notes: list[str] = field(default_factory=list)
    _trees: dict[str, Map] = field(default_factory=dict)
    """Files as they were parsed."""
    _reading: list[str] = field(default_factory=list)
    """Files whose includes are being read."""

    def text(self, path: str, place: Place | None = None, at: str = "") -> str:
        """A file's text. Raises ComposeError, at the place where it is named."""
        try:
            return self.read(path).decode()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ComposeError(place or Place(path, 0), at, _cannot(path, place, reason)) from None
        except UnicodeError:
            raise ComposeError(
                place or Place(path, 0), at, _cannot(path, place, "it is not UTF-8 text")
            ) from None

    def project(self, files: Sequence[str], folder: str) -> Map:
        """The project that these files are together, with everything in its long form. `folder` is
        what their relative paths begin at. Raises ComposeError."""
        document = self._merged(files, folder, Variables(self.values))
        document = _with_profiles(document, self.profiles)
        if not self.interpolate:
            return document
        services = {
            name: self._with_env_files(cast(Map, service), within("services", name))
            for name, service in document.section("services").entries.items()
        }
        return document.with_entries(
            services=replace(document.section("services"), entries={**services})
        )

    def name(self, files: Sequence[str]) -> str:
        """The project's name by the last of these files that has one; empty if none has. Raises
        ComposeError."""
        found = ""
        for file in files:
            given = self._tree(file).get("name")
            if isinstance(given, Scalar) and not given.is_null:
                text = given.text
                if self.interpolate:
                    text = Variables(self.values).text(text, given.place, "name")
                found = project_name(text)
                if not found:
                    words = f"{text!r} has no letter or digit, with which a name begins"
                    raise ComposeError(given.place, "name", words)
        return found

    def _tree(self, file: str) -> Map:
        if file not in self._trees:
            self._trees[file] = parse(self.text(file), _shown(file))
        return self._trees[file]

    def _merged(self, files: Sequence[str], folder: str, variables: Variables) -> Map:
        document: Node | None = None
        for file in files:
            one = self._file(file, folder, variables)
            document = one if document is None else FILE.merge(document, one)
        for name, place in variables.unset.items():
            self._note(f"{place}: variable {name} is not set; it is empty")
        return _with_contexts(cast(Map, settled(document or Map({}, Place("", 0)))), folder)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _file(self, file: str, folder: str, variables: Variables) -> Map:
        """One file with what it includes, and its services with what they extend."""
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
                words = "which file this is, only its variables say; fill them in"
                raise ComposeError(entry.place, "include", words)
            document = _with_included(document, self._included(entry, variables))
        self._reading.pop()
        return document.without("include")

    def _document(self, file: str, folder: str, variables: Variables) -> Map:
        tree: Node = self._tree(file)
        if self.interpolate:
            tree = variables.filled(tree)
        reading = Reading(folder, self.home, self.notes, raw=not self.interpolate)
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
                found = parse_env(text, _shown(file), {**values, **variables.values})
                values |= {k: v for k, v in found.items() if v is not None}
        for path in paths:
            if path in self._reading:
                chain = (*self._reading[self._reading.index(path) :], path)
                words = f"files include each other in a circle: {' -> '.join(map(_shown, chain))}"
                raise ComposeError(entry.place, "include", words)
            self.text(path, entry.place, "include")  # refused where it is named, not where it is
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
        """A service with what it extends, of this file or another, in it."""
        service = document.section("services").entries[name]
        if not isinstance(service, Map) or not isinstance(extends := service.get("extends"), Map):
            return service
        at = within("services", f"{name}.extends")
        if (file, name) in chain:
            raise ComposeError(extends.place, at, "this service extends itself")
        wanted, other = extends.text("service"), extends.text("file")
        if other and other != file:
            self.text(other, extends.place, at)
            folder, file = posixpath.dirname(other), other
            document = self._document(other, folder, variables)
        known = document.section("services").entries
        if wanted not in known:
            words = f"there is no service '{wanted}' in {_shown(file)}; {hint(wanted, known)}"
            raise ComposeError(extends.place, at, words)
        links = (*chain, (file if not other else extends.place.file, name))
        base = self._extended(document, wanted, file, folder, variables, links)
        return SERVICE.merge(base, service.without("extends"))

    def _with_env_files(self, service: Map, at: str) -> Map:
        """The service with the variables and labels that its files hold."""
        environment: dict[str, Node] = {}
        for index, each in enumerate(service.items_of("env_file")):
            entry, where = cast(Map, each), within(f"{at}.env_file", index)
            path = entry.text("path")
            if entry.text("required") == "false" and not self._exists(path):
                continue
            text = self.text(path, entry.place, where)
            raw = entry.text("format") == "raw"
            earlier = {key: cast(Scalar, value).text for key, value in environment.items()}
            found = parse_env(text, _shown(path), {**earlier, **self.values}, raw=raw)
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
            for name, label in parse_env(text, _shown(path), {}).items():
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
            known = {k: v for k, v in self._resolved(args).items() if plain(v) is not None}
            made = build.with_entries(args=Map(known, build.place_of("args")))
            service = service.with_entries(build=made)
        return service

    def _resolved(self, entries: Mapping[str, Node]) -> dict[str, Node]:
        """Variables by name, those without a value with that of our environment if it has one."""
        found = dict(entries)
        for name, value in entries.items():
            own = self.values.get(name)
            if isinstance(value, Scalar) and value.is_null and own is not None:
                found[name] = Scalar(own, value.place, False)
        return found


def project_name(text: str) -> str:
    """The name of a project that a text stands for, as Compose makes it: in small letters, and
    nothing but letters, digits, `-` and `_`."""
    return re.sub("[^a-z0-9_-]", "", text.lower()).lstrip("_-")


def _cannot(path: str, place: Place | None, reason: str) -> str:
    """The place itself names the file that the user gave."""
    return f"cannot read {_shown(path)}: {reason}" if place else f"cannot be read: {reason}"


def _shown(path: str) -> str:
    """A path as short as the user may have written it."""
    relative = posixpath.relpath(path) if path.startswith("/") else path
    return path if relative.startswith("..") else relative


def _with_included(document: Map, included: Map) -> Map:
    """What a file includes goes beside what it has; no name may be in both."""
    for section in SECTIONS:
        own, theirs = document.section(section), included.section(section)
        for name, value in theirs.entries.items():
            mine = own.get(name)
            if mine is not None and plain(mine) != plain(value):
                raise ComposeError(
                    mine.place,
                    within(section, name),
                    f"{value.place} has it too, which is included; rename one of them",
                )
        if theirs.entries:
            together = replace(own, entries={**theirs.entries, **own.entries})
            document = document.with_entries(**{section: together})
    return document


def _with_contexts(document: Map, folder: str) -> Map:
    """With the project's folder as the context of builds that name none."""
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
    """Without the services whose profiles are not active, and without the optional dependencies on
    what is not there. Raises ComposeError for other dependencies on it."""
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
            at = within("services", f"{name}.depends_on.{other}")
            optional = isinstance(dependency, Map) and dependency.text("required") == "false"
            if other in kept:
                there[other] = _condition(dependency)
            elif other in services and optional:
                continue
            elif other in services:
                profiles = ", ".join(cast(Map, services[other]).texts("profiles"))
                words = f"service '{other}' is of profile {profiles}; activate it with --profile"
                raise ComposeError(dependency.place, at, words)
            else:
                words = f"there is no service '{other}'; {hint(other, services)}"
                raise ComposeError(dependency.place, at, words)
        for key in ("links", "volumes_from"):
            for index, text in enumerate(service.texts(key)):
                other = text.partition(":")[0]
                if other not in kept:
                    words = f"there is no service '{other}'; {hint(other, kept)}"
                    where = within(f"services.{name}.{key}", index)
                    raise ComposeError(service.items_of(key)[index].place, where, words)
        if needs.entries != there:
            kept[name] = service.with_entries(depends_on=replace(needs, entries=there))
    section = replace(document.section("services"), entries=kept)
    return document.with_entries(services=section)


def _condition(dependency: Node) -> Node:
    """A dependency with what it does not say."""
    if not isinstance(dependency, Map):
        return dependency
    usual: dict[str, Node] = {
        "condition": Scalar("service_started", dependency.place, False),
        "required": Scalar("true", dependency.place),
    }
    return replace(dependency, entries={**usual, **dependency.entries})
