# SPDX-License-Identifier: Apache-2.0
"""The subset of Go's text/template that Docker's users write: in `--format` and in services' specs.

Supported: `{{.Field.Field}}` (in our spelling or in Docker's, `.created_at` or `.CreatedAt`),
`{{json .}}` and the other functions of `FUNCTIONS`, pipelines with `|`, `if`, `with` and `range`
with `else` and `end`, variables, and `{{-`/`-}}`. Sources: pkg.go.dev/text/template and Docker's
"Format command and log output".
"""

from __future__ import annotations

import json
import re
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

_ASSIGNMENT = re.compile(r"(\$\w+)\s*(:?=)(?!=)(.*)", re.DOTALL)
_WIDEST = 999
"""Maximum width in `printf` or `pad`."""
_ABSENT = ("block", "break", "call", "continue", "define", "html", "js", "template", "urlquery")
"""Go's keywords that are not supported."""

Scope = ChainMap[str, Any]
"""Variables by name: `.` is the dot, `$` the row."""
Expression = Callable[[Scope], Any]
Functions = Mapping[str, Callable[..., Any]]


class BadTemplate(ValueError):
    """An invalid template, or one that refers to a field that a row does not have."""

    line = 0
    """Line in the template, from 1; 0: unknown."""


class Labels(dict[str, str]):
    """A map with the empty text for missing keys."""


class Fields(dict[str, Any]):
    """A row with further fields, such as columns and Docker's names; as JSON it is the row
    alone."""

    def __init__(self, row: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        super().__init__({**row, **others})
        self.row = row


class Word(str):
    """A text with fields: `.State` is `running`, `.State.Pid` is 7."""

    __slots__ = ("fields",)
    fields: Mapping[str, Any]

    def __new__(cls, text: str, fields: Mapping[str, Any]) -> Self:
        """The text with these fields."""
        word = super().__new__(cls, text)
        word.fields = fields
        return word


@dataclass(frozen=True, slots=True)
class _Text:
    """Text between actions, as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class _Show:
    """`{{VALUE}}`."""

    value: Expression
    line: int


@dataclass(frozen=True, slots=True)
class _Assign:
    """`$NAME := VALUE`, or `$NAME = VALUE` for a variable that is there."""

    name: str
    new: bool
    value: Expression
    line: int


@dataclass(frozen=True, slots=True)
class _Block:
    """A block, with its branches."""

    word: str
    """`if`, `with` or `range`."""
    value: Expression
    names: tuple[str, ...]
    body: tuple[Any, ...]
    otherwise: tuple[Any, ...]
    line: int


def _no_place(_action: str) -> Expression | None:
    return None


class Template:
    """A template, read once and rendered for each row. Raises BadTemplate.

    `place` may know an action as a whole, which is read otherwise if it answers None.
    """

    def __init__(
        self,
        text: str,
        functions: Functions | None = None,
        place: Callable[[str], Expression | None] = _no_place,
    ) -> None:
        reader = _Reader(FUNCTIONS if functions is None else functions, place)
        try:
            self._nodes, ended_by = reader.parse(_pieces(text))
        except RecursionError:
            raise BadTemplate("the template is nested too deeply") from None
        if ended_by:
            raise BadTemplate(f"the template has a {{{{{ended_by}}}}} with nothing to end")

    def render(self, row: Any, most: int | None = None) -> str:
        """The text for a row. Raises BadTemplate for a field that it does not have. With `most`,
        also for more characters than that, and for more than `STEPS` steps."""
        return self._run(row, _Run(most))

    def check(self, row: Any) -> None:
        """Evaluate every branch for a row. Raises BadTemplate."""
        self._run(row, _Run(None, every=True))

    def _run(self, row: Any, run: _Run) -> str:
        scope: Scope = ChainMap({".": row, "$": row})
        found, size = [], 0
        for piece in run.rendered(self._nodes, scope):
            found.append(piece)
            size += len(piece)
            if run.most is not None and size > run.most:
                raise BadTemplate(f"the template makes more than {run.most} characters")
        return "".join(found)


def unescaped(text: str) -> str:
    """A template from a command line with its tabs and line ends unescaped."""
    for written, meant in _ESCAPES.items():
        text = text.replace(written, meant)
    return text


def _pieces(text: str) -> Iterator[tuple[str, str, int]]:
    """(`text` or `action`, its content, its line) in turn."""
    at, trim, line = 0, False, 1
    for match in _ACTION.finditer(text):
        between = text[at : match.start()]
        line += between.count("\n")
        between = between.lstrip() if trim else between
        yield "text", between.rstrip() if match[1] else between, line
        if not match[2].startswith("/*"):
            yield "action", match[2], line
        at, trim = match.end(), bool(match[3])
        line += match[0].count("\n")
    rest = text[at:]
    if "{{" in rest:
        raise _at(
            line + rest.partition("{{")[0].count("\n"), "the template has a {{ without its }}"
        )
    yield "text", rest.lstrip() if trim else rest, line


def _at(line: int, words: str) -> BadTemplate:
    error = BadTemplate(words)
    error.line = line
    return error


@contextmanager
def _on(line: int) -> Iterator[None]:
    """Add the line to errors that have none."""
    try:
        yield
    except BadTemplate as error:
        error.line = error.line or line
        raise


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a template into its parts."""

    functions: Functions
    place: Callable[[str], Expression | None]

    def parse(self, pieces: Iterator[tuple[str, str, int]]) -> tuple[tuple[Any, ...], str]:
        """The nodes up to an `end` or `else`, and that; the empty text at the end of all."""
        nodes: list[Any] = []
        for kind, text, line in pieces:
            if kind == "text":
                nodes.append(_Text(text))
                continue
            word, _, rest = text.partition(" ")
            if word in ("end", "else"):
                return tuple(nodes), text
            with _on(line):
                if word in ("if", "with", "range"):
                    nodes.append(self._block(word, rest, pieces, line))
                elif assignment := _ASSIGNMENT.fullmatch(text):
                    name, walrus, value = assignment.groups()
                    nodes.append(_Assign(name, walrus == ":=", self._pipeline(value), line))
                else:
                    nodes.append(_Show(self.place(text) or self._pipeline(text), line))
        return tuple(nodes), ""

    def _block(
        self, word: str, text: str, pieces: Iterator[tuple[str, str, int]], line: int
    ) -> _Block:
        names, walrus, value = text.rpartition(":=")
        variables = tuple(name.strip() for name in names.split(",")) if walrus else ()
        body, ended_by = self.parse(pieces)
        otherwise: tuple[Any, ...] = ()
        if ended_by.startswith(("else if ", "else with ")):
            _, inner, rest = ended_by.split(" ", 2)
            otherwise = (self._block(inner, rest, pieces, line),)
        elif ended_by == "else":
            otherwise, ended_by = self.parse(pieces)
        if not ended_by:
            raise BadTemplate(f"the template has a {{{{{word}}}}} without its {{{{end}}}}")
        return _Block(word, self._pipeline(value), variables, body, otherwise, line)

    def _pipeline(self, text: str) -> Expression:
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
        value, rest = self._piped(tokens)
        if rest:
            raise BadTemplate(f"the template cannot be read at {rest[0][1]!r}")
        return value

    def _piped(self, tokens: list[tuple[str, str]]) -> tuple[Expression, list[tuple[str, str]]]:
        value, tokens = self._command(tokens, None)
        while tokens and tokens[0][1] == "|":
            value, tokens = self._command(tokens[1:], value)
        return value, tokens

    def _command(
        self, tokens: list[tuple[str, str]], last: Expression | None
    ) -> tuple[Expression, list[tuple[str, str]]]:
        """A function with its arguments (`last` of a pipeline behind them), or a value."""
        if not tokens:
            raise BadTemplate("the template has a | with nothing behind it")
        kind, word = tokens[0]
        if kind == "word" and word not in ("true", "false", "nil"):
            if word not in self.functions:
                what = f"{word!r} of Go's" if word in _ABSENT else f"the unknown function {word!r}"
                known = ", ".join(("if", "range", "with", *self.functions))
                raise BadTemplate(f"the template has {what}, which is not known; known are {known}")
            function, tokens = self.functions[word], tokens[1:]
            arguments: list[Expression] = []
            while tokens and tokens[0][1] not in ("|", ")"):
                argument, tokens = self._operand(tokens)
                arguments.append(argument)
            if last is not None:
                arguments.append(last)
            return _called(word, function, arguments), tokens
        value, tokens = self._operand(tokens)
        if kind == "path" and word.endswith(".Label") and tokens:
            # Docker's method of a container or image.
            name, tokens = self._operand(tokens)
            return lambda scope: _field(scope["."], "labels").get(name(scope), ""), tokens
        return value, tokens

    def _operand(self, tokens: list[tuple[str, str]]) -> tuple[Expression, list[tuple[str, str]]]:
        (kind, word), rest = tokens[0], tokens[1:]
        if kind == "text":
            constant: Any = word[1:-1] if word[0] == "`" else _unquoted(word)
        elif kind == "number":
            constant = int(word)
        elif word in ("true", "false", "nil"):
            constant = {"true": True, "false": False, "nil": None}[word]
        elif word == "(":
            inner, rest = self._piped(rest)
            if not rest or rest[0][1] != ")":
                raise BadTemplate("the template has a ( without its )")
            rest = rest[1:]
            if rest and rest[0][0] == "member":
                return _member(inner, rest[0][1].split(".")[1:]), rest[1:]
            return inner, rest
        elif kind == "path":
            return _path(word), rest
        elif kind == "word" and word in self.functions:
            return _called(word, self.functions[word], []), rest
        else:
            raise BadTemplate(f"the template cannot be read at {word!r}")
        return lambda scope: constant, rest


def _unquoted(word: str) -> str:
    try:
        text: str = json.loads(word)
    except ValueError:
        raise BadTemplate(f"the template cannot be read at {word!r}") from None
    return text


def _called(word: str, function: Callable[..., Any], arguments: list[Expression]) -> Expression:
    def call(scope: Scope) -> Any:
        try:
            return function(*(argument(scope) for argument in arguments))
        except (TypeError, LookupError, ValueError) as error:
            if isinstance(error, BadTemplate):
                raise
            raise BadTemplate(f"the template's {word!r} cannot take what it is given") from None

    return call


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
    if isinstance(found, Labels):
        return found.get(name, "")
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


STEPS = 100_000
"""Actions and loop turns of an evaluation that is limited, at the most: some 0.3 s of computing."""


class _Run:
    """One evaluation of a template; `every`: of all its branches."""

    def __init__(self, most: int | None, *, every: bool = False) -> None:
        self.most = most
        self._every = every
        self._steps = 0

    def rendered(self, nodes: tuple[Any, ...], scope: Scope) -> Iterator[str]:
        for node in nodes:
            self._step()
            match node:
                case _Text(text):
                    yield text
                case _Show(value, line):
                    with _on(line):
                        yield _shown(value(scope))
                case _Assign(name, new, value, line):
                    with _on(line):
                        self._assign(name, new, value(scope), scope)
                case _Block():
                    yield from self._of_block(node, scope)

    def _step(self) -> None:
        self._steps += 1
        if self.most is not None and self._steps > STEPS:
            raise BadTemplate(f"the template takes more than {STEPS} steps")

    def _assign(self, name: str, new: bool, value: Any, scope: Scope) -> None:
        found = scope.maps if not new else scope.maps[:1]
        holder = next((each for each in found if new or name in each), None)
        if holder is None:
            raise BadTemplate(f"the template has no variable {name}")
        holder[name] = value

    def _of_block(self, block: _Block, scope: Scope) -> Iterator[str]:
        with _on(block.line):
            value = block.value(scope)
        if not value or self._every:
            yield from self.rendered(block.otherwise, scope.new_child())
        if not value and not (self._every and block.word != "range"):
            return
        if block.word == "range":
            with _on(block.line):
                items = _items(value)
            for key, item in items:
                self._step()
                names = dict(zip(block.names[::-1], (item, key), strict=False))
                yield from self.rendered(block.body, scope.new_child({**names, ".": item}))
            return
        inner = scope.new_child(dict.fromkeys(block.names, value))
        if block.word == "with":
            inner["."] = value
        yield from self.rendered(block.body, inner)


def _items(value: Any) -> Sequence[tuple[Any, Any]]:
    """The items of a range over a map (in order of its keys, as in Go), a list or a number."""
    if isinstance(value, Labels):
        return sorted(value.items())
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    raise BadTemplate(f"the template ranges over {_shown(value)!r}, which is no list and no map")


def _shown(value: Any) -> str:
    """A value as Go prints it, but the empty text for a missing one."""
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
    if any(int(width) > _WIDEST for width in re.findall(r"\d+", form)):
        raise BadTemplate(f"the template prints with a width over {_WIDEST}")
    shown = (
        v if isinstance(v, int | float) and v not in (True, False) else _shown(v) for v in values
    )
    return re.sub(r"%([-+ 0-9.]*)[vt]", r"%\1s", form).replace("%q", '"%s"') % tuple(shown)


def _same(one: Any, other: Any) -> bool:
    """Numbers are compared with texts as they are shown, as a slot is either."""
    if isinstance(one, str) != isinstance(other, str):
        return _shown(one) == _shown(other)
    return bool(one == other)


def _both(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _either(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


FUNCTIONS: Functions = {
    "json": _json,
    "join": lambda items, between: between.join(map(_shown, items)),
    "split": lambda text, between: text.split(between),
    "lower": lambda text: _shown(text).lower(),
    "upper": lambda text: _shown(text).upper(),
    "title": lambda text: _shown(text).title(),
    "truncate": lambda text, length: _shown(text)[:length],
    "pad": lambda text, before, after: (
        " " * min(before, _WIDEST) + _shown(text) + " " * min(after, _WIDEST)
    ),
    "print": lambda *values: "".join(map(_shown, values)),
    "println": lambda *values: " ".join(map(_shown, values)) + "\n",
    "len": len,
    "printf": _printf,
    "slice": _slice,
    "index": _index,
    "eq": lambda one, *others: any(_same(one, other) for other in others),
    "ne": lambda one, other: not _same(one, other),
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
    "not": lambda value: not value,
    "and": _both,
    "or": _either,
}
