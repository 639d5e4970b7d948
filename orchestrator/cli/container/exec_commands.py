# SPDX-License-Identifier: Apache-2.0
"""`orc exec` and `orc attach`: another process in a container, and its main process."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes, file_option
from orchestrator.cli.app.errors import CliError, ManagerLost
from orchestrator.cli.container.terminal import DETACH_KEYS, parse_keys
from orchestrator.cli.rpc.client import Client, pass_client


def _keys(ctx: click.Context, param: click.Parameter, text: str) -> bytes:
    try:
        return parse_keys(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def detach_keys(function: Any) -> Any:
    """The option `--detach-keys`, as bytes."""
    return click.option(
        "--detach-keys",
        "keys",
        default=DETACH_KEYS,
        show_default=True,
        metavar="KEYS",
        callback=_keys,
        help="Key sequence that detaches.",
    )(function)


sig_proxy_option = click.option(
    "--sig-proxy",
    type=bool,
    default=True,
    show_default=True,
    metavar="true|false",
    help="Forward signals such as Ctrl-C to the process.",
)


@click.command(
    name="exec",
    context_settings={"allow_interspersed_args": False},
    epilog=example("orc exec -it web.3 sh", "orc exec web.3 cat /etc/hosts"),
)
@click.option("--interactive", "-i", is_flag=True, help="Keep stdin open and forward it.")
@click.option("--tty", "-t", is_flag=True, help="Allocate a terminal.")
@click.option("--detach", "-d", is_flag=True, help="Start the process and detach.")
@click.option(
    "--env",
    "-e",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="An environment variable; repeatable.",
)
@file_option("--env-file", multiple=True, help="File of environment variables, one per line.")
@click.option(
    "--user", "-u", default="", metavar="USER[:GROUP]", help="User and group of the process."
)
@click.option(
    "--workdir", "-w", default="", metavar="DIR", help="Working directory of the process."
)
@click.option("--privileged", is_flag=True, help="Give the process all capabilities.")
@detach_keys
@click.argument("container", shell_complete=completes("running_containers"))
@click.argument("command", nargs=-1, required=True)
@pass_client
def exec_(
    client: Client,
    interactive: bool,
    tty: bool,
    detach: bool,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    user: str,
    workdir: str,
    privileged: bool,
    keys: bytes,
    container: str,
    command: tuple[str, ...],
) -> None:
    """Run a process in a running container. Exits with its exit status; 126 if the program cannot
    be run, 127 if it was not found."""
    from orchestrator.cli.container.interactive_session import NOT_A_TERMINAL, Session
    from orchestrator.pb import interact_pb2

    if interactive and tty and not detach and not os.isatty(0):
        raise CliError(NOT_A_TERMINAL)
    request = interact_pb2.ExecRequest(
        container=container,
        command=command,
        tty=tty,
        stdin=interactive,
        env=_environment(env, env_file),
        user=user,
        workdir=workdir,
        privileged=privileged,
        detach=detach,
    )
    session = Session(client, request, stdin=interactive and not detach, keys=keys)
    try:
        sys.exit(session.run())
    except ManagerLost as lost:
        if not session.begun:
            raise
        raise ManagerLost(
            f"{lost.message} (the process continues in the container, and its output is discarded; "
            f"see 'orc top {container}')"
        ) from None


def _environment(words: tuple[str, ...], files: tuple[str, ...]) -> tuple[str, ...]:
    if not (words or files):
        return ()
    # Imported late: its import is slow, and few commands set variables.
    from orchestrator.cli.flags.spec_flags import environment

    return environment(words, files)


@click.command(epilog=example("orc attach --no-stdin web.3"))
@click.option("--no-stdin", is_flag=True, help="Do not forward stdin.")
@sig_proxy_option
@detach_keys
@click.argument("container", shell_complete=completes("running_containers"))
@pass_client
def attach(client: Client, no_stdin: bool, sig_proxy: bool, keys: bytes, container: str) -> None:
    """Attach to the main process of a container: its input, output and signals. Exits with its exit
    status; at a terminal, ctrl-p ctrl-q detaches."""
    from orchestrator.cli.container.interactive_session import Session
    from orchestrator.pb import interact_pb2

    request = interact_pb2.AttachRequest(container=container, stdin=not no_stdin)
    session = Session(client, request, stdin=not no_stdin, keys=keys, sig_proxy=sig_proxy)
    sys.exit(session.run())
