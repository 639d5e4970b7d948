# SPDX-License-Identifier: Apache-2.0
"""A compose file as a tree of scalars, lists and maps, each with its file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import copysign, inf, isfinite, isnan, nan
from typing import TypeAlias

from orchestrator.model.names import near_miss

NULLS = ("", "~", "null", "Null", "NULL")
"""Texts of null (YAML 1.2, core schema)."""
BOOLEANS = {"true": True, "yes": True, "on": True, "y": True}
BOOLEANS |= {"false": False, "no": False, "off": False, "n": False}
"""Texts of booleans in lower case, by YAML 1.2 and 1.1."""
_CONSTANTS: dict[str, bool | float] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), nan),
}
"""Unquoted texts that are not strings."""

_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

RESET, OVERRIDE = "!reset", "!override"
"""Tags in a later file: remove the earlier value, or replace it instead of merging."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written."""

    file: str
    line: int
    """From 1; 0: the file as a whole."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class ComposeError(ValueError):
    """A file is invalid. `str()` is one line: file, line, key, reason and remedy."""

    def __init__(self, place: Place, at: str, message: str) -> None:
        super().__init__(f"{place}: {at}: {message}" if at else f"{place}: {message}")
        self.place, self.at, self.message = place, at, message


@dataclass(frozen=True, slots=True)
class Scalar:
    """A string, number, boolean or null; the schema decides which."""

    text: str
    place: Place
    plain: bool = True
    """Written without quotes, so it may be something other than a string."""
    tag: str = ""
    given: bool = False
    """Contained a variable: then its type is the one that its key takes."""

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in (NULLS[:1] if self.given else NULLS)


@dataclass(frozen=True, slots=True)
class List:
    """A list of nodes, in file order."""

    items: tuple[Node, ...]
    place: Place
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Map:
    """Nodes by key, in file order."""

    entries: dict[str, Node]
    place: Place
    tag: str = ""

    def get(self, key: str) -> Node | None:
        return self.entries.get(key)

    def section(self, key: str) -> Map:
        """The map at a key, else an empty one."""
        found = self.entries.get(key)
        return found if isinstance(found, Map) else Map({}, self.place)

    def items_of(self, key: str) -> tuple[Node, ...]:
        """The items of the list at a key, else none."""
        found = self.entries.get(key)
        return found.items if isinstance(found, List) else ()

    def text(self, key: str, default: str = "") -> str:
        """The text of the scalar at a key, unless it is null; else `default`."""
        found = self.entries.get(key)
        return found.text if isinstance(found, Scalar) and not found.is_null else default

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of the list at a key."""
        return tuple(each.text for each in self.items_of(key) if isinstance(each, Scalar))

    def pairs(self, key: str) -> dict[str, str]:
        """The string map at a key; null becomes the empty string."""
        return {
            name: "" if value.is_null else value.text
            for name, value in self.section(key).entries.items()
            if isinstance(value, Scalar)
        }

    def flag(self, key: str) -> bool:
        """The boolean at a key, else false."""
        return BOOLEANS.get(self.text(key).lower(), False)

    def place_of(self, key: str) -> Place:
        """Where a key's value was written; without one, where this map was."""
        found = self.entries.get(key)
        return found.place if found is not None else self.place

    def with_entries(self, **entries: Node) -> Map:
        return replace(self, entries={**self.entries, **entries})

    def without(self, *keys: str) -> Map:
        kept = {key: value for key, value in self.entries.items() if key not in keys}
        return replace(self, entries=kept)


Node: TypeAlias = Scalar | List | Map


def key_path(at: str, key: str | int) -> str:
    """The path of a key or list index below the path `at`, such as `services.web.ports[0]`."""
    if isinstance(key, int):
        return f"{at}[{key}]"
    return f"{at}.{key}" if at else key


def hint(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the most similar known one, or all of them."""
    names = sorted(known)
    similar = near_miss(word, names)
    if similar:
        return f"did you mean {similar!r}?"
    if len(names) > 12:
        return "see docs/concepts/stacks.md"
    return f"there are {', '.join(names)}" if names else "there is none"


def describe(node: Node) -> str:
    """A node as error messages name it."""
    if isinstance(node, Map):
        return "a map"
    if isinstance(node, List):
        return "a list"
    return "null" if node.is_null else repr(node.text)


def to_python(node: Node) -> object:
    """A tree as Python values: unquoted scalars may be numbers, booleans or null."""
    if isinstance(node, Map):
        return {key: to_python(value) for key, value in node.entries.items()}
    if isinstance(node, List):
        return [to_python(item) for item in node.items]
    return value_of(node)


def value_of(scalar: Scalar) -> str | int | float | bool | None:
    """A scalar's value by the rules of Compose's YAML reader: the core schema of YAML 1.2, plus
    octal numbers such as 0644 and digits such as 1_000 of YAML 1.1."""
    if not scalar.plain or scalar.given:
        return scalar.text
    if scalar.is_null:
        return None
    text = scalar.text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in "+-.0123456789":
        digits = text if text[0] == "." else text.replace("_", "")
        if match := _INTEGER.fullmatch(digits):
            octal = match[1][:1] == "0" and match[1][1:2].isdecimal()
            return int(digits, 8 if octal else 0)
        if _NUMBER.fullmatch(digits):
            return float(digits)
    return text


def text_of(scalar: Scalar) -> str:
    """A scalar as a string where numbers and booleans are accepted, too: `1.50` becomes 1.5 and
    `0x10` becomes 16, as in Compose."""
    value = value_of(scalar)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    return _decimal(value) if isinstance(value, float) else scalar.text


def _decimal(number: float) -> str:
    """The shortest decimal form; with an exponent from 1e21 and below 1e-4 (Go's `%v`)."""
    if not isfinite(number):
        return "NaN" if isnan(number) else f"{'+' if number > 0 else '-'}Inf"
    if number == int(number) and abs(number) < 1e21:
        return "-0" if number == 0 and copysign(1, number) < 0 else str(int(number))
    return repr(number)
