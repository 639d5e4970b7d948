# SPDX-License-Identifier: Apache-2.0
"""Flags of the commands that remove unused objects: filters and confirmation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from orchestrator.model.units import parse_moment

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class PruneFilters:
    """`--filter until=TIME`, `label=KEY[=VALUE]` and `label!=KEY[=VALUE]`; all must match."""

    texts: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    """Key → value; empty: any."""
    without: tuple[str, ...] = ()
    until: float = 0.0
    """Only objects created before this Unix time; 0: any."""

    def put_into(self, request: Any) -> Any:
        """Set the request's fields of the same names."""
        request.labels.update(self.labels)
        request.without.extend(self.without)
        request.until = self.until
        return request

    def hold(self, labels: Mapping[str, str], created_at: float) -> bool:
        """Whether an object matches."""
        if self.until and created_at >= self.until:
            return False
        if not all(_has(labels, key, value) for key, value in self.labels.items()):
            return False
        return not any(_has(labels, *text.partition("=")[::2]) for text in self.without)


def _has(labels: Mapping[str, str], key: str, value: str) -> bool:
    return key in labels and (not value or labels[key] == value)


def prune_options(function: F) -> F:
    """`--filter`, as PruneFilters, and `--force`."""
    function = click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="KEY=VALUE",
        callback=lambda ctx, param, texts: _read(texts),
        help="Only objects that match all of these; repeatable. Keys: until, label, label!.",
    )(function)
    return click.option("--force", "-f", is_flag=True, help="Do not ask for confirmation.")(
        function
    )


def confirm(what: Sequence[str], filters: PruneFilters) -> None:
    """Ask for confirmation; aborts the command if the answer is no."""
    things = "; ".join(what)
    only = f" (only those with {', '.join(filters.texts)})" if filters.texts else ""
    click.confirm(f"This removes {things}{only}. Continue?", abort=True, err=True)


def _read(texts: Sequence[str]) -> PruneFilters:
    labels: dict[str, str] = {}
    without: list[str] = []
    until = 0.0
    for text in texts:
        key, _, value = text.partition("=")
        if key == "label" and value:
            name, _, labels_value = value.partition("=")
            labels[name] = labels_value
        elif key == "label!" and value:
            without.append(value)
        elif key == "until" and value:
            try:
                until = parse_moment(value, time.time(), "until")
            except ValueError as error:
                raise click.BadParameter(str(error)) from None
        else:
            raise click.BadParameter(
                f"filter {text!r} is not one of until=TIME, label=KEY, label!=KEY"
            )
    return PruneFilters(tuple(texts), labels, tuple(without), until)
