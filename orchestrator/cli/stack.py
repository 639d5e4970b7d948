"""`orc stack`: services that are deployed together from compose files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.groups import OrcGroup, example
from orchestrator.cli.output import listing_options, print_json, print_list
from orchestrator.cli.rows import service_columns, service_row, task_columns, task_rows
from orchestrator.cli.stack_deploy import checked_name, deploy, no_stack, rm
from orchestrator.cli.stack_files import file_options, read_files
from orchestrator.cli.stack_rows import STACK_COLUMNS, of_stack, stack_rows
from orchestrator.compose.project import escaped
from orchestrator.compose.tree import plain
from orchestrator.compose.yamlfile import dump
from orchestrator.model.specs import STACK_LABEL
from orchestrator.pb import control_pb2


@click.group(
    cls=OrcGroup,
    epilog=example("orc stack deploy -c compose.yaml shop", "orc stack services shop"),
)
def stack() -> None:
    """Stacks: services, networks and volumes that are deployed together from compose files."""


stack.add_command(deploy)
stack.add_command(rm)


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


@stack.command(
    epilog=example(
        "orc stack config -c compose.yaml",
        "orc stack config -c compose.yaml -c production.yaml --format json",
    )
)
@file_options
@click.option(
    "--skip-interpolation", "--no-interpolate", is_flag=True, help="Leave variables as they are."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="How to print it.",
)
@click.option("--quiet", "-q", is_flag=True, help="Only say what is wrong.")
@click.argument("folder", required=False)
def config(
    folder: str | None, skip_interpolation: bool, form: str, quiet: bool, **values: Any
) -> None:
    """Print the one file that compose files are together: merged, with their variables filled in,
    and everything in its long form. Nothing is asked of a cluster."""
    given = read_files(values, folder, interpolate=not skip_interpolation)
    if not skip_interpolation:
        given.stack(checked_name(given.document.text("name") or "stack"))
    for note in given.notes:
        click.echo(f"note: {note}", err=True)
    if quiet:
        return
    document = given.document
    shown = {key: each for key, each in document.entries.items() if key != "version"}
    document = replace(document, entries=shown)
    if form == "json":
        print_json(plain(document))
    else:
        tree = document if skip_interpolation else escaped(document)
        click.echo(dump(tree), nl=False)
