# SPDX-License-Identifier: Apache-2.0
"""`orc volume`: data that outlives containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.flags.flag_types import pairs
from orchestrator.cli.flags.prune_flags import PruneFilters, confirm, prune_options
from orchestrator.cli.output.batch import inspect_options, one_by_one, print_inspected
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    listing_options,
    print_fields,
    print_list,
    rfc3339,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.convert import from_proto
from orchestrator.model.names import short_id
from orchestrator.model.objects import Volume
from orchestrator.model.units import format_memory, format_size
from orchestrator.pb import volumes_pb2

CREATE_TIMEOUT = 90.0
"""Timeout in seconds: a driver may have to find a disk."""

NOTICE = 2.0
"""Seconds after which a command prints what it waits for."""


@click.group(
    cls=OrcGroup,
    epilog=example("orc volume create --opt size=1g data", "orc volume ls"),
)
def volume() -> None:
    """Manage volumes: data that outlives containers. Tasks are placed on the node of their
    volumes."""


@volume.command(epilog=example("orc volume create data", "orc volume create --opt size=1g data"))
@click.option(
    "--driver", "-d", default="", metavar="DRIVER", help="Volume driver.  [default: local]"
)
@click.option("--opt", "-o", multiple=True, metavar="KEY=VALUE", help="Driver option; repeatable.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")
@click.option(
    "--node",
    default="",
    metavar="NODE",
    shell_complete=completes("nodes"),
    help="Create it on this node.  [default: the node of its first user]",
)
@click.option("--name", "option_name", default="", metavar="NAME", help="The same as NAME.")
@click.argument("name", required=False, default="")
@pass_client
def create(
    client: Client,
    driver: str,
    opt: tuple[str, ...],
    label: tuple[str, ...],
    node: str,
    option_name: str,
    name: str,
) -> None:
    """Create a volume."""
    if name and option_name:
        raise click.UsageError("the name is given twice, as --name and as NAME")
    request = volumes_pb2.CreateVolumeRequest(
        name=name or option_name,
        driver=driver,
        options=pairs("option", opt),
        labels=pairs("label", label),
        node=node,
    )
    what = f"volume driver {driver}" if driver else "the volume's node"
    with _waiting_for(what):
        created = client.call("Volumes.CreateVolume", request, timeout=CREATE_TIMEOUT)
    click.echo(created.id)


@contextmanager
def _waiting_for(what: str) -> Iterator[None]:
    """Print on stderr what is waited for, after the block has taken `NOTICE` seconds."""
    timer = Timer(NOTICE, lambda: click.echo(f"orc: waiting for {what} to answer", err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@volume.command("ls", epilog=example("orc volume ls --filter dangling=true"))
@listing_options("name", "driver", "label", "node", "scope", "dangling")
@pass_client
def list_volumes(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]]
) -> None:
    """List the volumes, with their nodes, disk usage and users."""
    reply = client.call("Volumes.ListVolumes", volumes_pb2.ListVolumesRequest())
    rows = [volume_row(message) for message in reply.volumes]
    print_list(rows, _COLUMNS, form=form, quiet=quiet, filters=filters)
    for notice in reply.notices:
        click.echo(f"orc: {notice}", err=True)


@volume.command(epilog=example("orc volume inspect data"))
@click.argument("names", nargs=-1, required=True, shell_complete=completes("volumes"))
@inspect_options
@pass_client
def inspect(client: Client, names: tuple[str, ...], form: str) -> None:
    """Show details of volumes."""
    rows: list[Row] = []
    for name in names:
        rows += volumes_named(client, name)
    print_inspected(rows, form, _show)


def volumes_named(client: Client, name: str) -> list[Row]:
    """The volume of this name. Raises CliError if there is none."""
    reply = client.call("Volumes.ListVolumes", volumes_pb2.ListVolumesRequest(name=name))
    return [volume_row(message) for message in reply.volumes]


def _show(row: Row) -> None:
    print_fields(
        [
            ("Name", row["name"]),
            ("Driver", row["driver"]),
            ("Scope", row["scope"]),
            ("Node", row["node"]),
            ("Mountpoint", row["mountpoint"]),
            ("Size", _size(row)),
            ("Options", _words(row["options"])),
            ("Labels", _words(row["labels"])),
            ("Used by", ", ".join(row["used_by"])),
            ("Created at", row["created_at"] or ""),
            ("Notice", row["notice"]),
        ]
    )


@volume.command(epilog=example("orc volume rm data"))
@click.argument("names", nargs=-1, required=True, shell_complete=completes("volumes"))
@click.option(
    "--force", "-f", is_flag=True, help="Drop one on an unreachable node; ignore a missing one."
)
@click.option(
    "--node",
    default="",
    metavar="NODE",
    shell_complete=completes("nodes"),
    help="Node, if several nodes have one.",
)
@pass_client
def rm(client: Client, names: tuple[str, ...], force: bool, node: str) -> None:
    """Remove volumes and their data. Volumes in use are not removed."""

    def remove(name: str) -> None:
        request = volumes_pb2.RemoveVolumeRequest(name=name, force=force, node=node)
        with _waiting_for(f"the driver of volume '{name}'"):
            client.call("Volumes.RemoveVolume", request, timeout=CREATE_TIMEOUT)

    one_by_one(names, remove)


@volume.command(epilog=example("orc volume prune --all --force"))
@click.option("--all", "-a", "everything", is_flag=True, help="Also named volumes.")
@prune_options
@pass_client
def prune(client: Client, everything: bool, filters: PruneFilters, force: bool) -> None:
    """Remove unused volumes: anonymous ones, or all."""
    what = "all volumes" if everything else "all anonymous volumes"
    if not force:
        confirm([f"{what} that are unused"], filters)
    request = filters.put_into(volumes_pb2.PruneVolumesRequest(all=everything))
    with _waiting_for("the volumes' drivers"):
        reply = client.call("Volumes.PruneVolumes", request, timeout=CREATE_TIMEOUT)
    for name in reply.names:
        click.echo(name)
    for notice in reply.notices:
        click.echo(f"orc: {notice}", err=True)
    click.echo(f"Total reclaimed space: {format_size(reply.reclaimed)}")


def volume_row(message: Any) -> Row:
    """From a VolumeRow."""
    volume: Volume = from_proto(message.volume)
    seen = message.seen
    known = message.HasField("seen")
    scope = volume.scope.name.lower()
    return {
        "id": volume.name,
        "name": volume.name,
        "driver": volume.driver or "local",
        "scope": scope,
        "node": message.node or "",
        "node_id": volume.node_id,
        "size": seen.size if known and seen.size >= 0 else None,
        "limit": seen.limit or None,
        "used_by": list(message.used_by),
        "dangling": not message.used_by,
        "mountpoint": seen.mountpoint,
        "options": volume.options,
        "labels": volume.labels,
        "anonymous": seen.anonymous,
        "created_at": rfc3339(volume.created_at),
        "notice": seen.notice,
    }


def _size(row: Row) -> str:
    size = "" if row["size"] is None else format_size(row["size"])
    return f"{size} of {format_memory(row['limit'])}" if row["limit"] else size


def _name(row: Row) -> str:
    return short_id(row["name"]) if row["anonymous"] else str(row["name"])


_COLUMNS = [
    column("DRIVER", "driver"),
    Column("NAME", _name),
    Column("NODE", lambda row: row["node"] or ("all" if row["scope"] == "global" else "")),
    Column("SIZE", _size),
    Column("USED BY", lambda row: ", ".join(row["used_by"])),
]


def _words(pairs: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs.items()))
