# SPDX-License-Identifier: Apache-2.0
"""`orc events` and `orc audit`: what happens in the cluster, and who changed what."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.errors import INTERRUPTED
from orchestrator.cli.flags.flag_types import filter_of, moment_type
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    format_option,
    print_json,
    table_lines,
    template_lines,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.rpc.event_resumption import EventResumption
from orchestrator.cli.rpc.resumption import resumed
from orchestrator.model.names import near_miss
from orchestrator.model.units import format_time
from orchestrator.pb import audit_pb2, containers_pb2

_AUDIT_KEYS = ("user", "role", "method", "kind", "name", "id", "result", "from", "via", "request")
_DEFAULT_TAIL = 100


def _audit_filters(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> list[audit_pb2.AuditFilter]:
    found = []
    for text in texts:
        key, value = filter_of(text, _AUDIT_KEYS)
        found.append(audit_pb2.AuditFilter(key=key, value=value))
    return found


@click.command(
    epilog=example(
        "orc audit",
        "orc audit --since 1h --user anna",
        "orc audit --follow --filter kind=service --filter result=OK",
    )
)
@click.option(
    "--since",
    type=moment_type("since"),
    metavar="TIME",
    help="Only entries since this time, such as 10m.",
)
@click.option(
    "--until", type=moment_type("until"), metavar="TIME", help="Only entries before this time."
)
@click.option("--user", "users", multiple=True, metavar="NAME", help="Only calls of this admin.")
@click.option(
    "--filter",
    "-f",
    "wanted",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_audit_filters,
    help=f"Only matching entries; values of one key are alternatives. "
    f"Keys: {', '.join(_AUDIT_KEYS)}.",
)
@click.option(
    "--tail",
    "-n",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help=f"Number of newest entries to show.  [default: {_DEFAULT_TAIL}; with --since, all]",
)
@click.option("--follow", is_flag=True, help="Follow new entries, until Ctrl-C.")
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
    """Show the audit trail: who changed what, each call with its object, origin and result.

    The entries are those of the manager that answers. They never contain data: no spec,
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
            # One document per line: a stream cannot close an array.
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


_TYPES = (
    *("container", "node", "manager", "service", "job", "queue", "stack", "image", "network"),
    *("volume", "secret", "config", "plugin", "cluster"),
)
_EVENT_KEYS = ("type", "event", "label", "scope", *_TYPES)


def _event_filters(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for text in texts:
        key, value = filter_of(text, _EVENT_KEYS)
        if key == "type" and value not in _TYPES:
            meant = near_miss(value, _TYPES)
            hint = f"did you mean {meant!r}?" if meant else f"known are {', '.join(_TYPES)}"
            raise click.BadParameter(f"type {value!r} is unknown; {hint}")
        wanted.setdefault(key, []).append(value)
    return wanted


@click.command(
    epilog=example(
        "orc events",
        "orc events --since 10m --filter type=container --filter event=die",
        "orc events --format '{{.Time}} {{.Type}} {{.Action}} {{.Name}}'",
    )
)
@click.option(
    "--since", type=moment_type("since"), help="Also past events since this time, such as 10m."
)
@click.option("--until", type=moment_type("until"), help="Only events before this time.")
@click.option(
    "--filter",
    "-f",
    "wanted",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_event_filters,
    help=f"Only matching objects; repeatable. Keys: {', '.join(_EVENT_KEYS)}.",
)
@format_option(templates=True)
@pass_client
def events(
    client: Client,
    since: float | None,
    until: float | None,
    wanted: dict[str, list[str]],
    form: str,
) -> None:
    """Stream events of the cluster, until Ctrl-C (or --until)."""
    request = containers_pb2.EventsRequest(since=since or 0.0, until=until or 0.0)
    try:
        for event in _resumed_events(client, request):
            if all(any(matches(event, k, v) for v in values) for k, values in wanted.items()):
                click.echo(_line(event, form))
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _resumed_events(client: Client, request: Any) -> Iterator[Any]:
    """The stream of an EventsRequest, each event once, across failures of managers."""
    resumption = EventResumption(request)
    starts = 0

    def open_stream() -> Iterator[Any]:
        nonlocal starts
        starts += 1
        if starts > 1:
            resumption.lost()
        return client.stream("Containers.Events", resumption.request, opened=resumption.opened)

    for event in resumed(client, open_stream):
        resumption.take(event)
        yield event


def matches(event: Any, key: str, value: str) -> bool:
    """Whether an event matches a filter."""
    match key:
        case "type":
            return bool(event.type == value)
        case "event":
            # Docker's `exec_start: sh` and `health_status: healthy` are named by their first word.
            return bool(event.action == value or event.action.startswith(f"{value}:"))
        case "scope":
            here = event.type in ("container", "volume", "image", "plugin")
            return value == ("local" if here else "swarm")
        case "node":
            named = event.type == "node" and event.id.startswith(value)
            return bool(event.node == value or named)
        case "label":
            name, equals, wanted = value.partition("=")
            held = event.attributes.get(name)
            return held is not None and (not equals or held == wanted)
        case "service" | "stack" | "job" if event.type == "container":
            return bool(event.attributes.get(key) == value)
        case "image" if event.type == "container":
            return bool(event.attributes.get("image") in (value, f"{value}:latest"))
        case _:
            named = event.name == value or event.id.startswith(value)
            return bool(event.type == key and named)


def _line(event: Any, form: str) -> str:
    row = event_row(event)
    if form == "table":
        return _as_text(event)
    if form == "json":
        # One document per line: a stream cannot close an array.
        return json.dumps(row, ensure_ascii=False)
    dockers = {
        "time": row["at"],
        "status": row["action"],
        "from": event.attributes.get("image", ""),
        "actor": {"ID": event.id, "attributes": {"name": event.name, **row["attributes"]}},
    }
    return "\n".join(template_lines([{**row, **dockers}], (), form))


def event_row(event: Any) -> Row:
    """An event as a JSON document."""
    return {
        "at": format_time(event.at),
        "type": event.type,
        "action": event.action,
        "id": event.id,
        "name": event.name,
        "node": event.node,
        "attributes": dict(event.attributes),
    }


def _as_text(event: Any) -> str:
    about = {"name": event.name, "node": event.node, **dict(sorted(event.attributes.items()))}
    shown = ", ".join(f"{key}={value}" for key, value in about.items() if value)
    return f"{format_time(event.at)} {event.type} {event.action} {event.id} ({shown})"
