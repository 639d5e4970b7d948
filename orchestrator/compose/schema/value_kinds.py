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
    TRUTHS,
    ComposeError,
    List,
    Map,
    Node,
    Place,
    Scalar,
    hint,
    text_of,
    value_of,
    what,
    within,
)
from orchestrator.model.formats.build_contexts import remote_context


@dataclass(frozen=True, slots=True)
class Reading:
    """What the reading of a file needs to know, and whom it tells."""

    folder: str
    """Absolute; what the file's relative paths begin at."""
    home: str = "/root"
    """What `~` stands for."""
    notes: list[str] = field(default_factory=list)
    """What makes no difference here, a line each."""
    raw: bool = False
    """Variables stay as they are: what has one may yet be anything."""

    def note(self, place: Place, at: str, words: str) -> None:
        text = f"{place}: {at}: {words}"
        if text not in self.notes:
            self.notes.append(text)

    def open(self, text: str) -> bool:
        """Whether it is not known yet what a text is."""
        return self.raw and "$" in text

    def path(self, text: str) -> str:
        """An absolute path."""
        if text == "~" or text.startswith("~/"):
            text = self.home + text[1:]
        return posixpath.normpath(posixpath.join(self.folder, text))


class Kind(Protocol):
    """What a value may be."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        """The value in its long form; None is as if it were not there. Raises ComposeError."""

    def merge(self, old: Node, new: Node) -> Node:
        """What two values of this kind are together, both in their long form."""


def tagged(node: Node, made: Node) -> Node:
    """What was made of a node, with its tag."""
    return replace(made, tag=node.tag) if node.tag else made


def empty(place: Place, at: str) -> ComposeError:
    """What to raise for an item with nothing in it."""
    return ComposeError(place, at, "this is nothing; leave the item out")


def scalar_of(node: Node, at: str, wanted: str) -> Scalar:
    """The node, if it is one text. Raises ComposeError."""
    if isinstance(node, Scalar):
        return node
    raise ComposeError(node.place, at, f"this is {what(node)}; it takes {wanted}")


NUMBER: tuple[type, ...] = (int, float)


def number_of(scalar: Scalar) -> float | int | None:
    """The number that a scalar is, also one in quotes or from a variable, which is decimal; None if
    it is none."""
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
    """Refuse what is a number or a boolean to the specification, where it says a text, unless it is
    what may stand there `also`. Raises ComposeError."""
    value = value_of(scalar)
    if scalar.given or value is None or type(value) in (str, *also):
        return
    kind = "a boolean" if isinstance(value, bool) else "a number"
    words = f'this is {kind}; where a text is meant, write it in quotes: "{scalar.text}"'
    raise ComposeError(scalar.place, at, words)


class _Replaced:
    """A value that another one takes the place of."""

    def merge(self, old: Node, new: Node) -> Node:
        return new


@dataclass(frozen=True, slots=True)
class Text(_Replaced):
    """A text; `check` raises ValueError for one that cannot be."""

    check: Callable[[str], object] = str
    wanted: str = "a text"
    also: tuple[type, ...] = ()
    """What it may be written as besides: `NUMBER`, bool."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        scalar = scalar_of(node, at, self.wanted)
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.open(scalar.text):
            return replace(scalar, plain=False)
        text = text_of(scalar) if self.also else scalar.text
        try:
            self.check(text)
        except ValueError as error:
            raise ComposeError(scalar.place, at, str(error)) from None
        check_text(scalar, at, self.also)
        # A negative number stays one: as a text, Compose takes it for a bad size.
        negative = self.also == NUMBER and scalar.plain and text.startswith("-")
        return replace(scalar, text=text, plain=negative)


@dataclass(frozen=True, slots=True)
class AnyMap(_Replaced):
    """A map of which nothing is asked."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Map) or (isinstance(node, Scalar) and node.is_null):
            return node
        raise ComposeError(node.place, at, f"this is {what(node)}; it takes a map")


@dataclass(frozen=True, slots=True)
class Path(_Replaced):
    """A file or folder of this machine, absolute from then on."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        scalar = scalar_of(node, at, "a path")
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.open(scalar.text):
            return replace(scalar, plain=False)
        check_text(scalar, at)
        try:
            return replace(scalar, text=self.where(scalar.text, reading), plain=False)
        except ValueError as error:
            raise ComposeError(scalar.place, at, str(error)) from None

    def where(self, text: str, reading: Reading) -> str:
        """What is written there in its long form."""
        return reading.path(text)


@dataclass(frozen=True, slots=True)
class BuildContext(Path):
    """A folder of this machine, or the URL of what is built from."""

    def where(self, text: str, reading: Reading) -> str:
        return context_path(text, reading)


def context_path(text: str, reading: Reading) -> str:
    """A build context in its long form: a URL as it is, a folder absolute. Raises ValueError."""
    return reading.path(text) if remote_context(text) is None else text


@dataclass(frozen=True, slots=True)
class Number(_Replaced):
    """A number; `least` is the smallest that may be."""

    least: float = 0
    whole: bool = True
    most: float = float("inf")

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        wanted = "a whole number" if self.whole else "a number"
        scalar = scalar_of(node, at, wanted)
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.open(scalar.text):
            return replace(scalar, plain=False)
        number = number_of(scalar)
        if number is None or (self.whole and number != int(number)):
            raise ComposeError(scalar.place, at, f"{scalar.text!r} is not {wanted}")
        if not self.least <= number <= self.most:
            bound = f"{self.least:g} or more"
            if self.most < float("inf"):
                bound = f"from {self.least:g} to {self.most:g}"
            raise ComposeError(scalar.place, at, f"{scalar.text} is out of range; it is {bound}")
        text = str(int(number)) if self.whole else repr(number)
        return replace(scalar, text=text, plain=True, given=False)


@dataclass(frozen=True, slots=True)
class FileMode(_Replaced):
    """Permission bits: a number, which is octal if it begins with 0; in quotes, octal digits."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        scalar = scalar_of(node, at, "permission bits")
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.open(scalar.text):
            return replace(scalar, plain=False)
        value = value_of(scalar)
        if isinstance(value, str):
            try:
                value = int(value.removeprefix("0o"), 8)
            except ValueError:
                value = -1.0
        if isinstance(value, bool) or value is None or value != int(value) or not 0 <= value < 4096:
            words = f"{scalar.text!r} is not an octal number of permission bits, such as 0440"
            raise ComposeError(scalar.place, at, words)
        if scalar.plain and scalar.text[:1] in "123456789":
            words = f"this is decimal, so {value:04o} in octal; an octal number begins with 0"
            reading.note(scalar.place, at, words)
        return replace(scalar, text=str(int(value)), plain=True, given=False)


@dataclass(frozen=True, slots=True)
class Truth(_Replaced):
    """true or false."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        scalar = scalar_of(node, at, "true or false")
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.open(scalar.text):
            return replace(scalar, plain=False)
        truth = TRUTHS.get(scalar.text.lower())
        if truth is None:
            raise ComposeError(scalar.place, at, f"{scalar.text!r} is neither true nor false")
        return replace(scalar, text="true" if truth else "false", plain=True, given=False)


@dataclass(frozen=True, slots=True)
class External(Truth):
    """Whether something is there already, not of this stack; `{name: NAME}` is the old form of
    `true` with a `name` beside it, which `adopt_name` makes of it."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if not isinstance(node, Map):
            return Truth.read(self, node, at, reading)
        for key, value in node.entries.items():
            if key != "name" and not key.startswith("x-"):
                raise ComposeError(value.place, within(at, key), "there is no such key; name is")
            scalar_of(value, within(at, key), "a text")
        return node


def adopt_name(section: Map, at: str, reading: Reading) -> Map:
    """A network, volume, secret or config without the old form of `external`. Raises
    ComposeError."""
    external = section.get("external")
    if not isinstance(external, Map):
        return section
    name, own = external.text("name"), section.text("name")
    if name and own and name != own:
        words = f"this is {name}, and name is {own}; leave one out"
        raise ComposeError(external.place, within(at, "external.name"), words)
    truth = Scalar("true", external.place)
    section = section.with_entries(external=truth)
    return section.with_entries(name=Scalar(name, external.place, False)) if name else section


@dataclass(frozen=True, slots=True)
class Choice(_Replaced):
    """One of several words; `refused` are words of the specification that are not supported, and
    why."""

    words: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        scalar = scalar_of(node, at, f"one of {', '.join(self.words)}")
        if scalar.is_null:
            return scalar if scalar.tag else None
        if reading.open(scalar.text):
            return replace(scalar, plain=False)
        if scalar.text in self.refused:
            words = f"{scalar.text} cannot be done: {self.refused[scalar.text]}"
            raise ComposeError(scalar.place, at, words)
        if scalar.text not in self.words:
            words = f"{scalar.text!r} is unknown; {hint(scalar.text, self.words)}"
            raise ComposeError(scalar.place, at, words)
        return replace(scalar, plain=False)


@dataclass(frozen=True, slots=True)
class Words(_Replaced):
    """A command: a list of words, or a text that is split into words."""

    shell: bool = False
    """A text is a line for the shell of a health check, rather than split."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Scalar):
            if node.is_null:
                return node  # it takes the place of an earlier file's command
            if not reading.open(node.text):
                check_text(node, at)
            if self.shell:
                texts = ["CMD-SHELL", node.text]
            else:
                try:
                    found = split(node.text)
                except ValueError as error:
                    words = f"{node.text!r} cannot be split into words: {error}"
                    raise ComposeError(node.place, at, words) from None
                texts = found.words
                if found.ignored:
                    words = f"{found.ignored!r} is ignored, as by Compose: no shell runs this line"
                    reading.note(node.place, at, f"{words}; write [sh, -c, …]")
            items = tuple(Scalar(text, node.place, False) for text in texts)
            return tagged(node, List(items, node.place))
        if isinstance(node, Map):
            raise ComposeError(node.place, at, "this is a map; it takes a text or a list")
        words_of = []
        for index, item in enumerate(node.items):
            scalar = scalar_of(item, within(at, index), "a text")
            if scalar.is_null:
                raise empty(scalar.place, within(at, index))
            check_text(scalar, within(at, index))
            words_of.append(replace(scalar, plain=False))
        return List(tuple(words_of), node.place, node.tag)


@dataclass(frozen=True, slots=True)
class Refused(_Replaced):
    """A key of the specification that cannot be honoured, and what to do; `harmless` values ask
    for what is so anyway."""

    words: str
    harmless: tuple[str, ...] = ()

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Scalar) and node.text.lower() in self.harmless:
            truth = node.plain and node.text.lower() in TRUTHS
            return replace(node, text=node.text.lower(), plain=truth, given=False)
        if isinstance(node, Scalar) and node.is_null:
            return None
        if isinstance(node, List | Map) and not (
            node.items if isinstance(node, List) else node.entries
        ):
            return None
        raise ComposeError(node.place, at, self.words)


@dataclass(frozen=True, slots=True)
class Noted:
    """A key of the specification that makes no difference in a cluster, and why; with no words
    there is nothing to say about it. It must be of its `shape` all the same, and is kept for other
    readers of the file."""

    shape: Kind
    words: str = ""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        read = self.shape.read(node, at, reading)
        if self.words:
            reading.note(node.place, at, self.words)
        return read

    def merge(self, old: Node, new: Node) -> Node:
        return self.shape.merge(old, new)
