"""`orc top` without a container, and `orc system top`: the whole cluster, live.

At a terminal it is a screen to walk about in (`top_screen`, imported only then); elsewhere, and
with a format, the nodes' figures, printed anew each second.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.groups import INTERRUPTED, example
from orchestrator.cli.node_rows import node_row
from orchestrator.cli.output import Column, Row, column, format_option
from orchestrator.cli.screen import is_live
from orchestrator.cli.stats import pictures, show
from orchestrator.model.units import format_cores, format_memory, format_size
from orchestrator.pb import control_pb2

_SUMS = ("net_received", "net_sent", "block_read", "block_written", "pids")


@click.command(epilog=example("orc system top", "orc system top --no-stream --format json"))
@click.option("--no-stream", is_flag=True, help="Show one picture and end.")
@format_option(templates=True)
@pass_client
def top(client: Client, no_stream: bool, form: str) -> None:
    """Show what each node's containers use and have reserved of it, anew each second. At a
    terminal, the same as `orc top`."""
    show_cluster(client, no_stream, form)


def show_cluster(client: Client, no_stream: bool, form: str) -> None:
    """The screen where there is a terminal for it, else pictures as lines, until Ctrl-C."""
    if form == "table" and not no_stream and _has_screen():
        from orchestrator.cli.top_screen import run

        sys.exit(run(client.context))
    try:
        for rows in pictures(client, ()):
            show(_nodes(client, rows), _COLUMNS, form, no_stream)
            if no_stream:
                return
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _has_screen() -> bool:
    return sys.stdin.isatty() and is_live(sys.stdout) and is_live(sys.stderr)


def _nodes(client: Client, containers: list[Row]) -> list[Row]:
    """A row a node, by name; one that does not tell has no figures, but its reservations."""
    reply = client.call("ListNodes", control_pb2.ListNodesRequest())
    nodes = sorted(map(node_row, reply.nodes), key=lambda node: node["hostname"])
    return [_row(node, [c for c in containers if c["node"] == node["hostname"]]) for node in nodes]


def _row(node: Row, containers: list[Row]) -> Row:
    kept = ("state", "shares_total", "shares_reserved", "memory_total", "memory_reserved")
    memory = sum(each["memory"] for each in containers)
    return {
        "id": node["id"],
        "hostname": node["hostname"],
        **{key: node[key] for key in kept},
        "containers": len(containers),
        "cpu_percent": round(sum(each["cpu_percent"] for each in containers), 2),
        "memory": memory,
        "memory_percent": round(100 * memory / max(node["memory_total"], 1), 2),
        **{key: sum(each[key] for each in containers) for key in _SUMS},
    }


def _of(text: Any, one: str, other: str) -> Any:
    return lambda row: f"{text(row[one])} / {text(row[other])}"


_COLUMNS = (
    column("NODE", "hostname"),
    column("STATE", "state"),
    column("CONTAINERS", "containers"),
    Column("CPU %", lambda row: f"{row['cpu_percent']:.2f}%"),
    Column("CPU RESERVED", _of(format_cores, "shares_reserved", "shares_total")),
    Column("MEM USAGE / TOTAL", _of(format_memory, "memory", "memory_total")),
    Column("MEM %", lambda row: f"{row['memory_percent']:.2f}%"),
    Column("MEM RESERVED", lambda row: format_memory(row["memory_reserved"])),
    Column("NET I/O", _of(format_size, "net_received", "net_sent")),
    Column("BLOCK I/O", _of(format_size, "block_read", "block_written")),
    column("PIDS", "pids"),
)
