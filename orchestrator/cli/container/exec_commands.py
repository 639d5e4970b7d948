"""`orc exec` and `orc attach`: another program in a container, and the container's own."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes, file_option
from orchestrator.cli.app.errors import CliError
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
        help="Keys that leave the program running.",
    )(function)


sig_proxy_option = click.option(
    "--sig-proxy",
    type=bool,
    default=True,
    show_default=True,
    metavar="true|false",
    help="Pass signals such as Ctrl-C on to the container.",
)


@click.command(
    name="exec",
    context_settings={"allow_interspersed_args": False},
    epilog=example("orc exec -it web.3 sh", "orc exec web.3 cat /etc/hosts"),
)
@click.option("--interactive", "-i", is_flag=True, help="Send this command's input to the program.")
@click.option("--tty", "-t", is_flag=True, help="Give the program a terminal.")
@click.option("--detach", "-d", is_flag=True, help="Start the program and leave it.")
@click.option(
    "--env",
    "-e",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="An environment variable; repeatable.",
)
@file_option("--env-file", multiple=True, help="Variables, one a line.")
@click.option("--user", "-u", default="", metavar="USER[:GROUP]", help="Who runs the program.")
@click.option("--workdir", "-w", default="", metavar="DIR", help="Where the program begins.")
@click.option("--privileged", is_flag=True, help="Give the program all capabilities.")
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
    """Run a program in a container that runs. Exits as the program does; 126 if it cannot be run,
    127 if there is none of that name."""
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
    sys.exit(Session(client, request, stdin=interactive and not detach, keys=keys).run())


def _environment(words: tuple[str, ...], files: tuple[str, ...]) -> tuple[str, ...]:
    if not (words or files):
        return ()
    # Its module takes its time, and most programs need no variable.
    from orchestrator.cli.flags.spec_flags import environment

    return environment(words, files)


@click.command(epilog=example("orc attach --no-stdin web.3"))
@click.option("--no-stdin", is_flag=True, help="Do not send this command's input.")
@sig_proxy_option
@detach_keys
@click.argument("container", shell_complete=completes("running_containers"))
@pass_client
def attach(client: Client, no_stdin: bool, sig_proxy: bool, keys: bytes, container: str) -> None:
    """Connect to a container's own program: its input, output and signals. Exits as it does;
    at a terminal, ctrl-p ctrl-q leaves it running."""
    from orchestrator.cli.container.interactive_session import Session
    from orchestrator.pb import interact_pb2

    request = interact_pb2.AttachRequest(container=container, stdin=not no_stdin)
    session = Session(client, request, stdin=not no_stdin, keys=keys, sig_proxy=sig_proxy)
    sys.exit(session.run())
