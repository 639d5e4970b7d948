# SPDX-License-Identifier: Apache-2.0
"""`orc ps`, `container inspect` and `port`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.container.container_rows import (
    FILTERS,
    LIVE,
    STATES,
    container_columns,
    container_document,
    container_row,
    matches,
    orphan_row,
    with_moments,
)
from orchestrator.cli.output.batch import attempts
from orchestrator.cli.output.listings import (
    Row,
    format_option,
    listing_options,
    print_list,
    print_rows,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.names import near_miss
from orchestrator.pb import containers_pb2, system_pb2


@click.command(epilog=example("orc ps", "orc ps -a --filter status=exited --format json"))
@click.option("--all", "-a", "everything", is_flag=True, help="Also stopped ones.")
@click.option("--last", "-n", type=click.INT, default=-1, help="Only the N newest, in any state.")
@click.option("--latest", "-l", is_flag=True, help="Only the newest, in any state.")
@listing_options(*FILTERS)
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids and commands.")
@click.option("--size", "-s", is_flag=True, help="Show disk usage of its files and its image.")
@pass_client
def ps(
    client: Client,
    everything: bool,
    last: int,
    latest: bool,
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
    size: bool,
) -> None:
    """List the containers of all nodes, including those of services, newest first."""
    for word in filters.get("status", ()):
        if word not in STATES:
            meant = near_miss(word, STATES)
            hint = f"did you mean {meant!r}?" if meant else f"known are {', '.join(STATES)}"
            raise click.UsageError(f"status {word!r} is unknown; {hint}")
    rows = _rows(client, ())
    last = 1 if latest else last
    filters = with_moments(filters, rows)
    if not everything and last < 0 and not {"status", "exited"} & filters.keys():
        rows = [row for row in rows if row["state"] in LIVE]
    rows = [row for row in rows if matches(row, filters)]
    if last >= 0:
        rows = rows[:last]
    if size:
        add_sizes(client, rows)
    columns = container_columns(no_trunc, size)
    print_list(rows, columns, form=form, quiet=quiet, filters={})


def add_sizes(client: Client, rows: Sequence[Row]) -> None:
    """Query the nodes for the containers' disk usage, and add it to the rows."""
    request = system_pb2.DiskUsageRequest(containers_only=True)
    usage = client.call("System.DiskUsage", request)
    for notice in (node.notice for node in usage.nodes if node.notice):
        click.echo(f"orc: {notice}", err=True)
    sizes = {each.task_id: each for node in usage.nodes for each in node.containers}
    for row in rows:
        found = sizes.get(row["id"])
        row["size"] = found.size if found else None
        row["image_size"] = found.image_size if found else None


def _rows(client: Client, containers: Sequence[str]) -> list[Row]:
    now = time.time()
    request = containers_pb2.ListContainersRequest(containers=containers)
    reply = client.call("Containers.ListContainers", request)
    rows = [container_row(message, now) for message in reply.containers]
    if reply.orphans:
        rows += [orphan_row(message, now) for message in reply.orphans]
        rows.sort(key=lambda row: -row["_created_at"])
    return rows


@click.command(
    epilog=example("orc container inspect web", "orc container inspect -f '{{.state}}' web.3")
)
@click.option("--size", "-s", is_flag=True, help="Show disk usage of its files and its image.")
@format_option("json", templates=True, short=True)
@click.argument("containers", nargs=-1, required=True, shell_complete=completes("containers"))
@pass_client
def inspect(client: Client, containers: tuple[str, ...], form: str, size: bool) -> None:
    """Show details of containers, as JSON."""
    documents: list[Row] = []
    with attempts() as attempt:
        for name in containers:
            with attempt():
                documents += container_documents(client, name)
        if size:
            add_sizes(client, documents)
        if documents or form == "json":
            print_rows(documents, (), "json" if form == "table" else form, "container")


def container_documents(client: Client, name: str) -> list[Row]:
    """The full document of the container of this name or id. Raises CliError if there is none."""
    now = time.time()
    request = containers_pb2.ListContainersRequest(containers=[name])
    listed = client.call("Containers.ListContainers", request).containers
    return [container_document(row, now) for row in listed]


@click.command(epilog=example("orc port web", "orc port web 80/tcp"))
@click.argument("container", shell_complete=completes("containers"))
@click.argument("port", metavar="[PORT[/PROTOCOL]]", required=False)
@pass_client
def port(client: Client, container: str, port: str | None) -> None:
    """List the published ports of a container and their addresses."""
    row = _rows(client, [container])[0]
    wanted = f"{port}/tcp" if port and "/" not in port else port
    found = False
    for one in row["ports"]:
        inside = f"{one['target']}/{one['protocol']}"
        if wanted in (None, inside):
            found = True
            where = f"{one['address']}:{one['published']}"
            click.echo(where if wanted else f"{inside} -> {where}")
    if wanted and not found:
        raise CliError(f"container '{row['name']}' publishes no port {wanted}")
