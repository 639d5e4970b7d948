# SPDX-License-Identifier: Apache-2.0
"""`orc top` and `orc system top`: the whole cluster, live; with a container, its processes.

At a terminal the cluster is a screen to navigate (`top_screen`, imported only then); elsewhere, and
with a format, the nodes' figures are printed every second.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import INTERRUPTED
from orchestrator.cli.cluster.node_rows import node_row
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    format_option,
    print_json,
    print_table,
)
from orchestrator.cli.output.screen import is_live
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.top.stats_command import samples, show_sample
from orchestrator.model.units import format_cores, format_memory, format_size
from orchestrator.pb import control_pb2


@click.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
    epilog=example("orc top", "orc top web.3", "orc top web.3 -o pid,rss,args"),
)
@click.option("--no-stream", is_flag=True, help="Of the cluster: print one sample and exit.")
@format_option(templates=True)
@click.argument("container", required=False, shell_complete=completes("running_containers"))
@click.argument("ps_options", nargs=-1, type=click.UNPROCESSED)
@pass_client
def top(
    client: Client, no_stream: bool, form: str, container: str | None, ps_options: tuple[str, ...]
) -> None:
    """Live view of the cluster: nodes with their capacity, services and tasks with their usage, to
    sort, filter and navigate. With a container, list its processes by its node's ps(1), by default
    with -ef."""
    if container is None:
        show_cluster(client, no_stream, form)
        return
    from orchestrator.cli.top.top_feed import processes

    titles, rows = processes(client, container, ps_options)
    if form == "json":
        print_json([{key.lower().lstrip("%"): row[key] for key in row} for row in rows])
    elif form == "table":
        print_table(rows, [Column(title, partial(_field, title)) for title in titles])
    else:
        raise click.UsageError("processes are shown as a table or as json")


def _field(title: str, row: Row) -> str:
    return str(row.get(title, ""))


_SUMS = ("net_received", "net_sent", "block_read", "block_written", "pids")


@click.command("top", epilog=example("orc system top", "orc system top --no-stream --format json"))
@click.option("--no-stream", is_flag=True, help="Print one sample and exit.")
@format_option(templates=True)
@pass_client
def system_top(client: Client, no_stream: bool, form: str) -> None:
    """Show usage and reservations of each node, live. At a terminal, the same as `orc top`."""
    show_cluster(client, no_stream, form)


def show_cluster(client: Client, no_stream: bool, form: str) -> None:
    """The screen at a terminal, else samples as lines, until Ctrl-C."""
    if form == "table" and not no_stream and _has_screen():
        from orchestrator.cli.top.top_screen import run

        sys.exit(run(client.context))
    try:
        for rows in samples(client, ()):
            show_sample(_nodes(client, rows), _COLUMNS, form, no_stream)
            if no_stream:
                return
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _has_screen() -> bool:
    return sys.stdin.isatty() and is_live(sys.stdout) and is_live(sys.stderr)


def _nodes(client: Client, containers: list[Row]) -> list[Row]:
    """A row per node, by name; one that does not report has only its reservations."""
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
