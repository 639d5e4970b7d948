# SPDX-License-Identifier: Apache-2.0
"""`${NAME:-default}` and the other forms of the specification, and files of `NAME=value` lines.

    $NAME ${NAME}        its value; nothing, with a note, if it is not set
    ${NAME:-WORD}        WORD if it is not set or empty; ${NAME-WORD} only if it is not set
    ${NAME:?WORDS}       an error with those words if it is not set or empty; ${NAME?WORDS} …
    ${NAME:+WORD}        WORD if it is set and not empty, else nothing; ${NAME+WORD} …
    $$                   a dollar sign; so is one before anything else than a name or {

A WORD may itself have such forms in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from orchestrator.compose.tree import ComposeError, List, Map, Node, Place, within

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS = (":-", ":?", ":+", "-", "?", "+")
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][\w.\-\[\]]*)\s*(?:([=:])\s*(.*))?", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}


class Variables:
    """What variables stand for, and which were asked for in vain."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self.unset: dict[str, Place] = {}
        """Without a value and a default → where first."""

    def filled(self, node: Node, at: str = "") -> Node:
        """The tree with the variables of its values in place. Raises ComposeError."""
        if isinstance(node, Map):
            entries = {
                key: self.filled(value, within(at, key)) for key, value in node.entries.items()
            }
            return Map(entries, node.place, node.tag)
        if isinstance(node, List):
            items = (self.filled(item, within(at, i)) for i, item in enumerate(node.items))
            return List(tuple(items), node.place, node.tag)
        if "$" not in node.text:
            return node
        text = self.text(node.text, node.place, at)
        return replace(node, text=text, given=text != node.text)

    def text(self, text: str, place: Place, at: str) -> str:
        """A text with its variables in place. Raises ComposeError."""

        def missing(name: str) -> str:
            self.unset.setdefault(name, place)
            return ""

        try:
            return fill(text, self.values, missing)
        except ValueError as error:
            raise ComposeError(place, at, str(error)) from None


def fill(text: str, values: Mapping[str, str], missing: Callable[[str], str]) -> str:
    """`text` with its variables in place; `missing` says what stands for one that is not set and
    has no default. Raises ValueError."""
    result, position = [], 0
    while (dollar := text.find("$", position)) >= 0:
        result.append(text[position:dollar])
        after = text[dollar + 1 : dollar + 2]
        if after == "$":
            result.append("$")
            position = dollar + 2
        elif after == "{":
            end = _closing(text, dollar + 2)
            result.append(_expanded(text[dollar + 2 : end], values, missing))
            position = end + 1
        elif match := _NAME.match(text, dollar + 1):
            result.append(_value(match[0], values, missing))
            position = match.end()
        else:
            result.append("$")  # as in $1 and $(date), which are left to a shell
            position = dollar + 1
    result.append(text[position:])
    return "".join(result)


def _closing(text: str, start: int) -> int:
    """Where the brace ends that was opened before `start`."""
    depth, position = 1, start
    while position < len(text):
        if text.startswith("$$", position):
            position += 2
            continue
        if text.startswith("${", position):
            depth += 1
            position += 2
            continue
        if text[position] == "}":
            depth -= 1
            if not depth:
                return position
        position += 1
    raise ValueError(f"the variable in {_shown(text[start - 2 :])} has no closing brace")


def _expanded(inner: str, values: Mapping[str, str], missing: Callable[[str], str]) -> str:
    match = _NAME.match(inner)
    rest = inner[match.end() :] if match else inner
    operator = next((each for each in _OPERATORS if rest.startswith(each)), "")
    if match is None or (rest and not operator):
        raise ValueError(
            f"{_shown('${' + inner + '}')} is no variable; write such as ${{NAME:-default}}, "
            "and $$ for a dollar sign"
        )
    name, word = match[0], rest[len(operator) :]
    value = values.get(name)
    there = bool(value) if operator.startswith(":") else value is not None
    match operator[-1:]:
        case "-":
            return value if there and value is not None else fill(word, values, missing)
        case "+":
            return fill(word, values, missing) if there else ""
        case "?":
            if there and value is not None:
                return value
            said = fill(word, values, missing)
            raise ValueError(f"variable {name} must be set{': ' + said if said else ''}")
    return _value(name, values, missing)


def _value(name: str, values: Mapping[str, str], missing: Callable[[str], str]) -> str:
    value = values.get(name)
    return missing(name) if value is None else value


def _shown(text: str) -> str:
    return repr(text if len(text) < 40 else f"{text[:40]}…")


def parse_env(
    text: str, file: str, values: Mapping[str, str], *, raw: bool = False
) -> dict[str, str | None]:
    """The variables of a file of `NAME=value` or `NAME: value` lines; None for a NAME alone, which
    is taken from elsewhere. Raises ComposeError.

    Quotes are taken off: in single ones all is literal, in double ones `\\n` and variables count,
    as they do without quotes, where a value ends at ` #`. Quoted values may go over lines. `raw`:
    what stands behind `=` is the value, as it is.
    """
    found: dict[str, str | None] = {}
    lines = text.removeprefix("\ufeff").splitlines()
    number = 0
    while number < len(lines):
        place = Place(file, number + 1)
        line = lines[number].strip()
        number += 1
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ComposeError(place, "", f"{_shown(line)} is not of the form NAME=value")
        name, equals, rest = match[1], match[2], match[3] or ""
        if not equals:
            found[name] = None
            continue
        if raw:
            found[name] = rest
            continue
        if rest[:1] in ("'", '"'):
            while _end_of_quote(rest) is None and number < len(lines):
                rest = f"{rest}\n{lines[number]}"
                number += 1
        known = {**{k: v for k, v in found.items() if v is not None}, **values}
        found[name] = _env_value(rest, place, name, known)
    return found


def _end_of_quote(text: str) -> int | None:
    quote, position = text[0], 1
    while position < len(text):
        if text[position] == "\\" and quote == '"':
            position += 2
            continue
        if text[position] == quote:
            return position
        position += 1
    return None


def _env_value(text: str, place: Place, name: str, values: Mapping[str, str]) -> str:
    if text[:1] in ("'", '"'):
        end = _end_of_quote(text)
        if end is None:
            raise ComposeError(place, name, f"the quote {text[0]} is not closed")
        inner = text[1:end]
        if text[0] == "'":
            return inner
        text = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), inner, flags=re.DOTALL)
    else:
        text = re.sub(r"(^|\s+)#.*", "", text).rstrip()
    try:
        return fill(text, values, lambda _: "")
    except ValueError as error:
        raise ComposeError(place, name, str(error)) from None
