# SPDX-License-Identifier: Apache-2.0
"""What `orc top` shows: nodes, services and tasks as tables that are sorted and filtered. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cli.output.listings import Row
from orchestrator.model.units import format_cores, format_memory, format_size

BAR = 8
"""Width of a bar in characters."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
CPU = 100.0
"""Per cent of a core."""
_SHARES = 1024
"""Of a core."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The cluster at one moment: a row per object, with its usage."""

    nodes: Sequence[Row] = ()
    services: Sequence[Row] = ()
    tasks: Sequence[Row] = ()
    leader: str = ""
    problem: str = ""
    """Why the figures are outdated, if they are."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its heading, a row's text, and its sort key."""

    heading: str
    text: Callable[[Row], str]
    key: Callable[[Row], Any]
    number: bool = False
    """Whether it is numeric: aligned right, and sorted in descending order."""
    level: Callable[[Row], float] | None = None
    """Utilization from 0 to 1, for its colour."""


@dataclass(frozen=True, slots=True)
class View:
    """One of the tables."""

    name: str
    fields: tuple[Field, ...]
    rows: Callable[[Figures], Sequence[Row]]
    searched: tuple[str, ...]
    """Keys of a row that the filter looks in."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The user's choices for a view."""

    sort: int = 0
    """Number of the field."""
    reverse: bool = False
    text: str = ""
    """The filter: words that must all occur in the row."""
    scope: Mapping[str, str] = field(default_factory=dict)
    """Key → value that rows must have: the entered node or service."""


def bar(level: float, width: int = BAR) -> str:
    """Such as `████▌   `; more than full is full."""
    eighths = round(max(0.0, min(1.0, level)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)


def visible_rows(view: View, figures: Figures, choice: Choice) -> list[Row]:
    """The rows of a view, filtered and sorted."""
    words = choice.text.lower().split()
    rows = [
        row
        for row in view.rows(figures)
        if all(str(row.get(key)) == value for key, value in choice.scope.items())
        and _has(row, words, view.searched)
    ]
    chosen = view.fields[choice.sort]
    rows.sort(key=lambda row: str(row["name"]))
    rows.sort(key=chosen.key, reverse=chosen.number != choice.reverse)
    return rows


def _has(row: Row, words: Sequence[str], keys: Sequence[str]) -> bool:
    texts = [str(row.get(key, "")).lower() for key in keys]
    return all(any(word in text for text in texts) for word in words)


def node_rows(nodes: Iterable[Row], containers: Iterable[Row]) -> list[Row]:
    """Nodes with the usage of their containers."""
    used: dict[str, list[Row]] = {}
    for each in containers:
        used.setdefault(each["node"], []).append(each)
    return [
        {**node, "name": node["hostname"], **_sums(used.get(node["hostname"], ()))}
        for node in nodes
    ]


def task_rows(tasks: Iterable[Row], containers: Iterable[Row]) -> list[Row]:
    """Tasks with their usage, where known."""
    used = {each["id"]: each for each in containers}
    return [{**task, **_sums([used[task["id"]]] if task["id"] in used else ())} for task in tasks]


def service_rows(services: Iterable[Row], tasks: Iterable[Row]) -> list[Row]:
    """Services with the usage of their tasks; `tasks` are those of `task_rows`."""
    used: dict[str, list[Row]] = {}
    for each in tasks:
        used.setdefault(each["service"], []).append(each)
    return [{**service, **_sums(used.get(service["name"], ()))} for service in services]


def _sums(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    return {
        key: sum(row[key] for row in rows)
        for key in ("cpu_percent", "memory", "net_received", "net_sent")
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _plain(heading: str, key: str) -> Field:
    return Field(heading, lambda row: str(row[key]), lambda row: str(row[key]))


def _node_cpu(row: Row) -> float:
    return _share(row["cpu_percent"] / CPU * _SHARES, row["shares_total"])


def _node_memory(row: Row) -> float:
    return _share(row["memory"], row["memory_total"])


def _with_bar(heading: str, level: Callable[[Row], float], text: Callable[[Row], str]) -> Field:
    """A field with a bar of the utilization."""
    return Field(
        heading, lambda row: f"{bar(level(row))} {text(row)}", level, number=True, level=level
    )


def _reserved(heading: str, what: str, text: Callable[[int], str]) -> Field:
    """The reserved fraction of a node's `shares` or `memory`."""
    reserved, total = f"{what}_reserved", f"{what}_total"
    return _with_bar(
        heading,
        lambda row: _share(row[reserved], row[total]),
        lambda row: f"{text(row[reserved])}/{text(row[total])}",
    )


_NET = Field(
    "NET I/O",
    lambda row: f"{format_size(row['net_received'])} / {format_size(row['net_sent'])}",
    lambda row: row["net_received"] + row["net_sent"],
    number=True,
)
_CPU = Field(
    "CPU %", lambda row: f"{row['cpu_percent']:.1f}", lambda row: row["cpu_percent"], number=True
)
_MEMORY = Field(
    "MEMORY", lambda row: format_memory(row["memory"]), lambda row: row["memory"], number=True
)

NODES = View(
    "nodes",
    (
        _plain("NODE", "name"),
        Field("STATE", lambda row: _node_state(row), lambda row: _node_state(row)),
        Field("TASKS", lambda row: str(row["tasks"]), lambda row: row["tasks"], number=True),
        _with_bar("CPU", _node_cpu, lambda row: f"{_node_cpu(row):4.0%}"),
        _reserved("CPU RESERVED", "shares", format_cores),
        _with_bar("MEMORY", _node_memory, lambda row: format_memory(row["memory"])),
        _reserved("MEMORY RESERVED", "memory", format_memory),
        _NET,
    ),
    lambda figures: figures.nodes,
    ("name", "state", "availability", "address", "role"),
)
SERVICES = View(
    "services",
    (
        _plain("SERVICE", "name"),
        _plain("MODE", "mode"),
        Field(
            "RUNNING",
            lambda row: f"{row['running']}/{row['replicas']}",
            lambda row: row["running"],
            number=True,
            level=lambda row: 1.0 if row["running"] < row["replicas"] else 0.0,
        ),
        _CPU,
        _MEMORY,
        _NET,
        _plain("IMAGE", "image"),
    ),
    lambda figures: figures.services,
    ("name", "mode", "image"),
)
TASKS = View(
    "tasks",
    (
        _plain("TASK", "name"),
        _plain("NODE", "node"),
        _plain("STATE", "state"),
        _CPU,
        _MEMORY,
        _NET,
        _plain("IMAGE", "image"),
        Field("STATUS", lambda row: str(row["_status"]), lambda row: str(row["_status"])),
    ),
    lambda figures: figures.tasks,
    ("name", "node", "state", "service", "image"),
)
VIEWS = (NODES, SERVICES, TASKS)


def _node_state(row: Row) -> str:
    state = str(row["state"])
    return state if row["availability"] == "active" else f"{state}, {row['availability']}"


def count(number: int, noun: str) -> str:
    """Such as `1 node`, `2 nodes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_ENDED = ("exited", "failed", "complete", "shutdown", "rejected", "orphaned", "removing")
"""Terminal states of tasks."""


def headline(figures: Figures) -> str:
    """The cluster in one line."""
    nodes, tasks = figures.nodes, figures.tasks
    ready = sum(node["state"] == "ready" for node in nodes)
    running = sum(task["state"] == "running" for task in tasks)
    wanted = sum(task["state"] not in _ENDED for task in tasks)
    cores = sum(node["cpu_percent"] for node in nodes) / CPU
    total = sum(node["shares_total"] for node in nodes)
    memory = sum(node["memory"] for node in nodes)
    whole = sum(node["memory_total"] for node in nodes)
    return (
        f"{ready}/{len(nodes)} nodes ready, {count(len(figures.services), 'service')}, "
        f"{running}/{wanted} tasks running, {cores:.1f} of {format_cores(total)} cores, "
        f"{format_memory(memory)} of {format_memory(whole)}"
    )
