# SPDX-License-Identifier: Apache-2.0
"""Interpolation of variables in all forms of the specification, and env files.

    $NAME ${NAME}        the value; empty, with a note, if unset
    ${NAME:-WORD}        WORD if unset or empty; ${NAME-WORD} only if unset
    ${NAME:?MESSAGE}     an error with the message if unset or empty; ${NAME?MESSAGE} only if unset
    ${NAME:+WORD}        WORD if set and not empty, else empty; ${NAME+WORD} if set
    $$                   a dollar sign; so is a $ that neither a name nor { follows

WORD and MESSAGE may contain variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from orchestrator.compose.tree import ComposeError, List, Map, Node, Place, key_path

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS = (":-", ":?", ":+", "-", "?", "+")
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][\w.\-\[\]]*)\s*(?:([=:])\s*(.*))?", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}


class Variables:
    """The values of variables, and those that were used without a value."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self.unset: dict[str, Place] = {}
        """Unset variable without a default → its first use."""

    def filled(self, node: Node, at: str = "") -> Node:
        """The tree with its scalars interpolated. Raises ComposeError."""
        if isinstance(node, Map):
            entries = {
                key: self.filled(value, key_path(at, key)) for key, value in node.entries.items()
            }
            return Map(entries, node.place, node.tag)
        if isinstance(node, List):
            items = (self.filled(item, key_path(at, i)) for i, item in enumerate(node.items))
            return List(tuple(items), node.place, node.tag)
        if "$" not in node.text:
            return node
        text = self.text(node.text, node.place, at)
        return replace(node, text=text, given=text != node.text)

    def text(self, text: str, place: Place, at: str) -> str:
        """A text, interpolated. Raises ComposeError."""

        def missing(name: str) -> str:
            self.unset.setdefault(name, place)
            return ""

        try:
            return interpolate(text, self.values, missing)
        except ValueError as error:
            raise ComposeError(place, at, str(error)) from None


def interpolate(text: str, values: Mapping[str, str], missing: Callable[[str], str]) -> str:
    """Interpolate a text; `missing` returns the value of an unset variable without a default.
    Raises ValueError."""
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
            result.append("$")  # as in $1 and $(date), which are for a shell
            position = dollar + 1
    result.append(text[position:])
    return "".join(result)


def _closing(text: str, start: int) -> int:
    """The position of the brace that closes the one before `start`."""
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
            f"{_shown('${' + inner + '}')} is not a variable; write ${{NAME:-default}}, "
            "and $$ for a dollar sign"
        )
    name, word = match[0], rest[len(operator) :]
    value = values.get(name)
    is_set = bool(value) if operator.startswith(":") else value is not None
    match operator[-1:]:
        case "-":
            return value if is_set and value is not None else interpolate(word, values, missing)
        case "+":
            return interpolate(word, values, missing) if is_set else ""
        case "?":
            if is_set and value is not None:
                return value
            message = interpolate(word, values, missing)
            raise ValueError(f"variable {name} must be set{': ' + message if message else ''}")
    return _value(name, values, missing)


def _value(name: str, values: Mapping[str, str], missing: Callable[[str], str]) -> str:
    value = values.get(name)
    return missing(name) if value is None else value


def _shown(text: str) -> str:
    return repr(text if len(text) < 40 else f"{text[:40]}…")


def parse_env(
    text: str, file: str, values: Mapping[str, str], *, raw: bool = False
) -> dict[str, str | None]:
    """The variables of an env file with `NAME=value` or `NAME: value` lines; None for NAME alone,
    whose value comes from the environment. Raises ComposeError.

    Single quotes: literal. Double quotes: escapes such as `\\n`, and variables. No quotes:
    variables, up to ` #`. Quoted values may span lines. `raw`: the text after `=` is the value.
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
        return interpolate(text, values, lambda _: "")
    except ValueError as error:
        raise ComposeError(place, name, str(error)) from None
