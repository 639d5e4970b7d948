"""`orc run` and `orc create`."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import click

from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.container_spec import container_options, container_request
from orchestrator.cli.container_watch import NotRun, Seen, Watch, failure
from orchestrator.cli.groups import CliError, example
from orchestrator.cli.logs import print_records
from orchestrator.model.states import TaskState
from orchestrator.pb import containers_pb2, control_pb2


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog=example(
        "orc run --rm hello:1 /bin/true",
        "orc run -d --name db --node node2 -p 5432:5432 postgres:16",
    ),
)
@click.option("--detach", "-d", is_flag=True, help="Print its id and leave it to itself.")
@container_options
@pass_client
def run(client: Client, detach: bool, **values: Any) -> None:
    """Run a program in a new container, somewhere in the cluster.

    Exits with the program's own status; 125 when the container could not be run, 126 when the
    program cannot be run, 127 when it is not there.
    """
    request = container_request(values, start=detach)
    try:
        if detach:
            click.echo(_started(client, client.call("Containers.CreateContainer", request)))
            return
        status = _foreground(client, client.call("Containers.CreateContainer", request).id)
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


def _foreground(client: Client, container: str) -> int:
    """Start a created container, show what it writes, and return its exit status."""
    with Watch(client, container) as watch:
        if problem := failure(watch.until(_is_ready)):
            raise problem
        reader = _Output(client, container)
        client.call(
            "Containers.StartContainer", containers_pb2.ContainerRequest(container=container)
        )
        while True:
            try:
                end = watch.until(lambda seen: seen.ended and seen.task.status.run > 0)
                break
            except KeyboardInterrupt:
                _interrupt(client, container)
        reader.finish()
    if problem := failure(end):
        raise problem
    return end.task.status.exit_code & 0xFF


def _interrupt(client: Client, container: str) -> None:
    """Ctrl-C goes to the program, which may take it as it likes."""
    request = containers_pb2.KillContainerRequest(container=container, signal=signal.SIGINT.name)
    try:
        client.call("Containers.KillContainer", request)
    except CliError:
        return


class _Output:
    """Prints what a container writes, beside waiting for its end."""

    def __init__(self, client: Client, container: str) -> None:
        self._request = control_pb2.LogsRequest(service=container, follow=True, tail=-1)
        self._thread = threading.Thread(target=self._print, args=(client,), daemon=True)
        self._thread.start()

    def _print(self, client: Client) -> None:
        try:
            print_records(client, self._request, raw=True, timestamps=False)
        except CliError as error:
            click.echo(f"orc: {error.format_message()}", err=True)

    def finish(self) -> None:
        """Wait for the last line."""
        self._thread.join(10.0)
