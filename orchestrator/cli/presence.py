"""`--pull` of `run` and `create`, and what `-P` needs to know: an image before its container."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.client import Client, Refused
from orchestrator.cli.groups import CliError, error_line

POLICIES = ("always", "missing", "never")


def ensure_image(client: Client, image: str, policy: str, node: str, quiet: bool) -> None:
    """Have the image as `--pull` says. What is missing is fetched by the container's node, unless
    this user's Docker has credentials for its registry, which the cluster may not have."""
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
    """Whether this user's Docker, or a credential helper of it, has credentials for an image."""
    from orchestrator.cli.docker_config import stored_login
    from orchestrator.model.names import parse_image

    try:
        return stored_login(parse_image(image).registry or "docker.io") is not None
    except CliError as error:
        click.echo(f"note: {error_line(error)}", err=True)
        return False  # the node may have its own, or need none


def exposed_ports(client: Client, image: str, node: str, quiet: bool) -> list[str]:
    """The ports that an image says it listens on, such as `80/tcp`; pulled if it is not there."""
    found = _found(client, image)
    if found is None:
        pull_image(client, image, node, quiet)
        found = _found(client, image)
    import json

    config = json.loads(found.config) if found is not None else {}
    return sorted((config.get("config") or {}).get("ExposedPorts") or {})


def pull_image(client: Client, image: str, node: str, quiet: bool) -> None:
    """Get it from its registry, with progress on stderr unless `quiet`."""
    from orchestrator.cli.image_registry import add_login, follow
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
