"""`orc run` and `orc create`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.container_spec import container_options, create_container
from orchestrator.cli.container_watch import NotRun, Watch, failure
from orchestrator.cli.exec import detach_keys, sig_proxy_option
from orchestrator.cli.foreground import foreground, is_ready
from orchestrator.cli.groups import CliError, example
from orchestrator.cli.option_groups import GroupedCommand


@click.command(
    cls=GroupedCommand,
    context_settings={"allow_interspersed_args": False},
    epilog=example(
        "orc run --rm hello:1 /bin/true",
        "orc run -d --name db --node node2 -p 5432:5432 postgres:16",
    ),
)
@click.option("--detach", "-d", is_flag=True, help="Print its id and leave it to itself.")
@sig_proxy_option
@detach_keys
@container_options
@pass_client
def run(client: Client, detach: bool, **values: Any) -> None:
    """Run a program in a new container, somewhere in the cluster.

    Exits with the program's own status; 125 when the container could not be run, 126 when the
    program cannot be run, 127 when it is not there.
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
    with Watch(client, task.id, quiet) as watch:
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
    """Make a container ready on its node, without starting it; print its id."""
    task = create_container(client, values, start=False)
    with Watch(client, task.id, values["quiet"]) as watch:
        if problem := failure(watch.until(is_ready)):
            raise CliError(problem.message)
    click.echo(task.id)
