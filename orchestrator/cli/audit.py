"""`orc audit`: who changed what."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.flag_types import filter_of, moment
from orchestrator.cli.groups import INTERRUPTED, example
from orchestrator.cli.output import Column, Row, column, format_option, print_json, table_lines
from orchestrator.model.units import format_time
from orchestrator.pb import audit_pb2

_KEYS = ("user", "role", "method", "kind", "name", "id", "result", "from", "via", "request")
_DEFAULT_TAIL = 100


def _filters(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> list[audit_pb2.AuditFilter]:
    found = []
    for text in texts:
        key, value = filter_of(text, _KEYS)
        found.append(audit_pb2.AuditFilter(key=key, value=value))
    return found


@click.command(
    epilog=example(
        "orc audit",
        "orc audit --since 1h --user anna",
        "orc audit --follow --filter kind=service --filter result=OK",
    )
)
@click.option("--since", type=moment("since"), metavar="TIME", help="From then on, such as 10m.")
@click.option("--until", type=moment("until"), metavar="TIME", help="Up to then.")
@click.option("--user", "users", multiple=True, metavar="NAME", help="Only calls of this admin.")
@click.option(
    "--filter",
    "-f",
    "wanted",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_filters,
    help=f"Only what matches; those of one key are alternatives. Keys: {', '.join(_KEYS)}.",
)
@click.option(
    "--tail",
    "-n",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help=f"Only the newest entries.  [default: {_DEFAULT_TAIL}; with --since, all]",
)
@click.option("--follow", is_flag=True, help="Go on with entries as they come, until Ctrl-C.")
@format_option()
@pass_client
def audit(
    client: Client,
    since: float | None,
    until: float | None,
    users: tuple[str, ...],
    wanted: list[audit_pb2.AuditFilter],
    tail: int | None,
    follow: bool,
    form: str,
) -> None:
    """Show who changed what: each changing call, its object, origin and result.

    The entries are those of the manager that answers. They never hold contents: no spec,
    environment, command, file, password or token.
    """
    if tail is None:
        tail = 0 if since is not None else _DEFAULT_TAIL
    users_wanted = [audit_pb2.AuditFilter(key="user", value=name) for name in users]
    request = audit_pb2.AuditRequest(
        since=since or 0.0,
        until=until or 0.0,
        tail=tail,
        follow=follow,
        filters=[*wanted, *users_wanted],
    )
    rows: list[Row] = []
    try:
        for reply in client.stream("Audit.Entries", request):
            found = [_row(entry) for entry in reply.entries]
            if follow:
                _print_lines(found, form)
            else:
                rows += found
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    if follow:
        return
    if form == "json":
        print_json([{key: row[key] for key in row if key != "missing"} for row in rows])
        return
    for row in rows:
        _warn_of_gap(row)
    for line in table_lines(rows, _COLUMNS):
        click.echo(line)


def _row(entry: Any) -> Row:
    return {
        "id": entry.id,
        "at": format_time(entry.at),
        "user": entry.user,
        "role": entry.role,
        "certificate": entry.certificate,
        "via": entry.via,
        "from": entry.address,
        "method": entry.method,
        "kind": entry.kind,
        "name": entry.name,
        "result": entry.result,
        "seconds": entry.seconds,
        "request": entry.request,
        "manager": entry.manager,
        "sequence": entry.sequence,
        "missing": entry.missing,
    }


def _user(row: Row) -> str:
    if not row["role"]:
        return "-"
    return str(row["user"]) if row["role"] == "admin" else f"{row['user']} ({row['role']})"


def _object(row: Row) -> str:
    return " ".join(filter(None, (row["kind"], row["name"] or row["id"])))


_COLUMNS: Sequence[Column] = (
    column("TIME", "at"),
    Column("USER", _user),
    column("FROM", "from"),
    column("METHOD", "method"),
    Column("OBJECT", _object),
    column("RESULT", "result"),
    Column("TOOK", lambda row: f"{row['seconds']:.3f}s"),
    column("REQUEST", "request"),
)


def _print_lines(rows: Sequence[Row], form: str) -> None:
    for row in rows:
        if form == "json":
            # One document a line: a stream has no end to close an array at.
            shown = {key: row[key] for key in row if key != "missing"}
            click.echo(json.dumps(shown, ensure_ascii=False))
        else:
            _warn_of_gap(row)
            click.echo("  ".join(each.text(row) for each in _COLUMNS))
    sys.stdout.flush()


def _warn_of_gap(row: Row) -> None:
    if row["missing"]:
        click.echo(
            f"orc: {row['missing']} entries before {row['at']} are missing from the log", err=True
        )
