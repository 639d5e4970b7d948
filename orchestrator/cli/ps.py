"""`orc ps`, `inspect`, `port` and `events`: what runs, and what happened."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.container_rows import (
    LIVE,
    STATES,
    container_columns,
    container_document,
    container_row,
    matches,
)
from orchestrator.cli.groups import INTERRUPTED, CliError, example
from orchestrator.cli.output import Row, format_option, listing_options, print_json, print_list
from orchestrator.cli.spec_flags import Parsed
from orchestrator.model.names import near_miss
from orchestrator.model.units import format_time, parse_moment
from orchestrator.pb import containers_pb2


@click.command(epilog=example("orc ps", "orc ps -a --filter status=exited --format json"))
@click.option("--all", "-a", "everything", is_flag=True, help="Those that do not run, too.")
@click.option("--last", "-n", type=click.INT, default=-1, help="The newest so many, of all.")
@click.option("--latest", "-l", is_flag=True, help="The newest one, of all.")
@listing_options("id", "name", "status", "exited", "node", "ancestor", "label", "service", "health")
@click.option("--no-trunc", is_flag=True, help="Show whole ids and commands.")
@pass_client
def ps(
    client: Client,
    everything: bool,
    last: int,
    latest: bool,
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
) -> None:
    """List the containers of all nodes, those of services included; the newest first."""
    for word in filters.get("status", ()):
        if word not in STATES:
            meant = near_miss(word, STATES)
            hint = f"did you mean {meant!r}?" if meant else f"known are {', '.join(STATES)}"
            raise click.UsageError(f"status {word!r} is unknown; {hint}")
    rows = _rows(client, ())
    last = 1 if latest else last
    if not everything and last < 0 and not {"status", "exited"} & filters.keys():
        rows = [row for row in rows if row["state"] in LIVE]
    rows = [row for row in rows if matches(row, filters)]
    if last >= 0:
        rows = rows[:last]
    columns = container_columns(no_trunc)
    print_list(rows, columns, form=form, quiet=quiet, filters={})


def _rows(client: Client, containers: Sequence[str]) -> list[Row]:
    now = time.time()
    return [container_row(message, now) for message in _listed(client, containers)]


def _listed(client: Client, containers: Sequence[str]) -> Sequence[Any]:
    request = containers_pb2.ListContainersRequest(containers=containers)
    listed: Sequence[Any] = client.call("Containers.ListContainers", request).containers
    return listed


@click.command(epilog=example("orc inspect web", "orc inspect web.3"))
@click.argument("containers", nargs=-1, required=True, shell_complete=completion.containers)
@pass_client
def inspect(client: Client, containers: tuple[str, ...]) -> None:
    """Show all that is known of containers, as JSON."""
    now = time.time()
    documents, missing = [], []
    for name in containers:
        try:
            documents += [container_document(row, now) for row in _listed(client, [name])]
        except CliError as error:
            missing.append(error)
    print_json(documents)
    if missing:
        raise missing[0]


@click.command(epilog=example("orc port web", "orc port web 80/tcp"))
@click.argument("container", shell_complete=completion.containers)
@click.argument("port", metavar="[PORT[/PROTOCOL]]", required=False)
@pass_client
def port(client: Client, container: str, port: str | None) -> None:
    """Show where a container's published ports can be reached."""
    row = _rows(client, [container])[0]
    wanted = f"{port}/tcp" if port and "/" not in port else port
    found = False
    for one in row["ports"]:
        inside = f"{one['target']}/{one['protocol']}"
        if wanted in (None, inside):
            found = True
            where = f"{one['address']}:{one['published']}"
            click.echo(where if wanted else f"{inside} -> {where}")
    if wanted and not found:
        raise CliError(f"container '{row['name']}' publishes no port {wanted}")


def _moment(name: str) -> Parsed:
    return Parsed("time", lambda text: parse_moment(text, time.time(), name))


_EVENT_TYPES = ("container", "node", "service", "image", "network", "volume")
_EVENT_KEYS = ("type", "event", "label", *_EVENT_TYPES)


@click.command(epilog=example("orc events", "orc events --since 10m --filter type=container"))
@click.option("--since", type=_moment("since"), help="Also what happened since, such as 10m.")
@click.option("--until", type=_moment("until"), help="Only what happens until then.")
@click.option(
    "--filter", "filters", multiple=True, metavar="KEY=VALUE", help=f"{', '.join(_EVENT_KEYS)}."
)
@format_option()
@pass_client
def events(
    client: Client, since: float | None, until: float | None, filters: tuple[str, ...], form: str
) -> None:
    """Show what happens in the cluster, as it happens, until Ctrl-C (or --until)."""
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals or key not in _EVENT_KEYS:
            raise click.UsageError(
                f"filter {text!r} is not KEY=VALUE with one of {', '.join(_EVENT_KEYS)}"
            )
        wanted.setdefault(key, []).append(value)
    request = containers_pb2.EventsRequest(since=since or 0.0, until=until or 0.0)
    try:
        for event in client.stream("Containers.Events", request):
            if all(any(_is(event, k, v) for v in values) for k, values in wanted.items()):
                click.echo(_as_json(event) if form == "json" else _as_text(event))
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _is(event: Any, key: str, value: str) -> bool:
    match key:
        case "type":
            return bool(event.type == value)
        case "event":
            return bool(event.action == value)
        case "node":
            named = event.type == "node" and event.id.startswith(value)
            return bool(event.node == value or named)
        case "label":
            name, equals, wanted = value.partition("=")
            held = event.attributes.get(name)
            return held is not None and (not equals or held == wanted)
        case "service" if event.type == "container":
            return bool(event.attributes.get("service") == value)
        case "image" if event.type == "container":
            return bool(event.attributes.get("image") == value)
        case _:
            named = event.name == value or event.id.startswith(value)
            return bool(event.type == key and named)


def _as_json(event: Any) -> str:
    """One document a line: a stream has no end to close an array at."""
    return json.dumps(
        {
            "at": format_time(event.at),
            "type": event.type,
            "action": event.action,
            "id": event.id,
            "name": event.name,
            "node": event.node,
            "attributes": dict(event.attributes),
        },
        ensure_ascii=False,
    )


def _as_text(event: Any) -> str:
    about = {"name": event.name, "node": event.node, **dict(sorted(event.attributes.items()))}
    shown = ", ".join(f"{key}={value}" for key, value in about.items() if value)
    return f"{format_time(event.at)} {event.type} {event.action} {event.id} ({shown})"
