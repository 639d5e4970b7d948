"""`orc run` and `orc create`: their flags, and the container that they describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli import completion
from orchestrator.cli.container_flags import many_options
from orchestrator.cli.mount_flags import mount_options
from orchestrator.cli.network_flags import network_options
from orchestrator.cli.service_change import new_spec
from orchestrator.cli.spec_flags import SETTINGS, Parsed
from orchestrator.model.convert import to_proto
from orchestrator.model.specs import RestartCondition, RestartPolicy
from orchestrator.pb import containers_pb2

F = TypeVar("F", bound=Callable[..., Any])

_CONDITIONS = {
    "no": RestartCondition.NONE,
    "on-failure": RestartCondition.ON_FAILURE,
    "always": RestartCondition.ANY,
    "unless-stopped": RestartCondition.UNLESS_STOPPED,
}


def _restart(text: str) -> RestartPolicy:
    name, colon, count = text.partition(":")
    condition = _CONDITIONS.get(name)
    if condition is None or (colon and condition is not RestartCondition.ON_FAILURE):
        raise ValueError(f"{text!r} is none of no, on-failure[:N], always, unless-stopped")
    if colon and not count.isdecimal():
        raise ValueError(f"{text!r} has no number of restarts; write such as on-failure:3")
    return RestartPolicy(condition, max_attempts=int(count or 0))


def container_options(function: F) -> F:
    """The flags that `orc run` and `orc create` have in common, and their arguments."""
    for setting in SETTINGS:
        if setting.path.startswith("task.") and not setting.path.startswith("task.restart."):
            function = click.option(
                *setting.flags, setting.name, type=setting.type, help=setting.help
            )(function)
    function = many_options(mount_options(function))
    for option in reversed(
        (
            click.option("--name", help="The container's name; else one is made up."),
            click.option(
                "--node",
                metavar="NODE",
                help="The node that it runs on.",
                shell_complete=completion.nodes,
            ),
            click.option(
                "--constraint", multiple=True, metavar="RULE", help="Only nodes such as these."
            ),
            click.option("--rm", "auto_remove", is_flag=True, help="Remove it when it has ended."),
            click.option(
                "--restart",
                type=Parsed("policy", _restart),
                default="no",
                show_default=True,
                help="no, on-failure[:N], always or unless-stopped.",
            ),
            click.option("--interactive", "-i", is_flag=True, help="Keep its stdin open."),
            click.option("--tty", "-t", is_flag=True, help="Give it a terminal."),
            click.option(
                "--publish",
                "-p",
                multiple=True,
                metavar="PUBLISHED:TARGET[/udp]",
                help="Publish a port on its node.",
            ),
            network_options,
            click.option(
                "--env", "-e", multiple=True, metavar="KEY[=value]", help="Set a variable."
            ),
            click.option(
                "--env-file", multiple=True, metavar="FILE", help="Variables, one a line."
            ),
            click.option(
                "--label", "-l", multiple=True, metavar="KEY=value", help="Label of the container."
            ),
        )
    ):
        function = option(function)
    function = click.argument("command", nargs=-1)(function)
    return click.argument("image", shell_complete=completion.images)(function)


def container_request(values: Mapping[str, Any], start: bool) -> Any:
    """The request that the flags describe. Raises a usage error for a bad one."""
    restart: RestartPolicy = values["restart"]
    if values["auto_remove"] and restart.condition is not RestartCondition.NONE:
        raise click.UsageError("--rm and --restart contradict each other; give one of them")
    # The same flags as for a service of one task, read by the same code.
    service = new_spec(
        {
            **values,
            "name": "container",
            "mode": "replicated",
            "replicas": None,
            "container_label": values["label"],
            "label": (),
        }
    )
    container = replace(service.task.container, tty=values["tty"], open_stdin=values["interactive"])
    return containers_pb2.CreateContainerRequest(
        name=values["name"] or "",
        spec=to_proto(replace(service.task, container=container, restart=restart)),
        constraints=service.constraints,
        node=values["node"] or "",
        auto_remove=values["auto_remove"],
        start=start,
    )
