"""`orc run` and `orc create`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.container_spec import container_options, container_request
from orchestrator.cli.container_watch import NotRun, Seen, Watch, failure
from orchestrator.cli.exec import detach_keys
from orchestrator.cli.groups import CliError, example
from orchestrator.model.states import TaskState
from orchestrator.pb import containers_pb2


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog=example(
        "orc run --rm hello:1 /bin/true",
        "orc run -d --name db --node node2 -p 5432:5432 postgres:16",
    ),
)
@click.option("--detach", "-d", is_flag=True, help="Print its id and leave it to itself.")
@detach_keys
@container_options
@pass_client
def run(client: Client, detach: bool, **values: Any) -> None:
    """Run a program in a new container, somewhere in the cluster.

    Exits with the program's own status; 125 when the container could not be run, 126 when the
    program cannot be run, 127 when it is not there.
    """
    request = container_request(values, start=detach)
    if values["interactive"] and values["tty"] and not detach and not os.isatty(0):
        raise NotRun("the input is not a terminal; leave out -t, or run this at a terminal")
    try:
        if detach:
            click.echo(_started(client, client.call("Containers.CreateContainer", request)))
            return
        task = client.call("Containers.CreateContainer", request)
        status = _foreground(client, task.id, values)
    except NotRun:
        raise
    except CliError as error:
        raise NotRun(error.format_message()) from None
    sys.exit(status)


def _started(client: Client, task: Any) -> str:
    with Watch(client, task.id) as watch:
        if problem := failure(watch.until(lambda seen: seen.begun)):
            raise problem
    return str(task.id)


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog=example("orc create --name web hello:1", "orc start web"),
)
@container_options
@pass_client
def create(client: Client, **values: Any) -> None:
    """Make a container ready on its node, without starting it; print its id."""
    task = client.call("Containers.CreateContainer", container_request(values, start=False))
    with Watch(client, task.id) as watch:
        if problem := failure(watch.until(_is_ready)):
            raise CliError(problem.message)
    click.echo(task.id)


def _is_ready(seen: Seen) -> bool:
    return seen.task.status.state >= TaskState.READY or seen.removed


def _foreground(client: Client, container: str, values: Mapping[str, Any]) -> int:
    """Attach to a created container, start it, and return its exit status."""
    from orchestrator.cli.session import Session
    from orchestrator.pb import interact_pb2

    with Watch(client, container) as watch:
        if problem := failure(watch.until(_is_ready)):
            raise problem

        def start() -> None:
            request = containers_pb2.ContainerRequest(container=container)
            client.call("Containers.StartContainer", request)

        session = Session(
            client,
            interact_pb2.AttachRequest(container=container, stdin=values["interactive"]),
            stdin=values["interactive"],
            keys=values["keys"],
            sig_proxy=not values["tty"],
            attached=start,
        )
        status = session.run()
        if not session.detached and values["auto_remove"]:
            watch.until(lambda seen: seen.removed)
    return status
