"""What commands about several objects have in common: `inspect NAME…` and `rm NAME…`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any, TypeVar

import click

from orchestrator.cli.groups import CliError, error_line
from orchestrator.cli.output import Row, format_option, print_rows

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def inspect_options(function: F) -> F:
    """`--format json|table|TEMPLATE` and Docker's `--pretty`, which is `form="table"`."""

    def command(*arguments: Any, form: str, pretty: bool, **values: Any) -> Any:
        return function(*arguments, form="table" if pretty else form, **values)

    wrapped = update_wrapper(command, function)
    option = click.option("--pretty", is_flag=True, help="The same as --format table.")
    return format_option("json", templates=True, short=True)(option(wrapped))  # type: ignore[return-value]


def print_inspected(
    found: Sequence[T],
    form: str,
    show: Callable[[T], None],
    row: Callable[[T], Row] = lambda one: one,  # type: ignore[assignment, return-value]
) -> None:
    """Print objects as `inspect_options` say: each as its row, or for people by `show`."""
    if form != "table":
        print_rows(list(map(row, found)), (), form)
        return
    for index, one in enumerate(found):
        if index:
            click.echo()
        show(one)


def remove_each(names: Sequence[str], remove: Callable[[str], object]) -> None:
    """Remove objects one by one and print the name of each that has gone. One that cannot go keeps
    no other; then it ends in a CliError."""
    failed: list[CliError] = []
    for name in names:
        try:
            remove(name)
        except CliError as error:
            failed.append(error)
            if len(names) > 1:
                click.echo(f"orc: {error_line(error)}", err=True)
        else:
            click.echo(name)
    if failed:
        raise failed[0] if len(names) == 1 else CliError(f"{len(failed)} were not removed")
