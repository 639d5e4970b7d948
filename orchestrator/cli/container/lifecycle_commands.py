# SPDX-License-Identifier: Apache-2.0
"""The life cycle of containers: start, stop, restart, kill, pause, unpause, rm, wait, rename."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import Completer, completes
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.container.exec_commands import detach_keys, sig_proxy_option
from orchestrator.cli.container.foreground import (
    ContainerState,
    ContainerWatch,
    await_removal,
    failure,
    foreground,
)
from orchestrator.cli.output.batch import attempts
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.states import is_terminal
from orchestrator.pb import containers_pb2

F = TypeVar("F", bound=Callable[..., Any])


def _containers(names: Completer) -> Callable[[F], F]:
    return click.argument("containers", nargs=-1, required=True, shell_complete=names)


_signal = click.option("--signal", "-s", metavar="SIGNAL", help="Such as SIGINT.")
_time = click.option(
    "--time", "-t", "--timeout", "grace", type=float, metavar="SECONDS", help="Until SIGKILL."
)


def _apply_to_each(
    names: Sequence[str], act: Callable[[str], Any], wait: Callable[[Any], None]
) -> None:
    """Send the request for each container, then wait for each in turn and print its name."""
    ordered = []
    with attempts() as attempt:
        for name in names:
            with attempt():
                ordered.append((name, act(name)))
        for name, task in ordered:
            with attempt():
                wait(task)
                click.echo(name)


@click.command(epilog=example("orc start web", "orc start -ai shell"))
@click.option("--attach", "-a", is_flag=True, help="Attach, and exit with its exit status.")
@click.option("--interactive", "-i", is_flag=True, help="Forward stdin to it.")
@sig_proxy_option
@detach_keys
@_containers(completes("stopped_containers"))
@pass_client
def start(
    client: Client,
    containers: tuple[str, ...],
    attach: bool,
    interactive: bool,
    sig_proxy: bool,
    keys: bytes,
) -> None:
    """Start created or stopped containers."""
    if attach or interactive:
        if len(containers) > 1:
            raise click.UsageError("only one container can be attached to; start the others first")
        task = _call(client, "PrepareContainer", containers[0])
        container = task.spec.container
        stdin = interactive and container.open_stdin
        options = {"stdin": stdin, "tty": container.tty, "keys": keys, "sig_proxy": sig_proxy}
        sys.exit(foreground(client, task.id, goes=task.auto_remove, **options))
    _apply_to_each(
        containers,
        lambda name: _call(client, "StartContainer", name),
        lambda task: _await_begin(client, task),
    )


@click.command(epilog=example("orc stop web", "orc stop -t 30 db"))
@_time
@_signal
@_containers(completes("running_containers"))
@pass_client
def stop(
    client: Client, containers: tuple[str, ...], grace: float | None, signal: str | None
) -> None:
    """Stop containers: send the stop signal, and SIGKILL after the grace period."""

    def order(name: str) -> Any:
        return client.call("Containers.StopContainer", _stopping(name, grace, signal))

    _apply_to_each(containers, order, lambda task: _await_end(client, task))


@click.command(epilog=example("orc restart web"))
@_time
@_signal
@_containers(completes("containers"))
@pass_client
def restart(
    client: Client, containers: tuple[str, ...], grace: float | None, signal: str | None
) -> None:
    """Stop containers and start them again."""

    def order(name: str) -> Any:
        return client.call("Containers.RestartContainer", _stopping(name, grace, signal))

    _apply_to_each(containers, order, lambda task: _await_begin(client, task))


def _stopping(name: str, grace: float | None, signal: str | None) -> Any:
    request = containers_pb2.StopContainerRequest(container=name, signal=signal or "")
    if grace is not None:
        request.grace = grace
    return request


@click.command(epilog=example("orc kill web", "orc kill -s HUP web"))
@click.option(
    "--signal", "-s", default="KILL", show_default=True, metavar="SIGNAL", help="Such as SIGHUP."
)
@_containers(completes("running_containers"))
@pass_client
def kill(client: Client, containers: tuple[str, ...], signal: str) -> None:
    """Send a signal to containers."""

    def order(name: str) -> Any:
        request = containers_pb2.KillContainerRequest(container=name, signal=signal)
        return client.call("Containers.KillContainer", request)

    deadly = signal.upper().removeprefix("SIG") in ("KILL", "9")
    _apply_to_each(containers, order, lambda task: _await_end(client, task) if deadly else None)


@click.command(epilog=example("orc pause web"))
@_containers(completes("running_containers"))
@pass_client
def pause(client: Client, containers: tuple[str, ...]) -> None:
    """Suspend all processes of containers."""
    _apply_to_each(containers, lambda name: _call(client, "PauseContainer", name), lambda _: None)


@click.command(epilog=example("orc unpause web"))
@_containers(completes("paused_containers"))
@pass_client
def unpause(client: Client, containers: tuple[str, ...]) -> None:
    """Resume paused containers."""
    _apply_to_each(containers, lambda name: _call(client, "UnpauseContainer", name), lambda _: None)


@click.command(epilog=example("orc rm web", "orc rm -f web db"))
@click.option(
    "--force", "-f", is_flag=True, help="Kill running ones; drop those on unreachable nodes."
)
@click.option("--volumes", "-v", is_flag=True, help="Also remove their anonymous volumes.")
@_containers(completes("containers"))
@pass_client
def rm(client: Client, containers: tuple[str, ...], force: bool, volumes: bool) -> None:
    """Remove containers and their files."""

    def order(name: str) -> Any:
        request = containers_pb2.RemoveContainerRequest(
            container=name, force=force, volumes=volumes
        )
        return client.call("Containers.RemoveContainer", request)

    _apply_to_each(containers, order, lambda task: await_removal(client, task))


@click.command(epilog=example("orc wait job"))
@_containers(completes("running_containers"))
@pass_client
def wait(client: Client, containers: tuple[str, ...]) -> None:
    """Wait until containers have exited, and print their exit statuses."""
    with attempts() as attempt:
        for name in containers:
            with attempt():
                with ContainerWatch(client, name) as watch:
                    end = watch.until(partial(_run_is_over, run=watch.last.task.status.run))
                click.echo(end.task.status.exit_code)


def _run_is_over(seen: ContainerState, run: int) -> bool:
    """Whether this run has ended; a restart policy may have started the next immediately."""
    status = seen.task.status
    return seen.ended or is_terminal(status.state) or status.run > run


@click.command(epilog=example("orc rename web old-web"))
@click.argument("container", shell_complete=completes("containers"))
@click.argument("name")
@pass_client
def rename(client: Client, container: str, name: str) -> None:
    """Rename a container."""
    request = containers_pb2.RenameContainerRequest(container=container, name=name)
    client.call("Containers.RenameContainer", request)


def _call(client: Client, method: str, name: str) -> Any:
    request = containers_pb2.ContainerRequest(container=name)
    return client.call(f"Containers.{method}", request)


def _await_begin(client: Client, task: Any) -> None:
    with ContainerWatch(client, task.id) as watch:
        if problem := failure(watch.until(lambda seen: seen.begun)):
            raise CliError(problem.message)


def _await_end(client: Client, task: Any) -> None:
    with ContainerWatch(client, task.id) as watch:
        watch.until(lambda seen: seen.ended or seen.task.desired_state <= seen.task.status.state)
