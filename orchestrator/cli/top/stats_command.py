# SPDX-License-Identifier: Apache-2.0
"""`orc stats`: live resource usage of containers, over the whole cluster."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import INTERRUPTED
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    format_option,
    print_json,
    short,
    table_lines,
    template_lines,
)
from orchestrator.cli.output.screen import is_live
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.rpc.resumption import resumed
from orchestrator.model.convert import from_proto
from orchestrator.model.units import format_memory, format_size

_PERIOD = 1.0
"""Seconds between two samples."""
_PATIENCE = 5.0
"""Seconds that a sample waits for a known node."""
_CLEAR = "\x1b[H\x1b[2J"

_COLUMNS = (
    column("NAME", "name"),
    column("NODE", "node"),
    Column("CPU %", lambda row: f"{row['cpu_percent']:.2f}%"),
    Column(
        "MEM USAGE / LIMIT",
        lambda row: f"{format_memory(row['memory'])} / {format_memory(row['memory_limit'])}",
    ),
    Column("MEM %", lambda row: f"{row['memory_percent']:.2f}%"),
    Column(
        "NET I/O",
        lambda row: f"{format_size(row['net_received'])} / {format_size(row['net_sent'])}",
    ),
    Column(
        "BLOCK I/O",
        lambda row: f"{format_size(row['block_read'])} / {format_size(row['block_written'])}",
    ),
    column("PIDS", "pids"),
)
_COUNTED = (
    *("memory", "memory_limit", "net_received", "net_sent", "block_read", "block_written"),
    *("pids", "pids_limit"),
)
_NOTHING: Row = {"cpu_percent": 0.0, "memory_percent": 0.0, **dict.fromkeys(_COUNTED, 0)}


@click.command(epilog=example("orc stats", "orc stats --no-stream web.1 web.2"))
@click.option("--all", "-a", "everything", is_flag=True, help="Also stopped ones.")
@click.option("--no-stream", is_flag=True, help="Print one sample and exit.")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@format_option(templates=True)
@click.argument("containers", nargs=-1, shell_complete=completes("running_containers"))
@pass_client
def stats(
    client: Client,
    everything: bool,
    no_stream: bool,
    no_trunc: bool,
    form: str,
    containers: tuple[str, ...],
) -> None:
    """Show live resource usage of containers, by default of all running ones."""
    columns = [short("CONTAINER ID", "id", no_trunc), *_COLUMNS]
    try:
        for rows in samples(client, containers):
            if everything and not containers:
                rows += _idle(client, {row["id"] for row in rows})
            show_sample(rows, columns, form, no_stream)
            if no_stream:
                return
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _say(notice: str) -> None:
    click.echo(f"orc: {notice}", err=True)


def samples(
    client: Client, containers: Sequence[str], say: Callable[[str], None] = _say
) -> Iterator[list[Row]]:
    """Samples of all running containers, or of these, about one per second. Problems of nodes are
    printed. Raises CliError."""
    from orchestrator.pb import interact_pb2

    request = interact_pb2.StatsRequest(containers=containers)
    picture = Sample()
    shown = time.monotonic()
    due = shown
    """Time of the next sample; the first is shown as soon as it is complete."""
    for message in resumed(client, lambda: client.stream("Interact.Stats", request)):
        if notice := picture.take(message):
            say(notice)
        now = time.monotonic()
        if picture.complete(message.nodes, now - shown) and now >= due:
            shown, due = now, now + _PERIOD / 2
            yield picture.rows()


def _idle(client: Client, running: set[str]) -> list[Row]:
    """Rows of zeros for stopped containers."""
    from orchestrator.pb import containers_pb2

    request = containers_pb2.ListContainersRequest()
    listed = client.call("Containers.ListContainers", request).containers
    return [
        {**_NOTHING, "id": row.task.id, "name": from_proto(row.task).name,
         "node": row.node.description.hostname}
        for row in listed
        if row.task.id not in running
    ]  # fmt: skip


def show_sample(rows: list[Row], columns: Sequence[Column], form: str, once: bool) -> None:
    """Print one sample in the format; unless `once`, redraw in place."""
    if form == "json":
        if once:
            print_json(rows)
        else:
            click.echo(json.dumps(rows, ensure_ascii=False))
        return
    is_template = form != "table"
    lines = template_lines(rows, columns, form) if is_template else table_lines(rows, columns)
    live = not once and is_live(sys.stdout)
    click.echo((_CLEAR if live else "") + "\n".join(lines))


class Sample:
    """The latest figures of each node, with rates over the last two."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Row]] = {}
        self._before: dict[str, Any] = {}
        self._silent: set[str] = set()
        """Nodes that have reported a problem."""

    def take(self, message: Any) -> str:
        """Add a node's figures; the node's problem, if any."""
        if message.notice:
            self._silent.add(message.node)
            self._rows.pop(message.node, None)
            return str(message.notice)
        rows = {}
        for now in message.containers:
            before = self._before.get(now.task_id)
            self._before[now.task_id] = now
            if before is not None:
                rows[now.task_id] = _row(now, before, message.node)
        if rows or not message.containers:
            self._rows[message.node] = rows
            self._silent.discard(message.node)
        return ""

    def complete(self, nodes: int, waited: float) -> bool:
        """Whether all of this number of nodes have reported, or timed out."""
        return len(self._rows) + len(self._silent) >= nodes or waited > _PATIENCE

    def rows(self) -> list[Row]:
        """All containers, by name."""
        rows = [row for node in self._rows.values() for row in node.values()]
        return sorted(rows, key=lambda row: (row["name"], row["id"]))


def _row(now: Any, before: Any, node: str) -> Row:
    seconds = now.at - before.at
    cpu = (now.cpu - before.cpu) / 1e9 / seconds if seconds > 0 else 0.0
    return {
        "id": now.task_id,
        "name": now.name,
        "node": node,
        "cpu_percent": round(max(cpu, 0.0) * 100, 2),
        "memory_percent": round(100 * now.memory / max(now.memory_limit, 1), 2),
        **{key: getattr(now, key) for key in _COUNTED},
    }
