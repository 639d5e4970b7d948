"""Templates of `--format`, as Docker's users write them: the part of Go's text/template that they
use there, rendered from our rows.

What is known: `{{.Field.Field}}` (in our spelling or in Docker's, `.created_at` or `.CreatedAt`),
`{{json .}}` and the other functions of `_FUNCTIONS`, pipelines with `|`, `if`, `with` and `range`
with `else` and `end`, variables of `range`, and `{{-`/`-}}`. Source: pkg.go.dev/text/template and
Docker's "Format command and log output".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

_ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<member>(?<=\))(?:\.\w+)+)"""
    r"""|(?P<path>\$?\w*(?:\.\w+)+|\.|\$\w*)"""
    r"""|(?P<number>-?\d+)|(?P<word>\w+)|(?P<mark>[|(),]|:=))"""
)
_ESCAPES = {"\\t": "\t", "\\n": "\n", "\\r": "\r"}

Scope = dict[str, Any]
"""Variables by name: `.` is the dot, `$` the row."""
Expression = Callable[[Scope], Any]


class BadTemplate(ValueError):
    """A template that cannot be read, or asks for what a row does not have."""


class Fields(dict[str, Any]):
    """A row that can be asked for its columns too, or for what has another name in Docker; as JSON
    it is the row alone."""

    def __init__(self, row: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        super().__init__({**row, **others})
        self.row = row


class Word(str):
    """A text that can be asked for fields: `.State` is `running`, `.State.Pid` is 7."""

    __slots__ = ("fields",)
    fields: Mapping[str, Any]

    def __new__(cls, text: str, fields: Mapping[str, Any]) -> Self:
        """The text with these fields."""
        word = super().__new__(cls, text)
        word.fields = fields
        return word


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Show:
    value: Expression


@dataclass(frozen=True, slots=True)
class _Block:
    word: str
    """`if`, `with` or `range`."""
    value: Expression
    names: tuple[str, ...]
    body: tuple[Any, ...]
    otherwise: tuple[Any, ...]


class Template:
    """A template, read once and rendered for each row. Raises BadTemplate."""

    def __init__(self, text: str) -> None:
        for written, meant in _ESCAPES.items():
            text = text.replace(written, meant)
        pieces = _pieces(text)
        self._nodes, ended_by = _parse(pieces)
        if ended_by:
            raise BadTemplate(f"the template has a {{{{{ended_by}}}}} with nothing to end")

    def render(self, row: Any) -> str:
        """The text for a row. Raises BadTemplate for a field that it does not have."""
        return "".join(_rendered(self._nodes, {".": row, "$": row}))


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """(`text` or `action`, what it says) in turn."""
    at, trim = 0, False
    for match in _ACTION.finditer(text):
        between = text[at : match.start()]
        between = between.lstrip() if trim else between
        yield "text", between.rstrip() if match[1] else between
        at, trim = match.end(), bool(match[3])
        if not match[2].startswith("/*"):
            yield "action", match[2]
    rest = text[at:]
    if "{{" in rest:
        raise BadTemplate("the template has a {{ without its }}")
    yield "text", rest.lstrip() if trim else rest


def _parse(pieces: Iterator[tuple[str, str]]) -> tuple[tuple[Any, ...], str]:
    """The nodes up to an `end` or `else`, and that; the empty text at the end of all."""
    nodes: list[Any] = []
    for kind, text in pieces:
        if kind == "text":
            nodes.append(_Text(text))
            continue
        word, _, rest = text.partition(" ")
        if word in ("end", "else"):
            return tuple(nodes), text
        if word in ("if", "with", "range"):
            nodes.append(_block(word, rest, pieces))
        else:
            nodes.append(_Show(_pipeline(text)))
    return tuple(nodes), ""


def _block(word: str, text: str, pieces: Iterator[tuple[str, str]]) -> _Block:
    names, walrus, value = text.rpartition(":=")
    variables = tuple(name.strip() for name in names.split(",")) if walrus else ()
    body, ended_by = _parse(pieces)
    otherwise: tuple[Any, ...] = ()
    if ended_by.startswith("else if "):
        otherwise = (_block("if", ended_by.removeprefix("else if "), pieces),)
    elif ended_by == "else":
        otherwise, ended_by = _parse(pieces)
    if not ended_by:
        raise BadTemplate(f"the template has a {{{{{word}}}}} without its {{{{end}}}}")
    return _Block(word, _pipeline(value), variables, body, otherwise)


def _pipeline(text: str) -> Expression:
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise BadTemplate(f"the template cannot be read at {text[at:]!r}")
        tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    if not tokens:
        raise BadTemplate("the template has an empty {{}}")
    value, rest = _piped(tokens)
    if rest:
        raise BadTemplate(f"the template cannot be read at {rest[0][1]!r}")
    return value


def _piped(tokens: list[tuple[str, str]]) -> tuple[Expression, list[tuple[str, str]]]:
    value, tokens = _command(tokens, None)
    while tokens and tokens[0][1] == "|":
        value, tokens = _command(tokens[1:], value)
    return value, tokens


def _command(
    tokens: list[tuple[str, str]], last: Expression | None
) -> tuple[Expression, list[tuple[str, str]]]:
    """A function with its arguments (`last` of a pipeline behind them), or a value."""
    if not tokens:
        raise BadTemplate("the template has a | with nothing behind it")
    kind, word = tokens[0]
    if kind == "word" and word not in ("true", "false", "nil"):
        if word not in _FUNCTIONS:
            raise BadTemplate(f"the template has the unknown function {word!r}")
        function, tokens = _FUNCTIONS[word], tokens[1:]
        arguments: list[Expression] = []
        while tokens and tokens[0][1] not in ("|", ")"):
            argument, tokens = _operand(tokens)
            arguments.append(argument)
        if last is not None:
            arguments.append(last)
        return _called(word, function, arguments), tokens
    value, tokens = _operand(tokens)
    if kind == "path" and word.endswith(".Label") and tokens:
        # Docker's method of a container or image.
        name, tokens = _operand(tokens)
        return lambda scope: _field(scope["."], "labels").get(name(scope), ""), tokens
    return value, tokens


def _called(word: str, function: Callable[..., Any], arguments: list[Expression]) -> Expression:
    def call(scope: Scope) -> Any:
        try:
            return function(*(argument(scope) for argument in arguments))
        except (TypeError, LookupError, ValueError) as error:
            if isinstance(error, BadTemplate):
                raise
            raise BadTemplate(f"the template's {word!r} cannot take what it is given") from None

    return call


def _operand(tokens: list[tuple[str, str]]) -> tuple[Expression, list[tuple[str, str]]]:
    (kind, word), rest = tokens[0], tokens[1:]
    if kind == "text":
        constant: Any = word[1:-1] if word[0] == "`" else json.loads(word)
    elif kind == "number":
        constant = int(word)
    elif word in ("true", "false", "nil"):
        constant = {"true": True, "false": False, "nil": None}[word]
    elif word == "(":
        inner, rest = _piped(rest)
        if not rest or rest[0][1] != ")":
            raise BadTemplate("the template has a ( without its )")
        rest = rest[1:]
        if rest and rest[0][0] == "member":
            return _member(inner, rest[0][1].split(".")[1:]), rest[1:]
        return inner, rest
    elif kind == "path":
        return _path(word), rest
    else:
        raise BadTemplate(f"the template cannot be read at {word!r}")
    return lambda scope: constant, rest


def _path(word: str) -> Expression:
    head, *names = word.split(".") if word != "." else [""]

    def base(scope: Scope) -> Any:
        if (head or ".") not in scope:
            raise BadTemplate(f"the template has no variable {head}")
        return scope[head or "."]

    return _member(base, names)


def _member(base: Expression, names: Sequence[str]) -> Expression:
    return lambda scope: reduce(_field, names, base(scope))


def _field(found: Any, name: str) -> Any:
    if isinstance(found, Word):
        found = found.fields
    if not isinstance(found, Mapping):
        raise BadTemplate(f"the template asks for .{name} of {_shown(found) or 'nothing'}")
    for key in (name, snake_case(name)):
        if key in found:
            return found[key]
    known = ", ".join(f".{key}" for key in found if not key.startswith("_"))
    raise BadTemplate(f"there is no .{name} here; there is {known or 'nothing'}")


def snake_case(name: str) -> str:
    """`CreatedAt` as `created_at`, `ID` as `id`, `OOMKilled` as `oom_killed`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _rendered(nodes: tuple[Any, ...], scope: Scope) -> Iterator[str]:
    for node in nodes:
        match node:
            case _Text(text):
                yield text
            case _Show(value):
                yield _shown(value(scope))
            case _Block():
                yield from _of_block(node, scope)


def _of_block(block: _Block, scope: Scope) -> Iterator[str]:
    value = block.value(scope)
    if not value:
        yield from _rendered(block.otherwise, scope)
    elif block.word == "range":
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            names = dict(zip(block.names[::-1], (item, key), strict=False))
            yield from _rendered(block.body, {**scope, **names, ".": item})
    else:
        inner = {**scope, **dict.fromkeys(block.names, value)}
        if block.word == "with":
            inner["."] = value
        yield from _rendered(block.body, inner)


def _shown(value: Any) -> str:
    """A value as Go prints it, but nothing for what there is not."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{_shown(item)}' for key, item in sorted(value.items()))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(_shown, value))}]"
    return str(value)


def _json(value: Any) -> str:
    if isinstance(value, Fields):
        value = value.row
    if isinstance(value, Mapping):
        value = {key: item for key, item in value.items() if not str(key).startswith("_")}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


def _slice(value: Any, start: int = 0, end: int | None = None) -> Any:
    return value[start:end]


def _printf(form: str, *values: Any) -> str:
    """Go's verbs that are not Python's stand for any value as it is shown."""
    shown = (
        v if isinstance(v, int | float) and v not in (True, False) else _shown(v) for v in values
    )
    return re.sub(r"%([-+ 0-9.]*)[vt]", r"%\1s", form).replace("%q", '"%s"') % tuple(shown)


def _both(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _either(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "json": _json,
    "join": lambda items, between: between.join(map(_shown, items)),
    "split": lambda text, between: text.split(between),
    "lower": lambda text: _shown(text).lower(),
    "upper": lambda text: _shown(text).upper(),
    "title": lambda text: _shown(text).title(),
    "truncate": lambda text, length: _shown(text)[:length],
    "pad": lambda text, before, after: " " * before + _shown(text) + " " * after,
    "print": lambda *values: "".join(map(_shown, values)),
    "println": lambda *values: " ".join(map(_shown, values)) + "\n",
    "len": len,
    "printf": _printf,
    "slice": _slice,
    "index": _index,
    "eq": lambda one, *others: any(one == other for other in others),
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
    "not": lambda value: not value,
    "and": _both,
    "or": _either,
}
