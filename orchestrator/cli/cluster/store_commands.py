# SPDX-License-Identifier: Apache-2.0
"""`orc manager store`: upkeep of the managers' etcd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.batch import attempts
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    listing_options,
    print_list,
    short,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.units import format_memory
from orchestrator.pb import managers_pb2

MAINTENANCE_TIMEOUT = 660.0
"""Seconds that a compaction or a defragmentation may take."""


@click.group(
    cls=OrcGroup,
    epilog=example("orc manager store status", "orc manager store defrag manager2"),
)
def store() -> None:
    """Maintain the database of the managers' etcd.

    The leader does this by itself. These commands are for a database that is full or large now.
    """


@store.command(epilog=example("orc manager store status"))
@listing_options("id", "hostname", "state", "role")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def status(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """Show the etcd members with the size of their databases and alarms.

    SIZE is that of the database's file, IN USE the part without free pages. At QUOTA, writes are
    refused.
    """
    reply = client.call("Managers.ListManagers", managers_pb2.ListManagersRequest())
    rows = [_row(each) for each in reply.managers]
    print_list(rows, _columns(no_trunc), form=form, quiet=quiet, filters=filters)
    if form == "table" and not quiet and any("NOSPACE" in row["alarms"] for row in rows):
        click.echo(
            "The store is read-only: a database is full. Make room with 'orc manager store "
            "compact' and 'orc manager store defrag', or raise --etcd-quota of the managers; "
            "then run 'orc manager store disarm'.",
            err=True,
        )


@store.command(epilog=example("orc manager store compact"))
@pass_client
def compact(client: Client) -> None:
    """Drop the history of the store; prints the revision that is left.

    etcd drops history after ten minutes by itself. A watch that is behind begins anew.
    """
    reply = client.call(
        "Managers.CompactStore", managers_pb2.CompactStoreRequest(), MAINTENANCE_TIMEOUT
    )
    click.echo(reply.revision)


@store.command(epilog=example("orc manager store defrag", "orc manager store defrag manager2"))
@click.argument("managers", nargs=-1, metavar="[MANAGER...]")
@click.option(
    "--force",
    "-f",
    is_flag=True,
    help="Defragment although no quorum of healthy members is left meanwhile.",
)
@pass_client
def defrag(client: Client, managers: tuple[str, ...], force: bool) -> None:
    """Defragment databases, one member at a time; by default all.

    The database's file shrinks to the part in use. A manager answers no request while its member
    is defragmented, which takes some ten seconds for each GiB in use; the others do.
    """
    listed = client.call("Managers.ListManagers", managers_pb2.ListManagersRequest()).managers
    # The leader's last: while its member is defragmented, it cannot plan.
    order = sorted(listed, key=lambda each: (each.leader, each.manager.hostname))
    names = managers or tuple(each.manager.id for each in order if each.manager.member_id)
    if not names:
        raise CliError("the cluster has an external etcd, which its operator keeps up: use etcdctl")
    hostnames = {each.manager.id: each.manager.hostname for each in listed}
    with attempts() as attempt:
        for name in names:
            with attempt():
                request = managers_pb2.DefragmentStoreRequest(manager=name, force=force)
                done = client.call("Managers.DefragmentStore", request, MAINTENANCE_TIMEOUT)
                click.echo(
                    f"{hostnames.get(name, name)}: {format_memory(done.before)} → "
                    f"{format_memory(done.after)} in {done.seconds:.1f} s"
                )


@store.command(epilog=example("orc manager store disarm"))
@click.option("--force", "-f", is_flag=True, help="Disarm although a database is still full.")
@pass_client
def disarm(client: Client, force: bool) -> None:
    """Accept writes again after a database was full.

    Disarms the NOSPACE alarms, and prints the ids of the members that had raised them.
    """
    request = managers_pb2.DisarmStoreRequest(force=force)
    for alarm in client.call("Managers.DisarmStore", request).alarms:
        click.echo(alarm.member_id)


def _row(found: Any) -> Row:
    manager, status = found.manager, found.status
    known = found.HasField("status") and bool(status.etcd_version)
    member = status.member_id or manager.member_id
    return {
        "id": manager.id,
        "hostname": manager.hostname,
        "state": found.state,
        "reason": found.reason,
        "member": member,
        "role": _role(status) if known else "",
        "size": status.database_size if known else None,
        "used": status.database_used if known else None,
        "quota": status.database_quota if known else None,
        "alarms": [each.kind for each in status.alarms if each.member_id == member],
        "raft_term": status.raft_term if known else None,
        "raft_index": status.raft_index if known else None,
        "lag": found.lag if known else None,
        "defragmenting": status.defragmenting,
    }


def _role(status: Any) -> str:
    return "leader" if status.etcd_leader else "learner" if status.learner else "follower"


def _columns(whole: bool) -> list[Column]:
    return [
        short("ID", "id", whole),
        column("HOSTNAME", "hostname"),
        Column("STATUS", lambda row: row["state"].capitalize()),
        Column("ROLE", lambda row: row["role"] or "-"),
        Column("SIZE", lambda row: _bytes(row["size"])),
        Column("IN USE", lambda row: _bytes(row["used"])),
        Column("QUOTA", lambda row: _bytes(row["quota"])),
        Column("TERM", lambda row: _number(row["raft_term"])),
        Column("LAG", lambda row: _number(row["lag"])),
        Column("ALARMS", _alarms),
    ]


def _alarms(row: Row) -> str:
    return ",".join([*row["alarms"], *(["defragmenting"] if row["defragmenting"] else [])])


def _bytes(value: int | None) -> str:
    return "-" if not value else format_memory(value)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
