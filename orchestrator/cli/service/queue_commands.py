# SPDX-License-Identifier: Apache-2.0
"""`orc queue`: queues of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.flags.flag_types import CPUS, MEMORY
from orchestrator.cli.output.batch import one_by_one
from orchestrator.cli.output.listings import Column, Row, column, listing_options, print_list
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.units import count_cores, format_cores, format_memory
from orchestrator.pb import jobs_pb2


@click.group(cls=OrcGroup, epilog=example("orc queue create --weight 2 research"))
def queue() -> None:
    """Manage queues of jobs: how jobs share the cluster.

    A job is put into a queue by 'orc job run --queue NAME'. Queues share the nodes by their
    weights; what one does not use, the others may.
    """


_OPTIONS = (
    click.option(
        "--weight",
        type=click.IntRange(1, 1000),
        metavar="NUMBER",
        help="Its part of the cluster, relative to other queues.  [default: 1]",
    ),
    click.option(
        "--quota-cpu",
        type=CPUS,
        help="Maximum number of cores that its tasks reserve; 0: no limit.",
    ),
    click.option(
        "--quota-memory",
        type=MEMORY,
        help="Maximum memory that its tasks reserve; 0: no limit.",
    ),
)


def _with_options(function: Any) -> Any:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@queue.command(epilog=example("orc queue create --weight 2 --quota-cpu 16 research"))
@click.argument("name")
@_with_options
@pass_client
def create(
    client: Client,
    name: str,
    weight: int | None,
    quota_cpu: int | None,
    quota_memory: int | None,
) -> None:
    """Create a queue."""
    _set(client, name, True, weight, quota_cpu, quota_memory)


@queue.command(epilog=example("orc queue update --weight 3 research"))
@click.argument("name", shell_complete=completes("queues"))
@_with_options
@pass_client
def update(
    client: Client,
    name: str,
    weight: int | None,
    quota_cpu: int | None,
    quota_memory: int | None,
) -> None:
    """Change a queue. Running tasks go on."""
    if weight is None and quota_cpu is None and quota_memory is None:
        raise click.UsageError("nothing to change; give --weight, --quota-cpu or --quota-memory")
    _set(client, name, False, weight, quota_cpu, quota_memory)


def _set(
    client: Client,
    name: str,
    is_new: bool,
    weight: int | None,
    shares: int | None,
    memory: int | None,
) -> None:
    request = jobs_pb2.SetQueueRequest(
        name=name, create=is_new, weight=weight, quota_shares=shares, quota_memory=memory
    )
    click.echo(client.call("Jobs.SetQueue", request).name)


@queue.command("ls", epilog=example("orc queue ls", "orc queue ls --format json"))
@listing_options("name")
@pass_client
def list_(client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]]) -> None:
    """List the queues: their weights and quotas, what they have, and what waits in them."""
    rows = [queue_row(each) for each in queues(client)]
    print_list(rows, _COLUMNS, form=form, quiet=quiet, filters=filters)


def queues(client: Client) -> Sequence[Any]:
    """The rows of all queues."""
    found: Sequence[Any] = client.call("Jobs.ListQueues", jobs_pb2.ListQueuesRequest()).queues
    return found


def queue_row(message: Any) -> Row:
    """From a QueueRow."""
    return {
        "id": message.queue.name,
        "name": message.queue.name,
        "weight": message.queue.weight,
        "quota_shares": message.queue.quota.shares,
        "quota_memory": message.queue.quota.memory,
        "shares": message.used.shares,
        "memory": message.used.memory,
        "share": round(message.share, 4),
        "jobs": message.jobs,
        "running": message.running,
        "waiting": message.waiting,
    }


def _quota(row: Row) -> str:
    parts = [count_cores(row["quota_shares"])] if row["quota_shares"] else []
    parts += [format_memory(row["quota_memory"])] if row["quota_memory"] else []
    return ", ".join(parts)


_COLUMNS = (
    column("NAME", "name"),
    column("WEIGHT", "weight"),
    Column("QUOTA", _quota),
    Column("CPUS", lambda row: format_cores(row["shares"])),
    Column("MEMORY", lambda row: format_memory(row["memory"])),
    Column("SHARE", lambda row: f"{row['share']:.0%}"),
    column("JOBS", "jobs"),
    column("RUNNING", "running"),
    column("WAITING", "waiting"),
)


@queue.command(epilog=example("orc queue rm research"))
@click.argument("names", nargs=-1, required=True, shell_complete=completes("queues"))
@pass_client
def rm(client: Client, names: tuple[str, ...]) -> None:
    """Remove queues that no job is in."""
    one_by_one(
        names,
        lambda name: client.call("Jobs.RemoveQueue", jobs_pb2.RemoveQueueRequest(name=name)),
    )
