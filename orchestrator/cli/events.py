"""`orc events`: what happens in the cluster."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.flag_types import filter_of, moment
from orchestrator.cli.groups import INTERRUPTED, example
from orchestrator.cli.output import Row, format_option, template_lines
from orchestrator.model.names import near_miss
from orchestrator.model.units import format_time
from orchestrator.pb import containers_pb2

_TYPES = (
    *("container", "node", "service", "job", "stack", "image", "network", "volume"),
    *("secret", "config", "plugin"),
)
_KEYS = ("type", "event", "label", "scope", *_TYPES)


def _filters(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for text in texts:
        key, value = filter_of(text, _KEYS)
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
@click.option("--since", type=moment("since"), help="Also what happened since, such as 10m.")
@click.option("--until", type=moment("until"), help="Only what happens until then.")
@click.option(
    "--filter",
    "-f",
    "wanted",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_filters,
    help=f"Only what matches; repeatable. Keys: {', '.join(_KEYS)}.",
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
    """Show what happens in the cluster, as it happens, until Ctrl-C (or --until)."""
    request = containers_pb2.EventsRequest(since=since or 0.0, until=until or 0.0)
    try:
        for event in client.stream("Containers.Events", request):
            if all(any(matches(event, k, v) for v in values) for k, values in wanted.items()):
                click.echo(_line(event, form))
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def matches(event: Any, key: str, value: str) -> bool:
    """Whether one filter holds for an event."""
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
        # One document a line: a stream has no end to close an array at.
        return json.dumps(row, ensure_ascii=False)
    dockers = {
        "time": row["at"],
        "status": row["action"],
        "from": event.attributes.get("image", ""),
        "actor": {"ID": event.id, "attributes": {"name": event.name, **row["attributes"]}},
    }
    return "\n".join(template_lines([{**row, **dockers}], (), form))


def event_row(event: Any) -> Row:
    """An event as JSON has it."""
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
