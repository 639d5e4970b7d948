# SPDX-License-Identifier: Apache-2.0
"""Listings: tables as Docker's, JSON documents, ids, templates and filters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import click

from orchestrator.cli.app.completion_names import completes_filter
from orchestrator.cli.output.screen import align_columns, terminal_width
from orchestrator.model.extensible import known_fields
from orchestrator.model.names import near_miss, short_id
from orchestrator.model.units import format_time

F = TypeVar("F", bound=Callable[..., Any])
Row = dict[str, Any]
"""One object as its JSON document: keys in snake_case, memory in bytes, times in RFC 3339."""

_TIMES = {"created_at", "updated_at", "at", "started_at", "finished_at", "state_since"}
_TIMES |= {"not_before", "due_at", "since", "decided_until", "running_since"}


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, and a row's text in it."""

    heading: str
    text: Callable[[Row], str]


def column(heading: str, key: str) -> Column:
    """A column that shows a value as it is."""
    return Column(heading, lambda row: str(row[key]))


def short(heading: str, key: str, whole: bool) -> Column:
    """A column of ids, cut to 12 characters unless `whole`."""
    return Column(heading, lambda row: row[key] if whole else short_id(row[key]))


class Format(click.Choice):  # type: ignore[type-arg]
    """`table`, `json`, or a Go template, parsed by `gotemplate`."""

    def __init__(self) -> None:
        super().__init__(["table", "json"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "{{" not in value:
            return super().convert(value, param, ctx)
        from orchestrator.model.formats.gotemplate import BadTemplate, Template, unescaped

        try:
            Template(unescaped(value))
        except BadTemplate as error:
            self.fail(str(error), param, ctx)
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "table|json|TEMPLATE"


def format_option(
    default: str = "table", templates: bool = False, short: bool = False
) -> Callable[[F], F]:
    """`--format table|json`, and templates where the command prints them; `short`: also `-f`."""
    return click.option(
        *(("--format", "-f", "form") if short else ("--format", "form")),
        type=Format() if templates else click.Choice(["table", "json"]),
        default=default,
        show_default=True,
        help="Output format, or a template such as '{{.ID}} {{.Name}}'."
        if templates
        else "Output format.",
    )


def listing_options(*keys: str) -> Callable[[F], F]:
    """`--format`, `--quiet` and `--filter` for a command that lists; `keys` can be filtered by."""

    def decorate(function: F) -> F:
        shown = ", ".join(keys)
        function = click.option(
            "--filter",
            "-f",
            "filters",
            multiple=True,
            metavar="KEY=VALUE",
            shell_complete=completes_filter(keys),
            callback=lambda ctx, param, values: _parse_filters(values, keys),
            help=f"Only matching objects; repeatable. Keys: {shown}.",
        )(function)
        function = click.option("--quiet", "-q", is_flag=True, help="Print ids only.")(function)
        return format_option(templates=True)(function)

    return decorate


def print_list(
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
) -> None:
    """Print the rows that match the filters."""
    kept = [row for row in rows if _matches(row, filters)]
    if quiet:
        for identifier in dict.fromkeys(row["id"] for row in kept):
            click.echo(identifier)
    else:
        print_rows(kept, columns, form)


def print_rows(rows: Sequence[Row], columns: Sequence[Column], form: str, kind: str = "") -> None:
    """Print rows as `--format` says: a table, one JSON document, or a template's text for each.
    `kind`: of what they are documents, if Docker has names for more in them (`docker_fields`)."""
    if form == "json":
        print_json([public_row(row) for row in rows])
    elif form == "table":
        print_table(rows, columns)
    else:
        for line in template_lines(rows, columns, form, kind):
            click.echo(line)


def template_lines(
    rows: Sequence[Row], columns: Sequence[Column], form: str, kind: str = ""
) -> list[str]:
    """A template's lines for rows. A field is a column, by its heading or by Docker's name for it,
    or else a key of the JSON document, or what Docker has in a document of this kind. `table
    TEMPLATE` has headings, and columns at its tabs."""
    from orchestrator.model.formats.gotemplate import BadTemplate, Fields, Template, unescaped

    as_table = form.startswith("table ")
    template = Template(unescaped(form.removeprefix("table ")))
    names = {name: column for column in columns for name in _placeholders(column.heading)}
    others = _others(kind)
    try:
        lines = [
            template.render(
                Fields(row, {n: column.text(row) for n, column in names.items()} | others(row))
            )
            for row in rows
        ]
        if not as_table:
            return lines
        keys = {key: key.upper().replace("_", " ") for key in (rows[0] if rows else ())}
        head = Fields(keys, {name: column.heading for name, column in names.items()})
        return align_columns([line.split("\t") for line in [template.render(head), *lines]])
    except BadTemplate as error:
        raise click.BadParameter(str(error)) from None


def _others(kind: str) -> Callable[[Row], dict[str, Any]]:
    from orchestrator.cli.output.docker_fields import DOCKER

    fields = DOCKER.get(kind)
    return lambda row: dict(fields(row)) if fields else {}


_WORDS = {"ID": "ID", "IO": "IO", "PIDS": "PIDs", "CPU%": "CPUPerc", "MEM%": "MemPerc"}
_DOCKERS = {
    "CREATED": ("RunningFor", "CreatedSince"),
    "NAMES": ("Name",),
    "VERSION": ("EngineVersion",),
    "CONTENT SIZE": ("Size",),
    "CONTAINER ID": ("Container",),
    "LAYER": ("ID",),
}
"""Docker's names of the columns with these headings, where they are not the heading itself."""


def _placeholders(heading: str) -> Iterable[str]:
    """Such as `ContainerID` and `ID` of CONTAINER ID, `CPUPerc` of CPU %, `NetIO` of NET I/O."""
    words = heading.partition(" / ")[0].replace(" %", "%").replace("/", "").split()
    titles = [_WORDS.get(word, word.title()) for word in words]
    if not titles:
        return
    yield "".join(titles)
    if titles[-1] in ("ID", "Name"):
        yield titles[-1]
    yield from _DOCKERS.get(heading, ())


def print_json(document: object) -> None:
    """One document, indented, UTF-8 as it is."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(rows: Iterable[Row], columns: Sequence[Column]) -> None:
    """Headings and rows, columns three spaces apart."""
    for line in table_lines(rows, columns):
        click.echo(line)


def table_lines(rows: Iterable[Row], columns: Sequence[Column]) -> list[str]:
    """The lines of `print_table`, which fit the terminal if stdout is one."""
    lines = [[c.heading for c in columns]]
    lines += [[" ".join(c.text(row).split("\n")) for c in columns] for row in rows]
    return align_columns(lines, terminal_width())


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """`Name: value` lines, values in one column; empty ones are left out."""
    shown = [(name, value) for name, value in fields if value]
    widest = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        click.echo(f"{name + ':':{widest}} {value}")


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels on one line, control characters escaped."""
    texts = (f"{key}={value}" for key, value in sorted(labels.items()))
    return ", ".join("".join(map(_shown, text)) for text in texts)


def _shown(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def jsonable(value: Any, key: str = "") -> Any:
    """A dataclass of the model as its JSON document: enums as the words users type, times as
    RFC 3339 and null where there is none yet."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: jsonable(getattr(value, field.name), field.name)
            for field in known_fields(value)
        }
    if isinstance(value, IntEnum):
        return enum_word(value)
    if key in _TIMES:
        return rfc3339(value)
    if isinstance(value, tuple):
        return [jsonable(item) for item in value]
    return value


def enum_word(value: IntEnum) -> str:
    """An enum member in the users' form: `ON_FAILURE` is `on-failure`."""
    return value.name.lower().replace("_", "-")


def rfc3339(seconds: float) -> str | None:
    """RFC 3339; None for 0."""
    return format_time(seconds) if seconds else None


def public_row(row: Row) -> Row:
    """A row without the keys that only its table needs."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def _parse_filters(values: Sequence[str], keys: Sequence[str]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"filter {text!r} is not of the form KEY=VALUE")
        if key not in keys:
            meant = near_miss(key, keys)
            hint = f"did you mean {meant!r}?" if meant else f"known are {', '.join(keys)}"
            raise click.BadParameter(f"filter {key!r} is unknown here; {hint}")
        filters.setdefault(key, []).append(value)
    return filters


def _matches(row: Row, filters: Mapping[str, Sequence[str]]) -> bool:
    """As in Docker: values of one key are alternatives, different keys must all match."""
    return all(
        any(_holds(row, key.replace("-", "_"), value) for value in values)
        for key, values in filters.items()
    )


def matches_image_name(row: Row, reference: str) -> bool:
    """Whether an image's row has such a name: `hello`, `hello:1`, or a pattern such as `*/hello:1*`
    of which, as in Docker, no `*` stands for a slash."""
    pattern = reference.split("/")
    return any(
        len(pattern) == len(parts) and all(map(fnmatchcase, parts, pattern))
        for name in (row["repository"], f"{row['repository']}:{row['tag']}")
        for parts in [name.split("/")]
    )


def _holds(row: Row, key: str, value: str) -> bool:
    if key == "label":
        name, equals, wanted = value.partition("=")
        labels = row["labels"]
        return name in labels and (not equals or labels[name] == wanted)
    if key in ("id", "name"):
        return bool(str(row.get(key) or row.get("hostname")).startswith(value))
    if key == "node":
        return value in (row["node"], row["node_id"]) or row["node_id"].startswith(value)
    if key == "reference":
        return matches_image_name(row, value)
    if key == "on":
        return value in row["nodes"]
    return bool(str(row[key]).lower() == value.lower())
