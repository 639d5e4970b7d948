# SPDX-License-Identifier: Apache-2.0
"""Tables of results as Markdown, and the few figures that all of them use. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Table:
    """One part's results. The first column is text, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def render(table: Table) -> str:
    """The table under a heading, its notes below."""
    lines = [f"### {table.title}", "", _row(table.columns)]
    lines.append(_row(["---", *["---:"] * (len(table.columns) - 1)]))
    lines += [_row(cells) for cells in table.rows]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def median(values: Iterable[float]) -> float:
    """The median. Raises ValueError when nothing was measured."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """The least and the largest of some seconds, in milliseconds."""
    return f"{min(values) * 1000:.0f} to {max(values) * 1000:.0f}"


def seconds(value: float) -> str:
    """A time for people: three figures that matter."""
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 0.01:
        return f"{value * 1000:.1f} ms"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s"


def mebibytes(value: float) -> str:
    """Bytes in MiB."""
    return f"{value / MIB:.1f} MiB" if value >= 10 * MIB else f"{value / MIB:.2f} MiB"


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def at_most(value: float, limit: float, shown: str) -> str:
    """A target that is an upper bound, and whether it is met."""
    return f"< {shown}: {'met' if value < limit else 'MISSED'}"


def at_least(value: float, limit: float, shown: str) -> str:
    """A target that is a lower bound, and whether it is met."""
    return f"≥ {shown}: {'met' if value >= limit else 'MISSED'}"
