# SPDX-License-Identifier: Apache-2.0
"""Commands on several objects: `inspect NAME…`, `rm NAME…` and the like."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import update_wrapper
from typing import Any, TypeVar

import click

from orchestrator.cli.app.command_groups import error_line
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.listings import Row, format_option, print_rows

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
    *,
    kind: str = "",
) -> None:
    """Print objects as `inspect_options` say: each as its row, or by `show` in the table form.
    `kind` is that of `print_rows`."""
    if form != "table":
        print_rows(list(map(row, found)), (), form, kind)
        return
    for index, one in enumerate(found):
        if index:
            click.echo()
        show(one)


Attempt = Callable[[], AbstractContextManager[None]]


@contextmanager
def attempts() -> Iterator[Attempt]:
    """Runs several attempts, each in its own `with attempt():`. An error is printed as a line and
    does not stop the others; exits with 1 at the end if there was any."""
    failed = False

    @contextmanager
    def attempt() -> Iterator[None]:
        nonlocal failed
        try:
            yield
        except CliError as error:
            failed = True
            click.echo(f"orc: {error_line(error)}", err=True)

    yield attempt
    if failed:
        sys.exit(1)


def one_by_one(names: Iterable[str], act: Callable[[str], object]) -> None:
    """Act on each name and print it when done; errors as in `attempts`."""
    with attempts() as attempt:
        for name in names:
            with attempt():
                act(name)
                click.echo(name)
