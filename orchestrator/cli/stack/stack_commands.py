# SPDX-License-Identifier: Apache-2.0
"""`orc stack`: services, networks and volumes that are deployed together from compose files.

The objects of a stack carry its name in a label.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.app.command_groups import Lazy, OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.listings import Column, Row, column, listing_options, print_list
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.rpc.task_pages import list_tasks
from orchestrator.cli.service.service_rows import (
    service_columns,
    service_row,
    task_columns,
    task_rows,
)
from orchestrator.model.names import near_miss
from orchestrator.model.specs import STACK_LABEL
from orchestrator.pb import control_pb2

if TYPE_CHECKING:
    from orchestrator.cli.stack.stack_changes import Observed


def stack_names(there: Observed) -> list[str]:
    """The stacks that have services or networks."""
    labels = [each.spec.labels for each in there.services.values()]
    labels += [each.labels for each in there.networks.values()]
    return sorted({each[STACK_LABEL] for each in labels if STACK_LABEL in each})


def of_stack(services: Iterable[Any], name: str) -> list[Any]:
    """The ServiceRows of a stack."""
    return [row for row in services if row.service.spec.labels.get(STACK_LABEL) == name]


def stack_rows(services: Iterable[Any], networks: Iterable[Any]) -> list[Row]:
    """From ServiceRows and Networks: a row per stack, by name."""
    rows: dict[str, Row] = {}
    for message in (*services, *networks):
        service = getattr(message, "service", None)
        labels = service.spec.labels if service is not None else message.labels
        if (name := labels.get(STACK_LABEL)) is None:
            continue
        row = rows.setdefault(
            name,
            {"id": name, "name": name, "services": 0, "networks": 0, "running": 0, "tasks": 0},
        )
        if service is None:
            row["networks"] += 1
        else:
            row["services"] += 1
            row["running"] += message.running
            row["tasks"] += message.desired
    return [rows[name] for name in sorted(rows)]


STACK_COLUMNS = [
    column("NAME", "name"),
    column("SERVICES", "services"),
    Column("TASKS", lambda row: f"{row['running']}/{row['tasks']}"),
    column("NETWORKS", "networks"),
]


def no_stack(name: str, known: Sequence[str]) -> CliError:
    """The error of an unknown stack."""
    meant = near_miss(name, known)
    hint = f"did you mean '{meant}'?" if meant else "see 'orc stack ls'"
    return CliError(f"no stack '{name}'; {hint}")


@click.group(
    cls=OrcGroup,
    # Reading compose files takes longer to import than the other commands take to run.
    sections=(
        (
            "Compose files",
            (
                Lazy("deploy", ".stack.deploy_commands:deploy", "Deploy or update a stack"),
                Lazy("config", ".stack.deploy_commands:config", "Print the merged files"),
                Lazy("rm", ".stack.deploy_commands:rm", "Remove stacks"),
            ),
        ),
    ),
    epilog=example("orc stack deploy -c compose.yaml shop", "orc stack services shop"),
)
def stack() -> None:
    """Manage stacks: services, networks and volumes, deployed together from compose files."""


@stack.command("ls", epilog=example("orc stack ls"))
@listing_options("name")
@pass_client
def list_stacks(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]]
) -> None:
    """List the stacks and the number of their running tasks."""
    services = client.call("ListServices", control_pb2.ListServicesRequest()).services
    networks = client.call("ListNetworks", control_pb2.ListNetworksRequest()).networks
    rows = stack_rows(services, networks)
    print_list(rows, STACK_COLUMNS, form=form, quiet=quiet, filters=filters)


@stack.command(epilog=example("orc stack services shop"))
@click.argument("name", shell_complete=completes("stacks"))
@listing_options("id", "name", "mode", "label")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def services(
    client: Client,
    name: str,
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
) -> None:
    """List the services of a stack."""
    rows = sorted(map(service_row, _services(client, name)), key=lambda row: row["name"])
    print_list(rows, service_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@stack.command(epilog=example("orc stack ps shop", "orc stack ps --filter state=running shop"))
@click.argument("name", shell_complete=completes("stacks"))
@listing_options("id", "name", "node", "desired-state", "state")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def ps(
    client: Client,
    name: str,
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
) -> None:
    """List the tasks of a stack, newest of each replica first."""
    ids = {row.service.id for row in _services(client, name)}
    reply = list_tasks(client)
    tasks = [task for task in reply.tasks if task.service_id in ids]
    rows = task_rows(tasks, reply.hostnames, time.time())
    print_list(rows, task_columns(no_trunc), form=form, quiet=quiet, filters=filters)


def _services(client: Client, name: str) -> list[Any]:
    """The ServiceRows of a stack. Raises CliError if there is no such stack."""
    found = client.call("ListServices", control_pb2.ListServicesRequest()).services
    rows = of_stack(found, name)
    if not rows:
        known = {
            row.service.spec.labels[STACK_LABEL]
            for row in found
            if STACK_LABEL in row.service.spec.labels
        }
        raise no_stack(name, sorted(known))
    return rows
