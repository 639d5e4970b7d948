"""`orc update`: change the limits of containers in place."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.container_spec import SHORT, parse_restart
from orchestrator.cli.flag_types import Parsed
from orchestrator.cli.groups import example
from orchestrator.cli.settings import SETTINGS
from orchestrator.cli.several import attempts
from orchestrator.model.convert import to_proto
from orchestrator.pb import containers_pb2

_FIELDS = {
    "limit_cpu": "limit_shares",
    "cpu_shares": "shares",
    "cpuset_cpus": "cpuset_cpus",
    "limit_memory": "limit_memory",
    "memory_swap": "memory_swap",
    "reserve_cpu": "reserved_shares",
    "reserve_memory": "reserved_memory",
    "pids_limit": "pids_limit",
}
"""Name of a setting → its field in the request."""


def _resource_options(function: Any) -> Any:
    by_name = {each.name: each for each in SETTINGS}
    for name in reversed(_FIELDS):
        setting = by_name[name]
        short = (SHORT[name],) if name in SHORT else ()
        function = click.option(*short, *setting.flags, name, **setting.click_options)(function)
    return function


@click.command(
    epilog=example("orc update --memory 512m --cpus 1.5 web", "orc update --restart always web db")
)
@_resource_options
@click.option(
    "--restart",
    type=Parsed("no|on-failure[:NUMBER]|always|unless-stopped", parse_restart),
    help="When to restart it after its program has ended.",
)
@click.argument("containers", nargs=-1, required=True, shell_complete=completion.containers)
@pass_client
def update(client: Client, containers: tuple[str, ...], **values: Any) -> None:
    """Change resource limits and restart policies of containers without restarting them.

    0 removes a limit of CPU or memory. A node refuses a memory limit below what the container uses,
    and a reservation for which it has no room; then nothing changes.
    """
    changes = {field: values[name] for name, field in _FIELDS.items() if values[name] is not None}
    if values["restart"] is not None:
        changes["restart"] = to_proto(values["restart"])
    if not changes:
        raise click.UsageError("give at least one option, such as --memory 512m")
    with attempts() as attempt:
        for name in containers:
            with attempt():
                request = containers_pb2.UpdateContainerRequest(container=name, **changes)
                client.call("Containers.UpdateContainer", request)
                click.echo(name)
