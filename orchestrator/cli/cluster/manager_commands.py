# SPDX-License-Identifier: Apache-2.0
"""`orc manager`: the daemon, and the commands about a cluster's managers."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.contexts import learn_endpoints
from orchestrator.cli.cluster.manager_removal import remove_manager
from orchestrator.cli.cluster.store_commands import store
from orchestrator.cli.output.batch import one_by_one
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    listing_options,
    print_list,
    rfc3339,
    short,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.manager.command import manager as daemon
from orchestrator.model.administration.managers import host_port
from orchestrator.model.units import format_memory
from orchestrator.pb import managers_pb2

_DAEMON_GC = (700, 10, 10)
"""Python's default thresholds, which the command line turns off for itself."""


@click.group(
    cls=OrcGroup,
    invoke_without_command=True,
    params=daemon.params,
    epilog=example("orc manager --data-dir /var/lib/orc/manager", "orc manager ls"),
)
@click.pass_context
def manager(context: click.Context, /, **settings: Any) -> None:
    """Run a manager in the foreground; or list and remove managers, or change the leader.

    Without a command, this is the daemon that a manager's systemd unit runs.
    """
    if context.invoked_subcommand is None:
        gc.set_threshold(*_DAEMON_GC)
        assert daemon.callback is not None
        daemon.callback(**settings)


@manager.command("ls", epilog=example("orc manager ls", "orc manager ls --filter state=down"))
@listing_options("id", "hostname", "state", "leader")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def list_managers(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """List the managers, with the state of their etcd members."""
    reply = client.call("Managers.ListManagers", managers_pb2.ListManagersRequest())
    rows = [manager_row(each) for each in reply.managers]
    learn_endpoints(client.context, [row["address"] for row in rows if row["state"] != "joining"])
    print_list(rows, _columns(no_trunc), form=form, quiet=quiet, filters=filters)


@manager.command("step-down", epilog=example("orc manager step-down"))
@pass_client
def step_down(client: Client) -> None:
    """Have the leader resign, so that another manager leads.

    Planned maintenance of the leader's host begins with it. Containers, sessions of agents and
    commands are not affected. Prints the hostname of the new leader.
    """
    reply = client.call("Managers.StepDown", managers_pb2.StepDownRequest())
    listed = client.call("Managers.ListManagers", managers_pb2.ListManagersRequest())
    names = {each.manager.id: each.manager.hostname for each in listed.managers}
    click.echo(names.get(reply.leader, reply.leader))
    if reply.leader == reply.former:
        click.echo("It led before: no other manager was ready to lead.", err=True)


@manager.command("rm", epilog=example("orc manager rm manager3"))
@click.argument("managers", nargs=-1, required=True, metavar="MANAGER...")
@click.option(
    "--force",
    "-f",
    is_flag=True,
    help="Remove it although no quorum of healthy managers is left.",
)
@pass_client
def remove(client: Client, managers: tuple[str, ...], force: bool) -> None:
    """Remove managers, by id, hostname or address: also those that are down or still joining.

    A manager that runs ends. Its certificates are revoked.
    """

    def one(name: str) -> None:
        request = managers_pb2.RemoveManagerRequest(manager=name, force=force)
        remove_manager(client, "Managers.RemoveManager", request)

    one_by_one(managers, one)


manager.add_command(store)


def manager_row(found: Any) -> Row:
    """A ManagerRow as a row of listings."""
    manager, status = found.manager, found.status
    known = found.HasField("status")
    return {
        "id": manager.id,
        "hostname": manager.hostname,
        "address": host_port(manager.address, manager.port),
        "state": found.state,
        "reason": found.reason,
        "leader": found.leader,
        "version": status.version or manager.version,
        "etcd_member": manager.member_id,
        "etcd_version": status.etcd_version,
        "etcd_leader": status.etcd_leader,
        "raft_term": status.raft_term if known else None,
        "lag": found.lag if known else None,
        "database_size": status.database_size if known else None,
        "database_used": status.database_used if known else None,
        "database_quota": status.database_quota if known else None,
        "created_at": rfc3339(manager.created_at),
        "current": found.current,
    }


def _columns(whole: bool) -> list[Column]:
    return [
        short("ID", "id", whole),
        column("HOSTNAME", "hostname"),
        column("ADDRESS", "address"),
        Column("STATUS", lambda row: row["state"].capitalize()),
        Column("LEADER", lambda row: "yes" if row["leader"] else ""),
        Column("ETCD", _etcd),
        Column("TERM", lambda row: _number(row["raft_term"])),
        Column("LAG", lambda row: _number(row["lag"])),
        Column("DATABASE", lambda row: format_memory(row["database_size"] or 0)),
        column("VERSION", "version"),
    ]


def _etcd(row: Row) -> str:
    if not row["etcd_member"]:
        return "external"
    return "leader" if row["etcd_leader"] else "follower" if row["etcd_version"] else "-"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
