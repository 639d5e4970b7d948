"""`orc service logs`: what the containers of a service wrote."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.groups import INTERRUPTED, example
from orchestrator.cli.spec_flags import Parsed
from orchestrator.model.units import format_time, parse_moment
from orchestrator.pb import control_pb2


def _tail(text: str) -> int:
    if text == "all":
        return -1
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a number of lines, or all")
    return int(text)


@click.command(epilog=example("orc service logs -f --tail 10 web", "orc service logs web.3"))
@click.option("--follow", "-f", is_flag=True, help="Go on as lines are written.")
@click.option(
    "--tail",
    "-n",
    type=Parsed("lines|all", _tail),
    default="all",
    show_default=True,
    help="Only the last lines of each task.",
)
@click.option(
    "--since",
    type=Parsed("time", lambda text: parse_moment(text, time.time(), "since")),
    help="Only what was written since, such as 10m or 2026-01-31T12:00:00Z.",
)
@click.option("--timestamps", "-t", is_flag=True, help="Show when each line was written.")
@click.option("--raw", is_flag=True, help="Lines as they are, without the task's name.")
@click.argument("service", metavar="SERVICE|TASK", shell_complete=completion.services)
@pass_client
def logs(
    client: Client,
    service: str,
    follow: bool,
    tail: int,
    since: float | None,
    timestamps: bool,
    raw: bool,
) -> None:
    """Show the logs of a service or of one task: its stdout on stdout, its stderr on stderr."""
    request = control_pb2.LogsRequest(service=service, follow=follow, tail=tail, since=since or 0.0)
    width = 0
    try:
        for record in client.stream("Logs", request):
            if record.notice:
                click.echo(f"orc: {_text(record.line)}", err=True)
                continue
            prefix = "" if raw else f"{record.task_name}@{record.node}"
            # The bars stay in one column as far as the names seen so far go.
            width = max(width, len(prefix))
            _print(record, "" if raw else f"{prefix:{width}} | ", timestamps)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _print(record: Any, prefix: str, timestamps: bool) -> None:
    if timestamps:
        prefix = f"{format_time(record.at)} {prefix}"
    # As bytes: what a container writes need not be text.
    click.echo(prefix.encode() + record.line.removesuffix(b"\n"), err=record.stderr)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\n")
