"""`orc stack`: services that are deployed together from compose files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.groups import Lazy, OrcGroup, example
from orchestrator.cli.output import listing_options, print_list
from orchestrator.cli.rows import service_columns, service_row, task_columns, task_rows
from orchestrator.cli.stack_rows import STACK_COLUMNS, no_stack, of_stack, stack_rows
from orchestrator.model.specs import STACK_LABEL
from orchestrator.pb import control_pb2


@click.group(
    cls=OrcGroup,
    # Those that read compose files take longer to import than the others take to run.
    sections=(
        (
            "Compose files",
            (
                Lazy("deploy", "orchestrator.cli.stack_deploy:deploy", "Make what the files say"),
                Lazy("config", "orchestrator.cli.stack_config:config", "Print the files as one"),
                Lazy("rm", "orchestrator.cli.stack_deploy:rm", "Remove stacks"),
            ),
        ),
    ),
    epilog=example("orc stack deploy -c compose.yaml shop", "orc stack services shop"),
)
def stack() -> None:
    """Stacks: services, networks and volumes that are deployed together from compose files."""


@stack.command("ls", epilog=example("orc stack ls"))
@listing_options("name")
@pass_client
def list_stacks(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]]
) -> None:
    """List the stacks, with how many of their tasks run."""
    services = client.call("ListServices", control_pb2.ListServicesRequest()).services
    networks = client.call("ListNetworks", control_pb2.ListNetworksRequest()).networks
    rows = stack_rows(services, networks)
    print_list(rows, STACK_COLUMNS, form=form, quiet=quiet, filters=filters)


@stack.command(epilog=example("orc stack services shop"))
@click.argument("name", shell_complete=completion.stacks)
@listing_options("id", "name", "mode", "label")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
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
@click.argument("name", shell_complete=completion.stacks)
@listing_options("id", "name", "node", "desired-state", "state")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
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
    reply = client.call("ListTasks", control_pb2.ListTasksRequest())
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
