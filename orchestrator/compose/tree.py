"""A compose file as a tree: texts, lists and maps that know where they were written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from orchestrator.model.names import near_miss

NULLS = ("", "~", "null", "Null", "NULL")
"""How nothing is written (YAML 1.2, core schema)."""
TRUTHS = {"true": True, "yes": True, "on": True, "y": True}
TRUTHS |= {"false": False, "no": False, "off": False, "n": False}
"""Booleans, in small letters: those of YAML 1.2, and what YAML 1.1 had besides."""

_WHOLE = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

RESET, OVERRIDE = "!reset", "!override"
"""Tags of a later file: without the earlier value, and in place of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written."""

    file: str
    line: int
    """The first is 1; 0: in no line of it."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class ComposeError(ValueError):
    """Something in a file that cannot be. `str()` is one line: file, line, key and what to do."""

    def __init__(self, place: Place, at: str, words: str) -> None:
        super().__init__(f"{place}: {at}: {words}" if at else f"{place}: {words}")
        self.place, self.at, self.words = place, at, words


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text, number, boolean or null: which of them is for the schema to say."""

    text: str
    place: Place
    plain: bool = True
    """Written without quotes, so that it may be something else than a text."""
    tag: str = ""
    given: bool = False
    """A variable stood in it: then it is what its key takes."""

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in NULLS


@dataclass(frozen=True, slots=True)
class List:
    """Items in their order."""

    items: tuple[Node, ...]
    place: Place
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Map:
    """Values by key, in the order in which they were written."""

    entries: dict[str, Node]
    place: Place
    tag: str = ""

    def get(self, key: str) -> Node | None:
        return self.entries.get(key)

    def section(self, key: str) -> Map:
        """The map at a key; an empty one if there is none."""
        found = self.entries.get(key)
        return found if isinstance(found, Map) else Map({}, self.place)

    def items_of(self, key: str) -> tuple[Node, ...]:
        """The items of the list at a key; none if there is no list."""
        found = self.entries.get(key)
        return found.items if isinstance(found, List) else ()

    def text(self, key: str, default: str = "") -> str:
        """The text at a key."""
        found = self.entries.get(key)
        return found.text if isinstance(found, Scalar) and not found.is_null else default

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of the list at a key."""
        return tuple(each.text for each in self.items_of(key) if isinstance(each, Scalar))

    def pairs(self, key: str) -> dict[str, str]:
        """The map of texts at a key; null is the empty text."""
        return {
            name: "" if value.is_null else value.text
            for name, value in self.section(key).entries.items()
            if isinstance(value, Scalar)
        }

    def flag(self, key: str) -> bool:
        """The boolean at a key; false if there is none."""
        return TRUTHS.get(self.text(key).lower(), False)

    def place_of(self, key: str) -> Place:
        """Where a key's value was written, or this map."""
        found = self.entries.get(key)
        return found.place if found is not None else self.place

    def with_entries(self, **entries: Node) -> Map:
        return replace(self, entries={**self.entries, **entries})

    def without(self, *keys: str) -> Map:
        kept = {key: value for key, value in self.entries.items() if key not in keys}
        return replace(self, entries=kept)


Node: TypeAlias = Scalar | List | Map


def within(at: str, key: str | int) -> str:
    """The path of a key in what is at a path."""
    if isinstance(key, int):
        return f"{at}[{key}]"
    return f"{at}.{key}" if at else key


def hint(word: str, known: Iterable[str]) -> str:
    """What an unknown word was meant to be, or what there is."""
    names = sorted(known)
    meant = near_miss(word, names)
    if meant:
        return f"did you mean {meant!r}?"
    if len(names) > 12:
        return "see docs/stacks.md"
    return f"there are {', '.join(names)}" if names else "there is none"


def what(node: Node) -> str:
    """What a node is, as a sentence names it."""
    if isinstance(node, Map):
        return "a map"
    if isinstance(node, List):
        return "a list"
    return "nothing" if node.is_null else repr(node.text)


def plain(node: Node) -> object:
    """A tree as Python has it: what was not quoted may be a number, a boolean or null."""
    if isinstance(node, Map):
        return {key: plain(value) for key, value in node.entries.items()}
    if isinstance(node, List):
        return [plain(item) for item in node.items]
    if not node.plain:
        return node.text
    if node.is_null:
        return None
    if node.text.lower() in ("true", "false"):
        return node.text.lower() == "true"
    if _WHOLE.fullmatch(node.text):
        return int(node.text)
    return float(node.text) if _NUMBER.fullmatch(node.text) else node.text
