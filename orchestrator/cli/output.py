"""What commands print: tables as Docker's, one JSON document, ids, and what filters leave."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import click

from orchestrator.model.names import near_miss
from orchestrator.model.units import format_time

F = TypeVar("F", bound=Callable[..., Any])
Row = dict[str, Any]
"""One object as its JSON document: keys in snake_case, memory in bytes, times in RFC 3339."""

_TIMES = {"created_at", "updated_at", "at", "started_at", "finished_at", "state_since"}
_TIMES |= {"not_before"}


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, and a row's text in it."""

    heading: str
    text: Callable[[Row], str]


def column(heading: str, key: str) -> Column:
    """A column that shows a value as it is."""
    return Column(heading, lambda row: str(row[key]))


def format_option(default: str = "table") -> Callable[[F], F]:
    """`--format table|json`."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(["table", "json"]),
        default=default,
        show_default=True,
        help="How to print it.",
    )


def listing_options(*keys: str) -> Callable[[F], F]:
    """`--format`, `--quiet` and `--filter` for a command that lists; `keys` can be filtered by."""

    def decorate(function: F) -> F:
        shown = ", ".join(keys)
        function = click.option(
            "--filter",
            "filters",
            multiple=True,
            metavar="KEY=VALUE",
            callback=lambda ctx, param, values: _parse_filters(values, keys),
            help=f"Only what matches; repeatable. Keys: {shown}.",
        )(function)
        function = click.option("--quiet", "-q", is_flag=True, help="Print ids only.")(function)
        return format_option()(function)

    return decorate


def print_list(
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
) -> None:
    """Print the rows that the filters leave."""
    kept = [row for row in rows if _matches(row, filters)]
    if quiet:
        for identifier in dict.fromkeys(row["id"] for row in kept):
            click.echo(identifier)
    elif form == "json":
        print_json([public(row) for row in kept])
    else:
        print_table(kept, columns)


def print_json(document: object) -> None:
    """One document, indented, UTF-8 as it is."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(rows: Iterable[Row], columns: Sequence[Column]) -> None:
    """Headings and rows, columns three spaces apart."""
    for line in table_lines(rows, columns):
        click.echo(line)


def table_lines(rows: Iterable[Row], columns: Sequence[Column]) -> list[str]:
    """The lines of `print_table`."""
    lines = [[c.heading for c in columns]]
    lines += [[" ".join(c.text(row).split("\n")) for c in columns] for row in rows]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    return [
        "   ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """`Name: value` lines, values in one column; empty ones are left out."""
    shown = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        click.echo(f"{name + ':':{width}} {value}")


def jsonable(value: Any, key: str = "") -> Any:
    """A dataclass of the model as its JSON document: enums as the words users type, times as
    RFC 3339 and null where there is none yet."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: jsonable(getattr(value, field.name), field.name)
            for field in dataclasses.fields(value)
        }
    if isinstance(value, IntEnum):
        return word(value)
    if key in _TIMES:
        return moment(value)
    if isinstance(value, tuple):
        return [jsonable(item) for item in value]
    return value


def word(value: IntEnum) -> str:
    """An enum as users type it: `ON_FAILURE` is `on-failure`."""
    return value.name.lower().replace("_", "-")


def moment(seconds: float) -> str | None:
    """RFC 3339, or None for what has not happened."""
    return format_time(seconds) if seconds else None


def public(row: Row) -> Row:
    """A row without what only its table needs."""
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
    """As Docker has it: values of one key are alternatives, different keys must all hold."""
    return all(
        any(_holds(row, key.replace("-", "_"), value) for value in values)
        for key, values in filters.items()
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
        names = (row["repository"], f"{row['repository']}:{row['tag']}")
        return any(fnmatchcase(name, value) for name in names)
    if key == "on":
        return value in row["nodes"]
    return bool(str(row[key]).lower() == value.lower())
