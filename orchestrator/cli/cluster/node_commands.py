# SPDX-License-Identifier: Apache-2.0
"""`orc node`: the hosts of the cluster."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.contexts import learn_endpoints
from orchestrator.cli.app.errors import INTERRUPTED, CliError, ManagerLost, NotConverged
from orchestrator.cli.cluster.node_rows import node_columns, node_row
from orchestrator.cli.flags.flag_types import DURATION, pairs
from orchestrator.cli.output.batch import inspect_options, one_by_one, print_inspected
from orchestrator.cli.output.listings import (
    Row,
    labels_text,
    listing_options,
    print_fields,
    print_list,
)
from orchestrator.cli.rpc.client import RECONNECT_PAUSE, Client, pass_client
from orchestrator.cli.rpc.task_pages import list_tasks
from orchestrator.model.bounds import MAX_REPLICAS
from orchestrator.model.units import format_cores, format_duration, format_memory
from orchestrator.model.validation.host_access import ALLOWANCES, parse_allowances
from orchestrator.pb import control_pb2, types_pb2

_AVAILABILITY = "AVAILABILITY_"


@click.group(cls=OrcGroup, epilog=example("orc node ls"))
def node() -> None:
    """Manage the hosts of the cluster."""


@node.command("ls", epilog=example("orc node ls --filter role=worker --format json"))
@listing_options("id", "name", "role", "state", "availability", "label")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def list_nodes(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """List the nodes, with their reservations."""
    rows = [node_row(message) for message in all_nodes(client)]
    rows.sort(key=lambda row: (row["hostname"], row["id"]))
    print_list(rows, node_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@node.command(epilog=example("orc node inspect node1"))
@click.argument("nodes", nargs=-1, required=True, shell_complete=completes("nodes"))
@inspect_options
@pass_client
def inspect(client: Client, nodes: tuple[str, ...], form: str) -> None:
    """Show details of nodes."""
    known = all_nodes(client)
    rows = [node_row(_find(known, name)) for name in nodes]
    print_inspected(rows, form, _show, kind="node")


def _show(row: Row) -> None:
    cores, memory = format_cores(row["shares_total"]), format_memory(row["memory_total"])
    reserved = format_cores(row["shares_reserved"]), format_memory(row["memory_reserved"])
    print_fields(
        [
            ("ID", row["id"]),
            ("Hostname", row["hostname"]),
            ("Role", row["role"]),
            ("Status", row["state"].capitalize()),
            ("Why", row["message"]),
            ("Trouble", row["trouble"]),
            ("Availability", _availability(row)),
            ("Lately down", ", ".join(row["downs"])),
            ("Address", row["address"]),
            ("Labels", labels_text(row["labels"])),
            ("Engine labels", labels_text(row["engine_labels"])),
            ("Allowed", ", ".join(row["allowed"]) or "nothing of the host"),
            ("Resources", f"{cores} cores, {memory}"),
            ("Reserved", f"{reserved[0]} cores, {reserved[1]}"),
            ("Generic resources", ", ".join(map(_generic, row["generic_resources"].items()))),
            ("Tasks", str(row["tasks"])),
            ("System", f"{row['os']}, kernel {row['kernel']}, {row['arch']}"),
            ("Cgroups", row["cgroup"]),
            ("Runtime", row["runtime"]),
            ("Version", row["version"]),
            ("Networks can be", ", ".join(row["network_features"])),
            ("CNI plugins", ", ".join(row["cni_plugins"])),
            ("Network plugins", ", ".join(row["network_drivers"])),
            ("Tunnel keys", ", ".join(key["public"] for key in row["tunnel_keys"])),
            ("Joined at", row["created_at"] or ""),
        ]
    )


@node.command(epilog=example("orc node ps node1"))
@click.argument("nodes", nargs=-1, required=True, shell_complete=completes("nodes"))
@listing_options("id", "name", "desired-state", "state")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def ps(
    client: Client,
    nodes: tuple[str, ...],
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
) -> None:
    """List the tasks of nodes, and orphans there."""
    from orchestrator.cli.service.service_rows import orphan_rows, task_columns, task_rows

    rows = []
    for name in nodes:
        reply = list_tasks(client, node=name)
        rows += task_rows(reply.tasks, reply.hostnames, time.time())
        rows += orphan_rows(reply.orphans, reply.hostnames, time.time())
    print_list(rows, task_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@node.command(
    epilog=example(
        "orc node update --availability drain --max-unavailable 1 --deadline 10m node1",
        "orc node update --label-add zone=a node1",
        "orc node update --allow privileged,devices node1",
        "orc node update --rotate-key node1",
    )
)
@click.argument("name", metavar="NODE", shell_complete=completes("nodes"))
@click.option(
    "--availability",
    type=click.Choice(
        [name.removeprefix(_AVAILABILITY).lower() for name, _ in types_pb2.Availability.items()]
    ),
    help="active: run tasks; pause: keep tasks, take no new ones; drain: move tasks elsewhere.",
)
@click.option(
    "--max-unavailable",
    type=click.IntRange(1, MAX_REPLICAS),
    help="Drain: maximum tasks of a service that are unavailable at a time.  [default: no limit]",
)
@click.option(
    "--deadline",
    type=DURATION,
    help="Drain: time after which remaining tasks are stopped.  [default: no limit]",
)
@click.option("--label-add", multiple=True, metavar="KEY=VALUE", help="Set a label; repeatable.")
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a label; repeatable.")
@click.option(
    "--allow",
    multiple=True,
    metavar="ALLOWANCE[,ALLOWANCE]",
    help=f"Allow containers to have {', '.join(ALLOWANCES)}, or all; repeatable.",
)
@click.option(
    "--disallow",
    multiple=True,
    metavar="ALLOWANCE[,ALLOWANCE]",
    help="No longer allow it to new containers; running ones keep it. Repeatable.",
)
@click.option(
    "--rotate-key", is_flag=True, help="Replace its key for encrypted networks; no packet is lost."
)
@click.option(
    "--remove-orphans",
    is_flag=True,
    help="Stop and remove containers there that a restored cluster does not know.",
)
@click.option(
    "--address",
    default="",
    metavar="ADDRESS",
    help="Accept a new address of the node that its sessions do not come from (NAT, several "
    "interfaces).",
)
@click.option("--detach", "-d", is_flag=True, help="Drain: do not wait until the node is empty.")
@click.option(
    "--timeout",
    type=DURATION,
    help="Drain: how long to wait until the node is empty; then the exit status is 3.  "
    "[default: 2m and the deadline]",
)
@pass_client
def update(
    client: Client,
    name: str,
    availability: str | None,
    max_unavailable: int | None,
    deadline: float | None,
    label_add: tuple[str, ...],
    label_rm: tuple[str, ...],
    allow: tuple[str, ...],
    disallow: tuple[str, ...],
    rotate_key: bool,
    remove_orphans: bool,
    address: str,
    detach: bool,
    timeout: float | None,
) -> None:
    """Change a node's availability, labels, address or allowances, or replace its key.

    A drain waits until no task of a service is left on the node."""
    if availability != "drain" and any(
        each is not None for each in (max_unavailable, deadline, timeout)
    ):
        raise click.UsageError(
            "--max-unavailable, --deadline and --timeout go with --availability drain"
        )
    changes = (
        *(label_add, label_rm, allow, disallow),
        *(rotate_key, remove_orphans, address),
    )
    if availability is None and not any(changes):
        raise click.UsageError(
            "nothing to change; give --availability, --label-add, --label-rm, --allow, --disallow, "
            "--rotate-key, --remove-orphans or --address"
        )
    request = control_pb2.UpdateNodeRequest(
        node=name,
        label_add=pairs("label", label_add),
        label_rm=label_rm,
        allow=_allowances("--allow", allow),
        disallow=_allowances("--disallow", disallow),
        rotate_key=rotate_key,
        remove_orphans=remove_orphans,
        address=address,
        max_unavailable=max_unavailable or 0,
        deadline=deadline or 0.0,
    )
    if availability is not None:
        number = types_pb2.Availability.Value(_AVAILABILITY + availability.upper())
        request.availability = number  # type: ignore[assignment]
    written = client.call("UpdateNode", request)
    click.echo(name)
    if availability == "drain" and not detach and not client.is_dry_run:
        patience = DRAIN_TIMEOUT + (deadline or 0.0) if timeout is None else timeout
        until_empty(client, written.id, name, patience)


def _allowances(flag: str, texts: Sequence[str]) -> list[str]:
    names = [name for text in texts for name in text.split(",")]
    try:
        parse_allowances(names)
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from None
    return names


@node.command(epilog=example("orc node rm node3"))
@click.argument("nodes", nargs=-1, required=True, shell_complete=completes("nodes"))
@click.option(
    "--force",
    "-f",
    is_flag=True,
    help="Remove a node that is up: its agent stops its tasks and leaves the cluster.",
)
@pass_client
def rm(client: Client, nodes: tuple[str, ...], force: bool) -> None:
    """Remove nodes from the cluster, and revoke their certificates."""

    def remove(name: str) -> None:
        client.call("RemoveNode", control_pb2.RemoveNodeRequest(node=name, force=force))

    one_by_one(nodes, remove)


def _availability(row: Row) -> str:
    """Such as `Drain, at most 1 task of a service at a time, until 2026-11-25T14:00:00Z`."""
    text = [row["availability"].capitalize()]
    if most := row["drain"]["max_unavailable"]:
        text.append(f"at most {most} {'task' if most == 1 else 'tasks'} of a service at a time")
    if deadline := row["drain"]["deadline"]:
        text.append(f"until {deadline}")
    return ", ".join(text)


def _generic(item: tuple[str, Row]) -> str:
    """Such as `gpu: 1 of 2 reserved (/dev/a, /dev/b)`."""
    kind, about = item
    names = f" ({', '.join(about['names'])})" if about["names"] else ""
    return f"{kind}: {about['reserved']} of {about['total']} reserved{names}"


def all_nodes(client: Client) -> Sequence[Any]:
    """The nodes of the cluster."""
    nodes: Sequence[Any] = client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    return nodes


def _find(rows: Sequence[Any], name: str) -> Any:
    """The row with this id, hostname or unique id prefix."""
    exact = [row for row in rows if name in (row.node.id, row.node.description.hostname)]
    found = exact or [row for row in rows if row.node.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CliError(f"{name!r} is ambiguous; use a full id from 'orc node ls'")
    from orchestrator.model.names import near_miss

    meant = near_miss(name, [row.node.description.hostname for row in rows])
    hint = f"did you mean {meant!r}?" if meant else "see 'orc node ls'"
    raise CliError(f"no node {name!r}; {hint}")


DRAIN_TIMEOUT = 120.0
"""Default timeout of a drain in seconds, added to its deadline."""
_POLL_INTERVAL = 0.2
"""Seconds between two polls of the node's tasks."""
_PROGRESS_INTERVAL = 1.0
"""Minimum seconds between two lines of progress."""


def until_empty(client: Client, node_id: str, name: str, timeout: float) -> None:
    """Wait until no task of a service is left on the node, with progress on stderr. Ctrl-C
    detaches with a message. Raises NotConverged, with the remaining tasks and the reasons, after
    `timeout` seconds."""
    deadline = time.monotonic() + timeout
    printed_at, printed = time.monotonic(), ""
    try:
        while left := _tasks(client, node_id, deadline):
            now = time.monotonic()
            if now >= deadline:
                raise NotConverged(
                    f"node {name} still has {_counted(left)} after {format_duration(timeout)}"
                    f"{_reasons(client, left)}; the drain continues, see 'orc node ps {name}'"
                    f" and 'orc why {left[0].service_name}'"
                )
            if (
                text := f"{name}: {_counted(left)} left"
            ) != printed and now - printed_at >= _PROGRESS_INTERVAL:
                click.echo(text, err=True)
                printed_at, printed = now, text
            time.sleep(_POLL_INTERVAL)
    except KeyboardInterrupt:
        click.echo(
            f"orc: detached; the drain continues in the background, see 'orc node ps {name}'",
            err=True,
        )
        sys.exit(INTERRUPTED)
    if kept := _containers(client, node_id):
        click.echo(
            f"{name}: {', '.join(kept)} {'stays' if len(kept) == 1 else 'stay'}: a drain moves the "
            "tasks of services, not containers of 'orc run'",
            err=True,
        )


def _tasks(client: Client, node_id: str, deadline: float) -> list[Any]:
    """The active tasks of services on the node. Retries while no manager can be reached."""
    while True:
        try:
            return [task for task in _active(client, node_id) if task.service_id]
        except ManagerLost:
            if time.monotonic() >= deadline:
                raise
            time.sleep(RECONNECT_PAUSE)


def _containers(client: Client, node_id: str) -> list[str]:
    """Names of the active containers on the node that belong to no service."""
    return sorted(task.container_name for task in _active(client, node_id) if not task.service_id)


def _active(client: Client, node_id: str) -> list[Any]:
    from orchestrator.model.convert import recognized
    from orchestrator.model.states import TaskState, is_terminal

    tasks = list_tasks(client, node=node_id).tasks
    return [task for task in tasks if not is_terminal(recognized(TaskState, task.status.state))]


def _counted(tasks: Sequence[Any]) -> str:
    """Such as `2 tasks of web and 1 task of db`."""
    return " and ".join(
        f"{count} {'task' if count == 1 else 'tasks'} of {name}"
        for name, count in sorted(Counter(task.service_name for task in tasks).items())
    )


def _reasons(client: Client, left: Sequence[Any]) -> str:
    """Why the replacements of these tasks are pending, if they are."""
    from orchestrator.model.states import TaskState

    services = {task.service_id for task in left}
    tasks = list_tasks(client).tasks
    found = Counter(
        task.status.message
        for task in tasks
        if task.service_id in services and task.status.state == TaskState.PENDING
    )
    reasons = [reason for reason, _ in found.most_common(2) if reason]
    return f": {'; '.join(reasons)}" if reasons else ""


_PROMOTION = 120.0
"""Seconds in which a promoted node's manager must be ready."""


@node.command(epilog=example("orc node promote node2"))
@click.argument("nodes", nargs=-1, required=True, shell_complete=completes("nodes"))
@pass_client
def promote(client: Client, nodes: tuple[str, ...]) -> None:
    """Make the hosts of nodes managers, too, and wait until they are ready."""
    from orchestrator.pb import managers_pb2

    def one(name: str) -> None:
        request = managers_pb2.PromoteNodeRequest(node=name)
        address = client.call("Managers.PromoteNode", request, timeout=_PROMOTION).address
        end = time.monotonic() + _PROMOTION
        while True:
            reply = client.call("Managers.ListManagers", managers_pb2.ListManagersRequest())
            states = {each.manager.address: each.state for each in reply.managers}
            if states.get(address) == "ready":
                from orchestrator.model.administration.managers import host_port

                learn_endpoints(
                    client.context,
                    [
                        host_port(each.manager.address, each.manager.port)
                        for each in reply.managers
                        if each.state != "joining"
                    ],
                )
                return
            if time.monotonic() > end:
                raise NotConverged(
                    f"the manager on {name} is {states.get(address, 'down')}; see its log, and "
                    "'orc manager ls'"
                )
            time.sleep(RECONNECT_PAUSE)

    one_by_one(nodes, one)


@node.command(epilog=example("orc node demote node2"))
@click.argument("nodes", nargs=-1, required=True, shell_complete=completes("nodes"))
@click.option(
    "--force",
    "-f",
    is_flag=True,
    help="Demote it although no quorum of healthy managers is left.",
)
@pass_client
def demote(client: Client, nodes: tuple[str, ...], force: bool) -> None:
    """Remove the managers on the hosts of nodes; the nodes remain."""
    from orchestrator.cli.cluster.manager_removal import remove_manager
    from orchestrator.pb import managers_pb2

    def one(name: str) -> None:
        request = managers_pb2.DemoteNodeRequest(node=name, force=force)
        remove_manager(client, "Managers.DemoteNode", request)

    one_by_one(nodes, one)
