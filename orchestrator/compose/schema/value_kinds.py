# SPDX-License-Identifier: Apache-2.0
"""Kinds of values: what a key may hold, as data that the schema is made of.

A kind does two things. `read` checks a value and brings it into the one form that the rest works
with: the long one. `merge` combines a value with that of a later file, by the
specification's rules (https://github.com/compose-spec/compose-spec/blob/main/13-merge.md).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Protocol

from orchestrator.compose.schema.command_lines import split
from orchestrator.compose.tree import (
    BOOLEANS,
    ComposeError,
    List,
    Map,
    Node,
    Place,
    Scalar,
    describe,
    hint,
    key_path,
    text_of,
    value_of,
)
from orchestrator.model.formats.build_contexts import remote_context


@dataclass(frozen=True, slots=True)
class ReadContext:
    """Context in which values of a file are read; collects notes for the user."""

    folder: str
    """Absolute base folder of the file's relative paths."""
    home: str = "/root"
    """The folder that `~` stands for."""
    notes: list[str] = field(default_factory=list)
    """Ignored settings, one line each."""
    raw: bool = False
    """Variables are not interpolated: a value that contains one may have any type."""

    def note(self, place: Place, at: str, message: str) -> None:
        text = f"{place}: {at}: {message}"
        if text not in self.notes:
            self.notes.append(text)

    def is_open(self, text: str) -> bool:
        """Whether a text contains variables that are not interpolated."""
        return self.raw and "$" in text

    def path(self, text: str) -> str:
        """An absolute path."""
        if text == "~" or text.startswith("~/"):
            text = self.home + text[1:]
        return posixpath.normpath(posixpath.join(self.folder, text))


class Kind(Protocol):
    """The type of a value in the schema."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        """Validate a value and return its long form; None if it counts as absent. Raises
        ComposeError."""

    def merge(self, old: Node, new: Node) -> Node:
        """Merge a later file's value into an earlier one; both are in their long form."""


def with_tag_of(node: Node, made: Node) -> Node:
    """`made` with the tag of the node that it was made from."""
    return replace(made, tag=node.tag) if node.tag else made


def empty_item(place: Place, at: str) -> ComposeError:
    """The error for a list item that is null."""
    return ComposeError(place, at, "the item is empty; leave it out")


def scalar_of(node: Node, at: str, wanted: str) -> Scalar:
    """The node, if it is a scalar. Raises ComposeError, which names the type that is `wanted`."""
    if isinstance(node, Scalar):
        return node
    raise ComposeError(node.place, at, f"expected {wanted}, got {describe(node)}")


NUMBER: tuple[type, ...] = (int, float)


def number_of(scalar: Scalar) -> float | int | None:
    """A scalar's number; quoted ones and those from variables are decimal. None if it is not a
    number."""
    value = value_of(scalar)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if isfinite(value) else None
    try:
        return int(scalar.text)
    except ValueError:
        pass
    try:
        number = float(scalar.text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def check_text(scalar: Scalar, at: str, also: tuple[type, ...] = ()) -> None:
    """Raises ComposeError for a number or boolean where the specification wants a string; types in
    `also` are accepted."""
    value = value_of(scalar)
    if scalar.given or value is None or type(value) in (str, *also):
        return
    kind = "a boolean" if isinstance(value, bool) else "a number"
    message = f'expected a string, got {kind}; quote it: "{scalar.text}"'
    raise ComposeError(scalar.place, at, message)


class _LastWins:
    """Merges by replacement: the later value wins."""

    def merge(self, old: Node, new: Node) -> Node:
        return new


@dataclass(frozen=True, slots=True)
class Text(_LastWins):
    """A string; `check` raises ValueError for an invalid one."""

    check: Callable[[str], object] = str
    wanted: str = "a string"
    also: tuple[type, ...] = ()
    """Other accepted types: `NUMBER`, bool."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        scalar = scalar_of(node, at, self.wanted)
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.is_open(scalar.text):
            return replace(scalar, plain=False)
        text = text_of(scalar) if self.also else scalar.text
        try:
            self.check(text)
        except ValueError as error:
            raise ComposeError(scalar.place, at, str(error)) from None
        check_text(scalar, at, self.also)
        # A negative number is kept as one: Compose rejects the quoted form as a size.
        negative = self.also == NUMBER and scalar.plain and text.startswith("-")
        return replace(scalar, text=text, plain=negative)


@dataclass(frozen=True, slots=True)
class AnyMap(_LastWins):
    """A map with any content."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if isinstance(node, Map) or (isinstance(node, Scalar) and node.is_null):
            return node
        raise ComposeError(node.place, at, f"expected a map, got {describe(node)}")


@dataclass(frozen=True, slots=True)
class Path(_LastWins):
    """A file or folder of this machine; becomes absolute."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        scalar = scalar_of(node, at, "a path")
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.is_open(scalar.text):
            return replace(scalar, plain=False)
        check_text(scalar, at)
        try:
            return replace(scalar, text=self.where(scalar.text, reading), plain=False)
        except ValueError as error:
            raise ComposeError(scalar.place, at, str(error)) from None

    def where(self, text: str, reading: ReadContext) -> str:
        """The long form of a path."""
        return reading.path(text)


@dataclass(frozen=True, slots=True)
class BuildContext(Path):
    """A folder of this machine or the URL of a build context."""

    def where(self, text: str, reading: ReadContext) -> str:
        return context_path(text, reading)


def context_path(text: str, reading: ReadContext) -> str:
    """The long form of a build context: a URL as written, a folder absolute. Raises ValueError."""
    return reading.path(text) if remote_context(text) is None else text


@dataclass(frozen=True, slots=True)
class Number(_LastWins):
    """A number from `least` to `most`."""

    least: float = 0
    whole: bool = True
    most: float = float("inf")

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        wanted = "a whole number" if self.whole else "a number"
        scalar = scalar_of(node, at, wanted)
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.is_open(scalar.text):
            return replace(scalar, plain=False)
        number = number_of(scalar)
        if number is None or (self.whole and number != int(number)):
            raise ComposeError(scalar.place, at, f"{scalar.text!r} is not {wanted}")
        if not self.least <= number <= self.most:
            bound = f"{self.least:g} or more"
            if self.most < float("inf"):
                bound = f"from {self.least:g} to {self.most:g}"
            raise ComposeError(scalar.place, at, f"{scalar.text} is out of range: {bound}")
        text = str(int(number)) if self.whole else repr(number)
        return replace(scalar, text=text, plain=True, given=False)


@dataclass(frozen=True, slots=True)
class FileMode(_LastWins):
    """Permission bits: a number, octal if it begins with 0, or quoted octal digits."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        scalar = scalar_of(node, at, "permission bits")
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.is_open(scalar.text):
            return replace(scalar, plain=False)
        value = value_of(scalar)
        if isinstance(value, str):
            try:
                value = int(value.removeprefix("0o"), 8)
            except ValueError:
                value = -1.0
        if isinstance(value, bool) or value is None or value != int(value) or not 0 <= value < 4096:
            message = f"{scalar.text!r} is not an octal number of permission bits, such as 0440"
            raise ComposeError(scalar.place, at, message)
        if scalar.plain and scalar.text[:1] in "123456789":
            message = f"{scalar.text} is decimal, {value:04o} in octal; octal numbers begin with 0"
            reading.note(scalar.place, at, message)
        return replace(scalar, text=str(int(value)), plain=True, given=False)


@dataclass(frozen=True, slots=True)
class Boolean(_LastWins):
    """A boolean."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        scalar = scalar_of(node, at, "true or false")
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.is_open(scalar.text):
            return replace(scalar, plain=False)
        truth = BOOLEANS.get(scalar.text.lower())
        if truth is None:
            raise ComposeError(
                scalar.place, at, f"{scalar.text!r} is not a boolean; write true or false"
            )
        return replace(scalar, text="true" if truth else "false", plain=True, given=False)


@dataclass(frozen=True, slots=True)
class External(Boolean):
    """Whether an object exists outside of this stack. `{name: NAME}` is the deprecated form of
    `external: true` and `name: NAME`, into which `with_external_name` converts it."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if not isinstance(node, Map):
            return Boolean.read(self, node, at, reading)
        for key, value in node.entries.items():
            if key != "name" and not key.startswith("x-"):
                raise ComposeError(
                    value.place, key_path(at, key), "unknown key; did you mean 'name'?"
                )
            scalar_of(value, key_path(at, key), "a string")
        return node


def with_external_name(section: Map, at: str, reading: ReadContext) -> Map:
    """A network, volume, secret or config with the deprecated form of `external` converted. Raises
    ComposeError."""
    external = section.get("external")
    if not isinstance(external, Map):
        return section
    name, own = external.text("name"), section.text("name")
    if name and own and name != own:
        message = f"{name} conflicts with name: {own}; leave one out"
        raise ComposeError(external.place, key_path(at, "external.name"), message)
    truth = Scalar("true", external.place)
    section = section.with_entries(external=truth)
    return section.with_entries(name=Scalar(name, external.place, False)) if name else section


@dataclass(frozen=True, slots=True)
class Choice(_LastWins):
    """One of several words. `unsupported` maps words of the specification to the reason why they
    are not supported."""

    words: tuple[str, ...]
    unsupported: Mapping[str, str] = field(default_factory=dict)

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        scalar = scalar_of(node, at, f"one of {', '.join(self.words)}")
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.is_open(scalar.text):
            return replace(scalar, plain=False)
        if scalar.text in self.unsupported:
            message = f"{scalar.text} is not supported: {self.unsupported[scalar.text]}"
            raise ComposeError(scalar.place, at, message)
        if scalar.text not in self.words:
            message = f"{scalar.text!r} is unknown; {hint(scalar.text, self.words)}"
            raise ComposeError(scalar.place, at, message)
        return replace(scalar, plain=False)


@dataclass(frozen=True, slots=True)
class Command(_LastWins):
    """A command: a list of words, or a string that is split into words."""

    shell: bool = False
    """A string is a shell command of a health check and is not split."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if isinstance(node, Scalar):
            if node.is_null:
                return node  # it replaces an earlier file's command
            if not reading.is_open(node.text):
                check_text(node, at)
            if self.shell:
                texts = ["CMD-SHELL", node.text]
            else:
                try:
                    found = split(node.text)
                except ValueError as error:
                    message = f"{node.text!r} cannot be split into words: {error}"
                    raise ComposeError(node.place, at, message) from None
                texts = found.words
                if found.ignored:
                    message = (
                        f"{found.ignored!r} is ignored, as in Compose: no shell runs this line"
                    )
                    reading.note(node.place, at, f"{message}; write [sh, -c, …]")
            items = tuple(Scalar(text, node.place, False) for text in texts)
            return with_tag_of(node, List(items, node.place))
        if isinstance(node, Map):
            raise ComposeError(node.place, at, "expected a string or a list, got a map")
        words_of = []
        for index, item in enumerate(node.items):
            scalar = scalar_of(item, key_path(at, index), "a string")
            if scalar.is_null:
                raise empty_item(scalar.place, key_path(at, index))
            check_text(scalar, key_path(at, index))
            words_of.append(replace(scalar, plain=False))
        return List(tuple(words_of), node.place, node.tag)


@dataclass(frozen=True, slots=True)
class Unsupported(_LastWins):
    """An unsupported key of the specification; the message says why or what to do instead.
    `harmless` values are accepted, since they match Orc's behaviour."""

    message: str
    harmless: tuple[str, ...] = ()

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if isinstance(node, Scalar) and node.text.lower() in self.harmless:
            truth = node.plain and node.text.lower() in BOOLEANS
            return replace(node, text=node.text.lower(), plain=truth, given=False)
        if isinstance(node, Scalar) and node.is_null:
            return None
        if isinstance(node, List | Map) and not (
            node.items if isinstance(node, List) else node.entries
        ):
            return None
        raise ComposeError(node.place, at, self.message)


@dataclass(frozen=True, slots=True)
class Ignored:
    """A key of the specification without effect in a cluster. With a message, its use is noted. The
    value is validated by `shape` and kept for other readers of the file."""

    shape: Kind
    message: str = ""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        read = self.shape.read(node, at, reading)
        if self.message:
            reading.note(node.place, at, self.message)
        return read

    def merge(self, old: Node, new: Node) -> Node:
        return self.shape.merge(old, new)
