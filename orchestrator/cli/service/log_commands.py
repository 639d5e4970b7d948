# SPDX-License-Identifier: Apache-2.0
"""`orc service logs` and `orc logs`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, TypeVar

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import INTERRUPTED, ManagerLost
from orchestrator.cli.flags.flag_types import Parsed
from orchestrator.cli.rpc.client import RECONNECT_PAUSE, Client, pass_client
from orchestrator.cli.rpc.log_resumption import LogResumption
from orchestrator.model.units import format_time, parse_moment
from orchestrator.pb import containers_pb2, control_pb2

F = TypeVar("F", bound=Callable[..., Any])


def _tail(text: str) -> int:
    if text == "all":
        return -1
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a number of lines, or all")
    return int(text)


def log_options(function: F) -> F:
    """The flags of a command that shows logs, as Docker names them."""
    for option in reversed(
        (
            click.option("--follow", "-f", is_flag=True, help="Follow the log."),
            click.option(
                "--tail",
                "-n",
                type=Parsed("NUMBER|all", _tail),
                default="all",
                show_default=True,
                help="Number of lines to show of each task's log.",
            ),
            click.option(
                "--since",
                type=Parsed("time", lambda text: parse_moment(text, time.time(), "since")),
                help="Only lines since this time, such as 10m or 2026-01-31T12:00:00Z.",
            ),
            click.option(
                "--until",
                type=Parsed("time", lambda text: parse_moment(text, time.time(), "until")),
                help="Only lines before this time.",
            ),
            click.option("--timestamps", "-t", is_flag=True, help="Show timestamps."),
        )
    ):
        function = option(function)
    return function


@click.command(epilog=example("orc service logs -f --tail 10 web", "orc service logs web.3"))
@log_options
@click.option("--raw", is_flag=True, help="Print raw lines, without the task's name.")
@click.argument("service", metavar="SERVICE|TASK", shell_complete=completes("services_and_tasks"))
@pass_client
def logs(client: Client, service: str, raw: bool, timestamps: bool, **values: Any) -> None:
    """Show the logs of a service or of one task: its stdout on stdout, its stderr on stderr."""
    show_logs(client, service, values, raw=raw, timestamps=timestamps)


@click.command("logs", epilog=example("orc logs -f web", "orc logs --since 10m -t web.3"))
@log_options
@click.argument("container", shell_complete=completes("containers"))
@pass_client
def container_logs(client: Client, container: str, timestamps: bool, **values: Any) -> None:
    """Show the logs of a container: its stdout on stdout, its stderr on stderr."""
    listing = containers_pb2.ListContainersRequest(containers=[container])
    task = client.call("Containers.ListContainers", listing).containers[0].task
    show_logs(client, task.id, values, raw=True, timestamps=timestamps)


def show_logs(
    client: Client,
    name: str,
    values: Mapping[str, Any],
    *,
    raw: bool,
    timestamps: bool,
    of_job: bool = False,
) -> None:
    """Print the logs of a service or task, or with `of_job` of a job or a task of one, as
    `log_options` say, until their end or Ctrl-C."""
    request = _request(name, values, of_job)
    try:
        print_records(client, request, raw=raw, timestamps=timestamps)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _request(name: str, values: Mapping[str, Any], of_job: bool) -> Any:
    return control_pb2.LogsRequest(
        service=name,
        follow=values["follow"],
        tail=values["tail"],
        since=values["since"] or 0.0,
        until=values["until"] or 0.0,
        of_job=of_job,
    )


def print_records(client: Client, request: Any, *, raw: bool, timestamps: bool) -> None:
    """Print the stream of a LogsRequest."""
    width = 0
    for batch in _batches(client, request):
        prefix = "" if raw or not batch.task_name else f"{batch.task_name}@{batch.node}"
        # Align the bars with the longest name seen so far.
        width = max(width, len(prefix))
        _print(batch.records, "" if raw else f"{prefix:{width}} | ", timestamps)


def _batches(client: Client, request: Any) -> Iterator[Any]:
    """The records that the manager streams. A followed stream survives a manager's restart, with
    each line once."""
    resumption = LogResumption(request)
    reported, failures = False, 0
    calls: list[Any] = []
    while True:
        try:
            for batch in client.stream("Logs", resumption.request, opened=calls.append):
                reported, failures = False, 0
                resumption.take(batch)
                yield batch
            return
        except ManagerLost as lost:
            failures += 1
            moves = client.has_alternatives and failures == 1
            if not calls or not (request.follow or moves):
                raise
            if not (reported or moves):
                click.echo(
                    f"orc: {lost.message} (the log continues when a manager is back)", err=True
                )
            reported = not moves
        client.close()
        if not moves:
            time.sleep(RECONNECT_PAUSE)
        resumption.lost()


def _print(records: Iterable[Any], prefix: str, timestamps: bool) -> None:
    """Print lines, grouped by stream."""
    for err, group in groupby(records, key=lambda record: record.stderr or record.notice):
        text = b"".join(_line(record, prefix.encode(), timestamps) for record in group)
        click.echo(text, err=err, nl=False)


def _line(record: Any, prefix: bytes, timestamps: bool) -> bytes:
    # As bytes: logs need not be text.
    line: bytes = record.line.removesuffix(b"\n")
    if record.notice:
        return b"orc: %b\n" % line
    stamp = f"{format_time(record.at)} ".encode() if timestamps else b""
    return b"%b%b%b\n" % (stamp, prefix, line)
