# SPDX-License-Identifier: Apache-2.0
"""`orc pull`, `push`, `login`, `logout`: images from and to registries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from orchestrator.cli.app.command_groups import error_line, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.flags.spec_flags import checked_image
from orchestrator.cli.image.docker_credentials import StoredLogin, stored_login
from orchestrator.cli.output.screen import is_live
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.names import parse_image, short_id
from orchestrator.model.units import format_size
from orchestrator.pb import images_pb2


@click.command(epilog=example("orc pull alpine:3", "orc pull --all-nodes reg.example:5000/web:2"))
@click.option("--node", metavar="NODE", shell_complete=completes("nodes"), help="Pull there.")
@click.option("--all-nodes", is_flag=True, help="Pull once, and distribute to all nodes.")
@click.option("--quiet", "-q", is_flag=True, help="Print the image's name only.")
@click.argument("name", metavar="NAME", shell_complete=completes("images"))
@pass_client
def pull(client: Client, node: str | None, all_nodes: bool, quiet: bool, name: str) -> None:
    """Pull an image from its registry to a node, which serves it to the other nodes."""
    if node and all_nodes:
        raise click.UsageError("--node and --all-nodes are mutually exclusive")
    full = checked_image(name)
    request = images_pb2.PullImageRequest(name=full, node=node or "", all_nodes=all_nodes)
    add_login(request)
    image = follow(client.stream("Images.Pull", request), quiet)
    click.echo(full if quiet else f"pulled {full} ({short_id(image.id)})")


@click.command(epilog=example("orc push reg.example:5000/web:2"))
@click.option("--quiet", "-q", is_flag=True, help="Print the image's name only.")
@click.argument("name", metavar="NAME", shell_complete=completes("images"))
@pass_client
def push(client: Client, quiet: bool, name: str) -> None:
    """Push an image to the registry in its name."""
    full = checked_image(name)
    image = push_image(client, full, quiet)
    click.echo(full if quiet else f"pushed {full} ({short_id(image.id)})")


@click.command(epilog=example("pass show reg | orc login -u me --password-stdin reg.example:5000"))
@click.option("--username", "-u", metavar="NAME", help="User name.  [default: prompt]")
@click.option(
    "--password", "-p", metavar="PASSWORD", help="Password; insecure, visible to other users."
)
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin.")
@click.argument("registry", required=False, default="docker.io")
@pass_client
def login(
    client: Client,
    username: str | None,
    password: str | None,
    password_stdin: bool,
    registry: str,
) -> None:
    """Log the cluster in to a registry, by default docker.io.

    Without a user name, uses the credentials of this user's Docker, including credential helpers.
    """
    if password_stdin:
        if password:
            raise click.UsageError("--password and --password-stdin are mutually exclusive")
        if not username:
            raise click.UsageError("--password-stdin needs --username")
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    if not username and not password and (found := stored_login(registry)) is not None:
        reply = _login(client, registry, found)
        click.echo(f"logged in to {reply.registry} as {found.username}, by {found.source}")
        return
    if not (username and password) and not sys.stdin.isatty():
        raise click.UsageError("give --username, and the password by --password-stdin")
    username = username or click.prompt("Username")
    password = password or click.prompt("Password", hide_input=True)
    reply = _login(client, registry, StoredLogin(username, password, "", ""))
    click.echo(f"logged in to {reply.registry}")


@click.command(epilog=example("orc logout reg.example:5000"))
@click.argument("registry", required=False, default="docker.io")
@pass_client
def logout(client: Client, registry: str) -> None:
    """Remove the cluster's credentials for a registry, by default docker.io."""
    reply = client.call("Images.Logout", images_pb2.LogoutRequest(registry=registry))
    click.echo(f"logged out from {reply.registry}")


def push_image(client: Client, name: str, quiet: bool) -> Any:
    """Push the image of a full name to its registry, with progress unless `quiet`."""
    request = images_pb2.PushImageRequest(name=name)
    add_login(request)
    return follow(client.stream("Images.Push", request), quiet, "pushed")


def add_login(request: Any) -> None:
    """Add this user's Docker credentials for its image's registry to a request, if any."""
    try:
        found = stored_login(parse_image(request.name).registry or "docker.io")
    except CliError as error:
        # The registry may not need any.
        click.echo(f"note: {error_line(error)}", err=True)
        return
    if found is not None:
        request.login.username, request.login.password = found.username, found.password
        request.login.identity_token = found.identity_token


def share_login(client: Client, image: str) -> None:
    """Log the cluster in with this user's Docker credentials for an image's registry, if any."""
    registry = parse_image(image).registry or "docker.io"
    if (found := stored_login(registry)) is not None:
        _login(client, registry, found)


def _login(client: Client, registry: str, found: StoredLogin) -> Any:
    if found.identity_token:
        raise CliError(
            f"{found.source} has an identity token for {registry}, which only 'orc pull' and "
            "'orc push' can "
            "use; log in with a user name"
        )
    request = images_pb2.LoginRequest(
        registry=registry, username=found.username, password=found.password
    )
    return client.call("Images.Login", request, timeout=90.0)


def follow(events: Iterator[Any], quiet: bool, verb: str = "pulled") -> Any:
    """Show the progress, and return the image."""
    image = None
    bars = None
    if is_live(sys.stderr) and not quiet:
        from orchestrator.cli.output.byte_bar import Bars

        bars = Bars()
    try:
        for event in events:
            match event.WhichOneof("part"):
                case "image":
                    image = event.image
                case "layer" if bars is not None:
                    bars.show(event.layer.digest, event.layer.done, event.layer.total)
                case "layer" if not quiet and event.layer.done == event.layer.total:
                    size = format_size(event.layer.total)
                    click.echo(f"{short_id(event.layer.digest)}: {verb} {size}", err=True)
                case "line" if not quiet:
                    click.echo(event.line, err=True)
    finally:
        if bars is not None:
            bars.close()
    if image is None:
        raise CliError("the manager ended the call without an image; see its log")
    return image
