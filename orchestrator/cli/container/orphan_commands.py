# SPDX-License-Identifier: Apache-2.0
"""`orc orphan`: containers that run and that a restored cluster does not know."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.batch import attempts
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    enum_word,
    listing_options,
    print_list,
    rfc3339,
    short,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.convert import from_proto
from orchestrator.model.tasks import Task
from orchestrator.model.units import format_ago
from orchestrator.pb import containers_pb2

_GONE_WITHIN = 120.0
"""Seconds to wait until an orphan is removed."""
_POLL = 0.2
"""Seconds between two looks at it."""


@click.group(cls=OrcGroup, epilog=example("orc orphan ls", "orc orphan adopt --all"))
def orphan() -> None:
    """Containers that run and that the restored cluster does not know.

    They started after the backup was made. They run on until they are adopted or removed.
    """


def _listed(client: Client) -> tuple[list[Orphan], Mapping[str, str]]:
    reply = client.call("Containers.ListOrphans", containers_pb2.ListOrphansRequest())
    return [from_proto(each) for each in reply.orphans], reply.hostnames


@orphan.command("ls", epilog=example("orc orphan ls", "orc orphan ls --filter node=node1"))
@listing_options("id", "name", "service", "node")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def list_orphans(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """List the orphans of all nodes."""
    found, hostnames = _listed(client)
    now = time.time()
    columns = [
        short("ID", "id", no_trunc),
        column("NAME", "name"),
        column("IMAGE", "image"),
        column("NODE", "node"),
        Column("STATE", lambda row: "Removing" if row["removing"] else row["state"].capitalize()),
        Column("STARTED", lambda row: format_ago(row["_started_at"], now)),
    ]
    rows = [_row(each, hostnames) for each in found]
    print_list(rows, columns, form=form, quiet=quiet, filters=filters)


def _row(found: Orphan, hostnames: Mapping[str, str]) -> Row:
    task = found.task
    return {
        "id": found.id,
        "name": found.name,
        "service": task.service_name,
        "image": task.spec.container.image,
        "node": hostnames.get(found.node_id, found.node_id),
        "state": enum_word(task.status.state),
        "removing": found.removing,
        "addresses": task.status.addresses,
        "started_at": rfc3339(task.status.started_at),
        "found_at": rfc3339(found.found_at),
        "_started_at": task.status.started_at,
    }


def _chosen(client: Client, orphans: Sequence[str], everything: bool) -> list[str]:
    """The orphans that a command is about: those named, or the ids of all."""
    if everything == bool(orphans):
        raise click.UsageError("give either ORPHAN or --all")
    if not everything:
        return list(orphans)
    found, _ = _listed(client)
    return [each.id for each in sorted(found, key=lambda each: (each.name, each.id))]


@orphan.command(
    epilog=example(
        "orc orphan adopt web.3",
        "orc orphan adopt --all",
        "orc orphan adopt --standalone --name shell web.3",
    )
)
@click.argument("orphans", nargs=-1, shell_complete=completes("orphans"))
@click.option("--all", "-a", "everything", is_flag=True, help="Adopt all orphans.")
@click.option(
    "--standalone", is_flag=True, help="Make it a standalone container, although it has a service."
)
@click.option("--name", metavar="NAME", help="Name of the standalone container.")
@pass_client
def adopt(
    client: Client, orphans: tuple[str, ...], everything: bool, standalone: bool, name: str | None
) -> None:
    """Adopt orphans: they become tasks of their services again, without a restart.

    An orphan whose service does not exist becomes a standalone container. One of a service needs
    the spec that the service has; it takes its slot from a task that was started there since the
    restore, or the service gets one more replica. One of a job needs a run that is in progress and
    has not completed its index. An orphan's node says what it is: adopt only what
    you know.
    """
    if name and (everything or len(orphans) != 1):
        raise click.UsageError("--name needs exactly one ORPHAN")
    with attempts() as attempt:
        for word in _chosen(client, orphans, everything):
            with attempt():
                request = containers_pb2.AdoptOrphanRequest(
                    orphan=word, standalone=standalone, name=name or ""
                )
                task: Task = from_proto(client.call("Containers.AdoptOrphan", request))
                of = f"a task of service {task.service_name}" if task.service_name else ""
                click.echo(f"{task.name} is {of or 'a standalone container'}")


@orphan.command("rm", epilog=example("orc orphan rm web.3", "orc orphan rm --all"))
@click.argument("orphans", nargs=-1, shell_complete=completes("orphans"))
@click.option("--all", "-a", "everything", is_flag=True, help="Remove all orphans.")
@click.option("--detach", "-d", is_flag=True, help="Do not wait until they are removed.")
@pass_client
def remove(client: Client, orphans: tuple[str, ...], everything: bool, detach: bool) -> None:
    """Remove orphans: stop and remove their containers. Named volumes stay."""
    removed: dict[str, str] = {}
    with attempts() as attempt:
        for word in _chosen(client, orphans, everything):
            with attempt():
                request = containers_pb2.RemoveOrphanRequest(orphan=word)
                found: Orphan = from_proto(client.call("Containers.RemoveOrphan", request))
                removed[found.id] = found.name
        with attempt():
            if not detach:
                _await_removal(client, removed)
            for name in removed.values():
                click.echo(name)


def _await_removal(client: Client, removed: Mapping[str, Any]) -> None:
    until = time.monotonic() + _GONE_WITHIN
    while left := sorted(removed[each.id] for each in _listed(client)[0] if each.id in removed):
        if time.monotonic() > until:
            raise CliError(f"not removed yet: {', '.join(left)}; are their nodes connected?")
        time.sleep(_POLL)
