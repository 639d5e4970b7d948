# SPDX-License-Identifier: Apache-2.0
"""`orc service`: list, inspect and remove services."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.flags.network_flags import attachment_text
from orchestrator.cli.output.batch import inspect_options, one_by_one, print_inspected
from orchestrator.cli.output.listings import (
    Row,
    labels_text,
    listing_options,
    print_fields,
    print_list,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.rpc.task_pages import list_tasks
from orchestrator.cli.service.change_commands import create, promote, rollback, scale, update
from orchestrator.cli.service.convergence import until_stopped
from orchestrator.cli.service.log_commands import logs
from orchestrator.cli.service.service_rows import (
    port_text,
    service_columns,
    service_document,
    service_row,
    task_columns,
    task_rows,
)
from orchestrator.model.dependencies import start_order
from orchestrator.model.placement import (
    Disconnect,
    DisconnectAction,
    GenericResource,
    disconnect_text,
)
from orchestrator.model.qos import qos_class
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.scheduling.disruptions import priority_text
from orchestrator.model.units import count_cores, format_duration, format_memory
from orchestrator.pb import control_pb2


@click.group(
    cls=OrcGroup,
    epilog=example("orc service create --name web --replicas 3 -p 8080:80 hello:1"),
)
def service() -> None:
    """Manage services: a declared number of containers that are kept running."""


for _command in (create, update, rollback, promote, scale, logs):
    service.add_command(_command)


@service.command("ls", epilog=example("orc service ls --filter name=web"))
@listing_options("id", "name", "mode", "label")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def list_services(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """List the services and the number of their running tasks."""
    reply = client.call("ListServices", control_pb2.ListServicesRequest())
    rows = sorted(map(service_row, reply.services), key=lambda row: row["name"])
    print_list(rows, service_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@service.command(epilog=example("orc service ps web", "orc service ps web --format json"))
@click.argument("services", nargs=-1, required=True, shell_complete=completes("services"))
@listing_options("id", "name", "node", "desired-state", "state")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def ps(
    client: Client,
    services: tuple[str, ...],
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
) -> None:
    """List the tasks of services, newest of each replica first."""
    rows: list[Row] = []
    for name in services:
        reply = list_tasks(client, service=name)
        rows += task_rows(reply.tasks, reply.hostnames, time.time())
    print_list(rows, task_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@service.command(epilog=example("orc service inspect web", "orc service inspect --pretty web"))
@click.argument("services", nargs=-1, required=True, shell_complete=completes("services"))
@inspect_options
@pass_client
def inspect(client: Client, services: tuple[str, ...], form: str) -> None:
    """Show details of services."""
    messages = [message for name in services for message in services_named(client, name)]
    print_inspected(messages, form, _show, service_document, kind="service")


def services_named(client: Client, name: str) -> Sequence[control_pb2.ServiceRow]:
    """The service of this name or id. Raises CliError if there is none."""
    request = control_pb2.ListServicesRequest(service=name)
    found: Sequence[control_pb2.ServiceRow] = client.call("ListServices", request).services
    return found


def _show(message: Any) -> None:
    print_fields(_fields(service_document(message), message.desired))


def _fields(document: Row, desired: int) -> list[tuple[str, str]]:
    spec, task = document["spec"], document["spec"]["task"]
    container, restart, update = task["container"], task["restart"], spec["update"]
    return [
        ("ID", document["id"]),
        ("Name", spec["name"]),
        ("Labels", labels_text(spec["labels"])),
        ("Mode", spec["mode"]),
        ("Running", f"{document['running']} of {desired}"),
        ("Image", container["image"]),
        ("Digest", document["image_digest"]),
        ("Entrypoint", " ".join(container["entrypoint"])),
        ("Command", " ".join(container["command"])),
        ("Env", ", ".join(container["env"])),
        ("User", container["user"]),
        ("Workdir", container["workdir"]),
        ("Container labels", labels_text(container["labels"])),
        ("Constraints", ", ".join(spec["constraints"])),
        ("Strategy", "" if spec["strategy"] == "default" else spec["strategy"]),
        ("On disconnect", _disconnect(spec["on_disconnect"])),
        ("Min available", spec["disruption"]["min_available"]),
        ("Max unavailable", spec["disruption"]["max_unavailable"]),
        ("Autoscale", _autoscale(spec["autoscale"], document["autoscale"])),
        ("Priority", priority_text(spec["priority"]) if spec["priority"] else ""),
        ("Affinities", ", ".join(map(_affinity, spec["affinities"]))),
        ("Depends on", ", ".join(map(_dependency, spec["depends_on"]))),
        ("Networks", ", ".join(map(attachment_text, task["networks"]))),
        ("Ports", ", ".join(map(port_text, task["ports"]))),
        ("Post start", ", ".join(map(_hook, container["post_start"]))),
        ("Pre stop", ", ".join(map(_hook, container["pre_stop"]))),
        ("Secrets", ", ".join(map(_file, container["secrets"]))),
        ("Configs", ", ".join(map(_file, container["configs"]))),
        ("Reserved", _resources(task["reservation"])),
        ("Limit", _resources(task["limit"])),
        ("QoS class", qos_class(task["reservation"]["memory"], task["limit"]["memory"]).value),
        ("Generic resources", ", ".join(map(_generic, task["generic_resources"]))),
        ("CPU shares", str(task["shares"] or "")),
        ("Restart", f"{restart['condition']}, delay {format_duration(restart['delay'])}"),
        (
            "Update",
            f"{update['parallelism']} at a time, delay {format_duration(update['delay'])}",
        ),
        ("Update state", _update_state(document["update"])),
        ("Earlier versions", ", ".join(str(past["version"]) for past in document["history"])),
        ("Created at", document["created_at"] or ""),
        ("Updated at", document["updated_at"] or ""),
    ]


def _autoscale(spec: Row, status: Row) -> str:
    if not spec["most"]:
        return ""
    targets = [f"{name} {spec[name]}%" for name in ("cpu", "memory") if spec[name]]
    if spec["query"]:
        targets.append(f"{spec['per_replica']:g} of {spec['query']}")
    text = f"{spec['least']} to {spec['most']} replicas, {', '.join(targets)}"
    return f"{text}; last changed: {status['message']}" if status["message"] else text


def _hook(hook: Row) -> str:
    return shlex.join(hook["command"])


def _file(reference: Row) -> str:
    source, target = reference["source"], reference["target"]
    return f"{source} ({target})" if target else str(source)


def _update_state(update: Row) -> str:
    if update["state"] == "none":
        return ""
    words: str = update["state"].replace("-", " ")
    return f"{words}: {update['message']}" if update["message"] else words


def _disconnect(entry: Row) -> str:
    action = DisconnectAction.__members__.get(entry["action"].upper())
    if action is None:  # of a newer version
        return str(entry["action"])
    rule = Disconnect(action, entry["after"])
    return "" if rule == Disconnect() else disconnect_text(rule)


def _generic(entry: Row) -> str:
    return str(GenericResource(**{**entry, "names": tuple(entry["names"])}))


def _affinity(entry: Row) -> str:
    affinity = Affinity(**entry)
    return f"{affinity.word} {affinity}"


def _dependency(entry: Row) -> str:
    return f"{entry['service']}:{entry['condition']}"


def _resources(resources: Mapping[str, Any]) -> str:
    shares, memory = resources["shares"], resources["memory"]
    parts = [count_cores(shares) if shares else ""]
    parts.append(format_memory(memory) if memory else "")
    return ", ".join(filter(None, parts))


@service.command(epilog=example("orc service rm web"))
@click.option("--detach", "-d", is_flag=True, help="Do not wait until the tasks have stopped.")
@click.argument("services", nargs=-1, required=True, shell_complete=completes("services"))
@pass_client
def rm(client: Client, detach: bool, services: tuple[str, ...]) -> None:
    """Remove services, and wait until their tasks have stopped. Then networks, secrets and volumes
    that they used can be removed."""
    removed: set[str] = set()

    def remove(name: str) -> None:
        request = control_pb2.RemoveServiceRequest(service=name)
        removed.add(client.call("RemoveService", request).id)

    try:
        one_by_one(_stop_order(client, services), remove)
    finally:
        if not detach and not client.is_dry_run:
            until_stopped(client, removed)


def _stop_order(client: Client, names: Sequence[str]) -> list[str]:
    """The names, each before those that its service depends on."""
    if len(names) < 2:
        return list(names)
    rows = client.call("ListServices", control_pb2.ListServicesRequest()).services
    specs = {row.service.spec.name: row.service.spec for row in rows}
    needs = {
        name: [each.service for each in specs[name].depends_on] if name in specs else []
        for name in reversed(names)
    }
    return start_order(needs)[::-1]
