# SPDX-License-Identifier: Apache-2.0
"""`orc capacity`, `orc why` and `orc rebalance`: what the scheduler would do now, and why."""

from __future__ import annotations

import time
from typing import Any

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError, NotConverged
from orchestrator.cli.flags.flag_types import DURATION, MEMORY
from orchestrator.cli.flags.spec_settings import RESERVED_CPUS
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    enum_word,
    format_option,
    print_json,
    print_table,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.rpc.task_pages import list_tasks
from orchestrator.model.nodes import Availability
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.units import count_cores, format_cores, format_duration, format_memory
from orchestrator.pb import scheduling_pb2, types_pb2


@click.command(
    epilog=example("orc capacity --like web", "orc capacity --reserve-cpu 0.5 --reserve-memory 1g")
)
@click.option(
    "--like",
    metavar="SERVICE",
    shell_complete=completes("services"),
    help="Count further tasks of this service.",
)
@click.option("--reserve-cpu", type=RESERVED_CPUS, help="Cores that one container reserves.")
@click.option("--reserve-memory", type=MEMORY, help="Memory that one container reserves.")
@format_option()
@pass_client
def capacity(
    client: Client,
    like: str | None,
    reserve_cpu: int | None,
    reserve_memory: int | None,
    form: str,
) -> None:
    """Show how many more tasks would fit, what limits that, and which node would help."""
    if like and (reserve_cpu or reserve_memory):
        raise click.UsageError("--like counts the reservation of the service; leave out the others")
    reservation = types_pb2.Resources(shares=reserve_cpu or 0, memory=reserve_memory or 0)
    request = scheduling_pb2.CapacityRequest(service=like or "", reservation=reservation)
    row = capacity_row(client.call("GetCapacity", request))
    if form == "json":
        print_json(row)
        return
    size = f"{count_cores(row['shares'])}, {format_memory(row['memory'])} each"
    of = f"tasks of service {row['service']}" if row["service"] else "containers"
    click.echo(f"{row['tasks']} more {of} fit ({size})")
    click.echo(f"Limit: {row['limit']}")
    print_table(row["nodes"], _ROOM)
    for node in row["nodes"]:
        if node["if_active"]:
            click.echo(
                f"{node['if_active']} more would fit if {node['hostname']} were active:"
                f" orc node update --availability active {node['hostname']}"
            )
    if row["like"]:
        click.echo(f"{row['per_node']} more would fit on another node like {row['like']}")


def capacity_row(reply: Any) -> Row:
    """The JSON document."""
    return {
        "service": reply.service,
        "tasks": reply.tasks,
        "shares": reply.each.shares,
        "memory": reply.each.memory,
        "limit": reply.limit,
        "nodes": [
            {
                "id": room.id,
                "hostname": room.hostname,
                "availability": enum_word(Availability(room.availability)),
                "shares_free": room.free.shares,
                "memory_free": room.free.memory,
                "tasks": room.tasks,
                "limit": room.limit,
                "if_active": room.if_active,
            }
            for room in reply.nodes
        ],
        "like": reply.like,
        "per_node": reply.per_node,
    }


_ROOM = (
    column("NODE", "hostname"),
    Column("FREE CPUS", lambda row: format_cores(row["shares_free"])),
    Column("FREE MEMORY", lambda row: format_memory(row["memory_free"])),
    column("MORE TASKS", "tasks"),
    column("LIMIT", "limit"),
)


@click.command(
    epilog=example(
        "orc rebalance --max-moves 3", "orc plan rebalance", "orc rebalance --service web"
    )
)
@click.option(
    "--max-moves",
    type=click.IntRange(1, 100),
    metavar="NUMBER",
    default=10,
    show_default=True,
    help="Maximum number of tasks to move.",
)
@click.option(
    "--service",
    metavar="SERVICE",
    shell_complete=completes("services"),
    help="Move only tasks of this service.",
)
@click.option("--detach", "-d", is_flag=True, help="Do not wait until the tasks are moved.")
@click.option("--timeout", type=DURATION, default="2m", show_default=True, help="How long to wait.")
@format_option()
@pass_client
def rebalance(
    client: Client, max_moves: int, service: str | None, detach: bool, timeout: float, form: str
) -> None:
    """Move running tasks to other nodes, where that spreads a service better or evens out loads.

    A moved task is started on its new node first, and stopped on the old one when it works. Tasks
    with volumes on their node, containers of orc run, jobs and global services are not moved.
    """
    request = scheduling_pb2.RebalanceRequest(service=service or "", max_moves=max_moves)
    reply = client.call("Rebalance", request)
    rows = [
        {
            "id": move.task_id,
            "name": move.task,
            "source": move.source,
            "target": move.target,
            "reason": move.reason,
        }
        for move in reply.moves
    ]
    if form == "json":
        print_json(rows)
    elif rows:
        print_table(rows, _MOVES)
    elif not client.is_dry_run:
        click.echo("orc: nothing to move: no move would improve anything", err=True)
    if not detach and not client.is_dry_run:
        _until_moved(client, {move.task_id: move.task for move in reply.moves}, timeout)


_POLL_INTERVAL = 0.2
"""Seconds between two polls of the tasks that are moved."""


def _until_moved(client: Client, moving: dict[str, str], timeout: float) -> None:
    """Wait until the tasks, names by id, have been moved. Raises NotConverged after `timeout`
    seconds, and CliError if moves were given up."""
    deadline, left = time.monotonic() + timeout, dict(moving)
    stayed: list[str] = []
    while left:
        tasks = list_tasks(client).tasks
        known = {task.id: task for task in tasks}
        for id, name in list(left.items()):
            task = known.get(id)
            if task is None or is_terminal(TaskState(task.status.state)):
                del left[id]
            elif not task.move_to and task.desired_state <= TaskState.RUNNING:
                stayed.append(name)
                del left[id]
        if left and time.monotonic() >= deadline:
            names = ", ".join(sorted(left.values()))
            raise NotConverged(
                f"{names} not moved after {format_duration(timeout)}; the moves continue, "
                "see 'orc service ps'"
            )
        if left:
            time.sleep(_POLL_INTERVAL)
    if stayed:
        raise CliError(
            f"{', '.join(sorted(stayed))} not moved: the new task failed, had no room, or its "
            "service was changed; see 'orc service ps'"
        )


_MOVES = (
    column("NAME", "name"),
    column("FROM", "source"),
    column("TO", "target"),
    column("REASON", "reason"),
)


@click.command(epilog=example("orc why web.3", "orc why web"))
@click.argument("subject", metavar="TASK|SERVICE", shell_complete=completes("services"))
@format_option()
@pass_client
def why(client: Client, subject: str, form: str) -> None:
    """Show why a task is where it is, or is not placed, and how the nodes compare for it.

    For a service: its tasks, and how the nodes compare for one more.
    """
    request = scheduling_pb2.PlacementRequest(subject=subject)
    row = placement_row(client.call("GetPlacement", request))
    if form == "json":
        print_json(row)
        return
    print_table(row["tasks"], _TASKS)
    if row["notes"]:
        click.echo("\nPlacement: " + "; ".join(row["notes"]))
    if row["impossible"]:
        click.echo(f"\nNo node can take it now: {row['impossible']}")
    what = "it were placed now" if row["kind"] == "task" else "one more task were placed now"
    click.echo(f"\nNodes, the best first, if {what}:")
    print_table(row["nodes"], _NODES)


def placement_row(reply: Any) -> Row:
    """The JSON document."""
    return {
        "kind": reply.kind,
        "name": reply.name,
        "tasks": [
            {
                "id": task.id,
                "name": task.name,
                "state": enum_word(TaskState(task.state)),
                "desired_state": enum_word(TaskState(task.desired_state)),
                "node": task.node,
                "reason": task.reason,
            }
            for task in reply.tasks
        ],
        "notes": list(reply.notes),
        "impossible": reply.impossible,
        "nodes": [
            {
                "id": node.id,
                "hostname": node.hostname,
                "place": node.place,
                "here": node.here,
                "tasks": node.tasks,
                "affinity": node.affinity,
                "load": round(node.load, 4),
                "has_image": node.has_image,
                "avoided": node.avoided,
                "refusals": list(node.refusals),
            }
            for node in reply.nodes
        ],
    }


_TASKS = (
    column("NAME", "name"),
    column("STATE", "state"),
    column("NODE", "node"),
    column("REASON", "reason"),
)


def _verdict(row: Row) -> str:
    parts = ["its node"] if row["here"] else []
    if row["avoided"]:
        parts.append(f"avoided: {row['avoided']}")
    return "; ".join([*parts, *row["refusals"]])


_NODES = (
    Column("PLACE", lambda row: str(row["place"] or "-")),
    column("NODE", "hostname"),
    column("TASKS", "tasks"),
    column("AFFINITY", "affinity"),
    Column("LOAD", lambda row: f"{row['load']:.0%}"),
    Column("IMAGE", lambda row: "yes" if row["has_image"] else ""),
    Column("REMARKS", _verdict),
)
