"""What a value may be, as data that the schema is made of.

A kind does two things. `read` checks a value and brings it into the one form that the rest works
with: the long one. `merge` says what becomes of a value for which a later file has another, by the
specification's rules (https://github.com/compose-spec/compose-spec/blob/main/13-merge.md).
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.compose.tree import (
    TRUTHS,
    ComposeError,
    List,
    Map,
    Node,
    Place,
    Scalar,
    hint,
    plain,
    what,
    within,
)
from orchestrator.model.buildcontexts import remote_context


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


def check_text(scalar: Scalar, at: str, also: tuple[type, ...] = ()) -> None:
    """Refuse what is a number or a boolean to the specification, where it says a text, unless it is
    what may stand there `also`. Raises ComposeError."""
    value = plain(scalar)
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
        try:
            self.check(scalar.text)
        except ValueError as error:
            raise ComposeError(scalar.place, at, str(error)) from None
        check_text(scalar, at, self.also)
        return replace(scalar, plain=False)


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
        try:
            number = int(scalar.text, 0) if self.whole else float(scalar.text)
        except ValueError:
            raise ComposeError(scalar.place, at, f"{scalar.text!r} is not {wanted}") from None
        if not self.least <= number <= self.most:
            bound = f"{self.least:g} or more"
            if self.most < float("inf"):
                bound = f"from {self.least:g} to {self.most:g}"
            raise ComposeError(scalar.place, at, f"{scalar.text} is out of range; it is {bound}")
        return replace(scalar, text=str(number) if self.whole else scalar.text, plain=True)


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
        return replace(scalar, text="true" if truth else "false", plain=True)


@dataclass(frozen=True, slots=True)
class External(Truth):
    """Whether something is there already, not of this stack."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Map):
            words = "this is a map; write external: true, and name: NAME beside it"
            raise ComposeError(node.place, at, words)
        return Truth.read(self, node, at, reading)


@dataclass(frozen=True, slots=True)
class Choice(_Replaced):
    """One of several words; `refused` are words of the specification that cannot be had, and
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
    """A command: a list of words, or a text that is cut as a shell does."""

    shell: bool = False
    """A text is a line for the shell of a health check, rather than cut."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Scalar):
            if node.is_null:
                return node if node.tag else None
            if not reading.open(node.text):
                check_text(node, at)
            if self.shell:
                texts = ["CMD-SHELL", node.text]
            else:
                try:
                    texts = shlex.split(node.text)
                except ValueError as error:
                    words = f"{node.text!r} cannot be cut into words: {str(error).lower()}"
                    raise ComposeError(node.place, at, words) from None
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
        if isinstance(node, Scalar) and (node.is_null or node.text.lower() in self.harmless):
            return None
        if isinstance(node, List | Map) and not (
            node.items if isinstance(node, List) else node.entries
        ):
            return None
        raise ComposeError(node.place, at, self.words)


@dataclass(frozen=True, slots=True)
class Noted(_Replaced):
    """A key of the specification that makes no difference in a cluster, and why; with no words
    there is nothing to say about it. It must be of its `shape` all the same."""

    shape: Kind
    words: str = ""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        self.shape.read(node, at, reading)
        if self.words:
            reading.note(node.place, at, self.words)
        return None
