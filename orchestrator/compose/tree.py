# SPDX-License-Identifier: Apache-2.0
"""A compose file as a tree: texts, lists and maps that know where they were written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import copysign, inf, isfinite, isnan, nan
from typing import TypeAlias

from orchestrator.model.names import near_miss

NULLS = ("", "~", "null", "Null", "NULL")
"""How nothing is written (YAML 1.2, core schema)."""
TRUTHS = {"true": True, "yes": True, "on": True, "y": True}
TRUTHS |= {"false": False, "no": False, "off": False, "n": False}
"""Booleans, in small letters: those of YAML 1.2, and what YAML 1.1 had besides."""
_CONSTANTS: dict[str, bool | float] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), nan),
}
"""Words that are no texts where they are not quoted."""

_WHOLE = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
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
        return self.plain and self.text in (NULLS[:1] if self.given else NULLS)


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
        return "see docs/concepts/stacks.md"
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
    return value_of(node)


def value_of(scalar: Scalar) -> str | int | float | bool | None:
    """What a scalar is by the rules that Compose's YAML reader has: the core schema of YAML 1.2,
    and octal numbers such as 0644 and digits such as 1_000 of YAML 1.1."""
    if not scalar.plain or scalar.given:
        return scalar.text
    if scalar.is_null:
        return None
    text = scalar.text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in "+-.0123456789":
        digits = text if text[0] == "." else text.replace("_", "")
        if match := _WHOLE.fullmatch(digits):
            octal = match[1][:1] == "0" and match[1][1:2].isdecimal()
            return int(digits, 8 if octal else 0)
        if _NUMBER.fullmatch(digits):
            return float(digits)
    return text


def text_of(scalar: Scalar) -> str:
    """A scalar as a text, where a text may be written as a number or a boolean: `1.50` is 1.5, and
    `0x10` is 16, as in Compose."""
    value = value_of(scalar)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    return _decimal(value) if isinstance(value, float) else scalar.text


def _decimal(number: float) -> str:
    """The shortest text of a number; with an exponent from 1e21 and below 1e-4 (Go's `%v`)."""
    if not isfinite(number):
        return "NaN" if isnan(number) else f"{'+' if number > 0 else '-'}Inf"
    if number == int(number) and abs(number) < 1e21:
        return "-0" if number == 0 and copysign(1, number) < 0 else str(int(number))
    return repr(number)
