# SPDX-License-Identifier: Apache-2.0
"""A container's spec from the flags of `run` and `create`; its image, pulled as `--pull` says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.cli.app.command_groups import error_line
from orchestrator.cli.app.completion_names import completes, file_option
from orchestrator.cli.app.errors import CliError, Refused
from orchestrator.cli.flags.container_flags import logging_options, repeatable_options
from orchestrator.cli.flags.flag_types import Parsed
from orchestrator.cli.flags.mount_flags import mount_options
from orchestrator.cli.flags.network_flags import network_options
from orchestrator.cli.flags.placement_flags import affinity_options
from orchestrator.cli.flags.secret_config_flags import document_options
from orchestrator.cli.flags.spec_builder import new_spec
from orchestrator.cli.flags.spec_flags import label_lines, split_publish, unassigned_ports
from orchestrator.cli.flags.spec_settings import (
    PRIORITY,
    PRIORITY_HELP,
    PRIORITY_METAVAR,
    SETTINGS,
)
from orchestrator.cli.rpc.client import Client
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.specs import RestartCondition, RestartPolicy
from orchestrator.pb import containers_pb2

POLICIES = ("always", "missing", "never")


def ensure_image(client: Client, image: str, policy: str, node: str, quiet: bool) -> None:
    """Pull the image as `--pull` says. By default the container's node pulls a missing image,
    unless this user's Docker has credentials for its registry, which the cluster may not have."""
    if policy == "always":
        pull_image(client, image, node, quiet)
    elif policy == "never" and _found(client, image) is None:
        raise CliError(
            f"no image '{image}' in this cluster, and --pull is never; 'orc pull {image}' gets it"
        )
    elif (
        policy == "missing"
        and _docker_config().exists()
        and _found(client, image) is None
        and _has_login(image)
    ):
        pull_image(client, image, node, quiet)


def _docker_config() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def _has_login(image: str) -> bool:
    """Whether this user's Docker or its credential helpers have credentials for an image."""
    from orchestrator.cli.image.docker_credentials import stored_login
    from orchestrator.model.names import parse_image

    try:
        return stored_login(parse_image(image).registry or "docker.io") is not None
    except CliError as error:
        click.echo(f"note: {error_line(error)}", err=True)
        return False  # the node may have its own, or need none


def exposed_ports(client: Client, image: str, node: str, quiet: bool) -> list[str]:
    """The ports that an image exposes, such as `80/tcp`; a missing image is pulled."""
    found = _found(client, image)
    if found is None:
        pull_image(client, image, node, quiet)
        found = _found(client, image)
    import json

    config = json.loads(found.config) if found is not None else {}
    return sorted((config.get("config") or {}).get("ExposedPorts") or {})


def pull_image(client: Client, image: str, node: str, quiet: bool) -> None:
    """Pull it from its registry, with progress on stderr unless `quiet`."""
    from orchestrator.cli.image.registry_commands import add_login, follow
    from orchestrator.pb import images_pb2

    request = images_pb2.PullImageRequest(name=image, node=node)
    add_login(request)
    follow(client.stream("Images.Pull", request), quiet)
    if not quiet:
        click.echo(f"pulled {image}", err=True)


def _found(client: Client, image: str) -> Any:
    from orchestrator.pb import images_pb2

    try:
        return client.call("Images.Inspect", images_pb2.InspectImageRequest(image=image))
    except Refused as refused:
        if refused.missing:
            return None
        raise


F = TypeVar("F", bound=Callable[..., Any])

SHORT = {"cpu_shares": "-c", "hostname": "-h"}
"""Short options that only containers have."""

_CONDITIONS = {
    "no": RestartCondition.NONE,
    "on-failure": RestartCondition.ON_FAILURE,
    "always": RestartCondition.ANY,
    "unless-stopped": RestartCondition.UNLESS_STOPPED,
}


def parse_restart(text: str) -> RestartPolicy:
    """Parse a restart policy in Docker's form, such as `on-failure:3`. Raises ValueError."""
    name, colon, count = text.partition(":")
    condition = _CONDITIONS.get(name)
    if condition is None or (colon and condition is not RestartCondition.ON_FAILURE):
        raise ValueError(f"{text!r} is not one of no, on-failure[:N], always, unless-stopped")
    if colon and not count.isdecimal():
        raise ValueError(f"{text!r} has no number of restarts; for example on-failure:3")
    return RestartPolicy(condition, max_attempts=int(count or 0))


def container_options(function: F) -> F:
    """The flags that `orc run` and `orc create` have in common, and their arguments."""
    for setting in SETTINGS:
        if setting.path.startswith("task.") and not setting.path.startswith("task.restart."):
            short = (SHORT[setting.name],) if setting.name in SHORT else ()
            function = click.option(*short, *setting.flags, setting.name, **setting.click_options)(
                function
            )
    function = repeatable_options(document_options(mount_options(logging_options(function))))
    for option in reversed(
        (
            click.option(
                "--name", metavar="NAME", help="The container's name.  [default: generated]"
            ),
            click.option(
                "--node",
                metavar="NODE",
                help="The node to run on.",
                shell_complete=completes("nodes"),
            ),
            click.option(
                "--constraint",
                multiple=True,
                metavar="RULE",
                help="Only nodes that match, such as node.labels.zone==a; repeatable.",
            ),
            affinity_options,
            click.option(
                "--priority",
                type=PRIORITY,
                metavar=PRIORITY_METAVAR,
                help=PRIORITY_HELP + "  [default: normal]",
            ),
            click.option("--rm", "auto_remove", is_flag=True, help="Remove it after its exit."),
            click.option(
                "--restart",
                type=Parsed("no|on-failure[:NUMBER]|always|unless-stopped", parse_restart),
                default="no",
                show_default=True,
                help="When to restart it after its exit.",
            ),
            click.option("--interactive", "-i", is_flag=True, help="Keep its stdin open."),
            click.option("--tty", "-t", is_flag=True, help="Allocate a terminal."),
            click.option(
                "--publish",
                "-p",
                multiple=True,
                metavar="[PUBLISHED:]TARGET[/udp]",
                help="Publish a port on the nodes; without PUBLISHED, one is chosen.",
            ),
            click.option(
                "--publish-all",
                "-P",
                is_flag=True,
                help="Publish all ports that the image exposes.",
            ),
            click.option(
                "--expose", multiple=True, metavar="PORT[/udp]", help="A further port for -P."
            ),
            click.option(
                "--pull",
                type=click.Choice(POLICIES),
                default="missing",
                show_default=True,
                help="When to pull the image.",
            ),
            click.option(
                "--quiet", "-q", is_flag=True, help="Show no progress of pulls and waits."
            ),
            file_option("--cidfile", help="Write the container's id there."),
            network_options,
            click.option(
                "--env",
                "-e",
                multiple=True,
                metavar="KEY[=VALUE]",
                help="Set an environment variable.",
            ),
            file_option(
                "--env-file", multiple=True, help="File of environment variables, one per line."
            ),
            click.option(
                "--label", "-l", multiple=True, metavar="KEY=VALUE", help="Label of the container."
            ),
            file_option("--label-file", multiple=True, help="File of labels, one per line."),
        )
    ):
        function = option(function)
    function = click.argument("command", nargs=-1)(function)
    return click.argument("image", shell_complete=completes("images"))(function)


def create_container(client: Client, values: Mapping[str, Any], start: bool) -> Any:
    """Create the container that the flags describe, and write its id to the file of `--cidfile`.
    Raises CliError; then no id is written."""
    request = container_request(values, start)
    image, node, quiet = request.spec.container.image, request.node, values["quiet"]
    with _id_file(values["cidfile"]) as write_id:
        if image and not client.is_dry_run:
            ensure_image(client, image, values["pull"], node, quiet)
        if values["publish_all"]:
            known = exposed_ports(client, image, node, quiet) if image else []
            taken = from_proto(request.spec).ports
            chosen = unassigned_ports((*known, *values["expose"]), taken)
            request.spec.ports.extend(to_proto(port) for port in chosen)
        task = client.call("Containers.CreateContainer", request)
        write_id(task.id)
    return task


@contextmanager
def _id_file(path: str | None) -> Iterator[Callable[[str], object]]:
    """A context manager that yields a function to write the id. The file is created first, so that
    no two containers share it, and removed if there is no id."""
    if path is None:
        yield lambda id: None
        return
    try:
        file = Path(path).open("x", encoding="ascii")  # noqa: SIM115
    except FileExistsError:
        raise CliError(f"{path} exists already; remove it if its container is gone") from None
    except OSError as error:
        raise CliError(f"cannot write {path}: {(error.strerror or '').lower()}") from None
    with file:
        try:
            yield file.write
        except BaseException:
            os.unlink(path)
            raise


def container_request(values: Mapping[str, Any], start: bool) -> Any:
    """The request that the flags describe. Raises a usage error for a bad one."""
    published, targets = split_publish(values["publish"])
    restart: RestartPolicy = values["restart"]
    if values["auto_remove"] and restart.condition is not RestartCondition.NONE:
        raise click.UsageError("--rm and --restart are mutually exclusive")
    # The same flags as for a service of one task, read by the same code.
    service = new_spec(
        {
            **values,
            "name": "container",
            "mode": "replicated",
            "replicas": None,
            "publish": published,
            "container_label": (*label_lines(values["label_file"]), *values["label"]),
            "label": (),
        }
    )
    container = replace(service.task.container, tty=values["tty"], open_stdin=values["interactive"])
    task = replace(service.task, container=container, restart=restart)
    task = replace(task, ports=(*task.ports, *unassigned_ports(targets)))
    return containers_pb2.CreateContainerRequest(
        name=values["name"] or "",
        spec=to_proto(task),
        constraints=service.constraints,
        affinities=[to_proto(each) for each in service.affinities],
        node=values["node"] or "",
        priority=service.priority,
        auto_remove=values["auto_remove"],
        start=start,
    )
