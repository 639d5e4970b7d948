# SPDX-License-Identifier: Apache-2.0
"""Containers by the names and ids that Docker's clients use, and waiting for their states."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.cli.app.errors import Refused
from orchestrator.dockerapi.containers.documents import Found
from orchestrator.dockerapi.gateway import Gateway, Streamed
from orchestrator.dockerapi.http.errors import bad_parameter, not_found
from orchestrator.dockerapi.ids import docker_id, own_id
from orchestrator.model.convert import from_proto
from orchestrator.model.objects import Image, Network
from orchestrator.pb import containers_pb2, control_pb2

_PREFIX = re.compile(r"[0-9a-f]{1,63}")


def read_row(row: Any) -> Found:
    """From a ContainerRow."""
    node = from_proto(row.node) if row.HasField("node") else None
    return Found(from_proto(row.task), node, tuple(row.command))


def list_containers(gateway: Gateway, *containers: str) -> list[Found]:
    """All containers, or those with these ids or names of ours. Raises CliError."""
    request = containers_pb2.ListContainersRequest(containers=containers)
    reply = gateway.call("Containers.ListContainers", request)
    return [read_row(row) for row in (*reply.containers, *reply.orphans)]


def find(gateway: Gateway, name: str) -> Found:
    """A container by its id, a prefix of it, or its name. Raises ApiError, CliError."""
    word = name.removeprefix("/")
    if not word:
        raise not_found("container", name)
    id = own_id(word)
    try:
        [found] = list_containers(gateway, id or word)
        # A prefix of our own id is none of Docker's.
        if id or word == found.name or not word.isalnum() or word == found.task.id:
            return found
    except (Refused, ValueError) as error:
        if isinstance(error, Refused) and not error.missing:
            raise
    if id:
        raise not_found("container", name)
    return _by_prefix(gateway, name, word)


def _by_prefix(gateway: Gateway, name: str, word: str) -> Found:
    everything = list_containers(gateway)
    if _PREFIX.fullmatch(word):
        matches = [each for each in everything if each.id.startswith(word)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise bad_parameter(f"multiple IDs found with provided prefix: {name}")
    for each in everything:
        # Swarm's name of a service's task ends with the task's id.
        if each.task.service_id and word.startswith(f"{each.name}.{each.task.id}"):
            return each
    raise not_found("container", name)


def watch(gateway: Gateway, id: str) -> Streamed:
    """The rows of a container (ContainerRow), from now until its removal. `id` is ours."""
    request = containers_pb2.ContainerRequest(container=id)
    return gateway.stream("Containers.WatchContainer", request)


def until(gateway: Gateway, id: str, done: Callable[[Found, bool], bool]) -> tuple[Found, bool]:
    """Wait until a container is as `done` says, which gets each state and whether the container was
    removed. Returns the last of them. Raises CliError."""
    rows: Iterator[Any] = iter(watch(gateway, id))
    for row in rows:
        found = read_row(row)
        if done(found, row.removed) or row.removed:
            rows.close()  # type: ignore[attr-defined]
            return found, row.removed
    raise not_found("container", docker_id(id))


def images_by_digest(gateway: Gateway) -> dict[str, Image]:
    """The cluster's images by digest, also those of their indexes."""
    reply = gateway.call("ListImages", control_pb2.ListImagesRequest())
    found: dict[str, Image] = {}
    for message in reply.images:
        image: Image = from_proto(message)
        found[image.id] = image
        for digest in image.indexes:
            found.setdefault(digest, image)
    return found


def networks_by_name(gateway: Gateway) -> dict[str, Network]:
    """The cluster's networks by name."""
    reply = gateway.call("ListNetworks", control_pb2.ListNetworksRequest())
    return {message.name: from_proto(message) for message in reply.networks}
