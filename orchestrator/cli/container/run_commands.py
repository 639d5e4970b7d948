# SPDX-License-Identifier: Apache-2.0
"""`orc run` and `orc create`, and `orc update` of their limits."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.app.option_groups import GroupedCommand
from orchestrator.cli.container.container_spec import (
    SHORT,
    container_options,
    create_container,
    parse_restart,
)
from orchestrator.cli.container.exec_commands import detach_keys, sig_proxy_option
from orchestrator.cli.container.foreground import (
    ContainerWatch,
    NotRun,
    failure,
    foreground,
    is_ready,
)
from orchestrator.cli.flags.flag_types import Parsed
from orchestrator.cli.flags.spec_settings import SETTINGS
from orchestrator.cli.output.batch import attempts
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.convert import to_proto
from orchestrator.pb import containers_pb2


@click.command(
    cls=GroupedCommand,
    context_settings={"allow_interspersed_args": False},
    epilog=example(
        "orc run --rm hello:1 /bin/true",
        "orc run -d --name db --node node2 -p 5432:5432 postgres:16",
    ),
)
@click.option("--detach", "-d", is_flag=True, help="Run in the background and print the id.")
@sig_proxy_option
@detach_keys
@container_options
@pass_client
def run(client: Client, detach: bool, **values: Any) -> None:
    """Run a program in a new container, somewhere in the cluster.

    Exits with the program's exit status; 125 if the container could not be run, 126 if the program
    cannot be run, 127 if it was not found.
    """
    if values["interactive"] and values["tty"] and not detach and not os.isatty(0):
        raise NotRun("the input is not a terminal; leave out -t, or run this at a terminal")
    try:
        if detach:
            task = create_container(client, values, start=True)
            click.echo(_started(client, task, values["quiet"]))
            return
        task = create_container(client, values, start=False)
        status = foreground(
            client,
            task.id,
            stdin=values["interactive"],
            tty=values["tty"],
            keys=values["keys"],
            sig_proxy=values["sig_proxy"],
            quiet=values["quiet"],
            goes=values["auto_remove"],
        )
    except NotRun:
        raise
    except CliError as error:
        raise NotRun(error.format_message()) from None
    sys.exit(status)


def _started(client: Client, task: Any, quiet: bool) -> str:
    with ContainerWatch(client, task.id, quiet) as watch:
        if problem := failure(watch.until(lambda seen: seen.begun)):
            raise problem
    return str(task.id)


@click.command(
    cls=GroupedCommand,
    context_settings={"allow_interspersed_args": False},
    epilog=example("orc create --name web hello:1", "orc start web"),
)
@container_options
@pass_client
def create(client: Client, **values: Any) -> None:
    """Create a container on its node without starting it, and print its id."""
    task = create_container(client, values, start=False)
    with ContainerWatch(client, task.id, values["quiet"]) as watch:
        if problem := failure(watch.until(is_ready)):
            raise CliError(problem.message)
    click.echo(task.id)


_FIELDS = {
    "limit_cpu": "limit_shares",
    "cpu_shares": "shares",
    "cpuset_cpus": "cpuset_cpus",
    "limit_memory": "limit_memory",
    "memory_swap": "memory_swap",
    "reserve_cpu": "reserved_shares",
    "reserve_memory": "reserved_memory",
    "pids_limit": "pids_limit",
}
"""Name of a setting → its field in the request."""


def _resource_options(function: Any) -> Any:
    by_name = {each.name: each for each in SETTINGS}
    for name in reversed(_FIELDS):
        setting = by_name[name]
        short = (SHORT[name],) if name in SHORT else ()
        function = click.option(*short, *setting.flags, name, **setting.click_options)(function)
    return function


@click.command(
    epilog=example("orc update --memory 512m --cpus 1.5 web", "orc update --restart always web db")
)
@_resource_options
@click.option(
    "--restart",
    type=Parsed("no|on-failure[:NUMBER]|always|unless-stopped", parse_restart),
    help="When to restart it after its exit.",
)
@click.argument("containers", nargs=-1, required=True, shell_complete=completes("containers"))
@pass_client
def update(client: Client, containers: tuple[str, ...], **values: Any) -> None:
    """Change resource limits and restart policies of containers without restarting them.

    0 removes a limit of CPU or memory. A node rejects a memory limit below the container's usage,
    and a reservation that exceeds its capacity; then nothing changes.
    """
    changes = {field: values[name] for name, field in _FIELDS.items() if values[name] is not None}
    if values["restart"] is not None:
        changes["restart"] = to_proto(values["restart"])
    if not changes:
        raise click.UsageError("give at least one option, such as --memory 512m")
    with attempts() as attempt:
        for name in containers:
            with attempt():
                request = containers_pb2.UpdateContainerRequest(container=name, **changes)
                client.call("Containers.UpdateContainer", request)
                click.echo(name)
