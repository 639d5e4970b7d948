# SPDX-License-Identifier: Apache-2.0
"""Resolution of an image name to the digest that all replicas of a service run."""

from __future__ import annotations

from orchestrator.manager.errors import RequestError, not_found
from orchestrator.manager.object_lookup import find_image, image_hint, images_of
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.registry_credentials import auth_for
from orchestrator.model.names import ImageName, parse_image
from orchestrator.model.nodes import REGISTRY_CREDENTIALS
from orchestrator.model.specs import ContainerSpec
from orchestrator.registries.registry_errors import (
    AccessDenied,
    ImageError,
    RateLimited,
    Unreachable,
)

REGISTRY_TIMEOUT = 3.0
"""Seconds that a registry has to answer while a user waits."""


async def resolve_digest(
    ctx: ManagerContext,
    container: ContainerSpec,
    *,
    ask_registry: bool = True,
    newest: bool = True,
) -> str:
    """The digest that a container's image resolves to now: by a name in the cluster, otherwise by
    this manager's own request to the registry. Empty if the container has a root file system of its
    own.

    With `ask_registry` off, or if the registry denies access and nodes have credentials of their
    own, images that the cluster lacks resolve to the empty string: each node then resolves the name
    itself. Without `newest`, a name that was resolved before is not resolved again as long as a
    node has the image. Raises RequestError if the image is found nowhere.
    """
    if container.rootfs:
        return ""
    name = parse_image(container.image)
    with ctx.tracer.span("resolve image", image=str(name)):
        return await _resolved(ctx, name, ask_registry, newest)


async def _resolved(ctx: ManagerContext, name: ImageName, ask_registry: bool, newest: bool) -> str:
    try:
        image = find_image(ctx.view, name.digest or str(name))
        return name.digest or image.id
    except RequestError:
        if not ask_registry:
            return name.digest
    known = "" if newest else _resolved_before(ctx.view, name)
    if known and images_of(ctx.view, known):
        return known
    auth = auth_for(ctx.view, ctx.vault, str(name))
    try:
        return (await ctx.registries.resolve(str(name), auth, REGISTRY_TIMEOUT)).digest
    except ImageError as error:
        if isinstance(error, AccessDenied) and not auth and _nodes_may(ctx.view):
            return name.digest  # each node resolves it with its own credentials
        silent = isinstance(error, (Unreachable, RateLimited))
        if silent and (known := _resolved_before(ctx.view, name)):
            return known
        raise not_found(
            f"no image '{name}' in this cluster, and {error}; {image_hint(ctx.view, name)}"
        ) from None


def _nodes_may(view: ClusterView) -> bool:
    """Whether a node has credentials of its own, which this manager lacks."""
    return any(REGISTRY_CREDENTIALS in node.description.features for node in view.nodes.values())


def _resolved_before(view: ClusterView, name: ImageName) -> str:
    """The digest that the name was last resolved to for a service or container; empty for none."""
    given = [
        (service.updated_at, service.image_digest)
        for service in view.services.values()
        if service.image_digest and _is(service.spec.task.container.image, name)
    ]
    given += [
        (task.created_at, task.image_digest)
        for task in view.tasks_of_service("").values()
        if task.image_digest and _is(task.spec.container.image, name)
    ]
    return max(given, default=(0.0, ""))[1]


def _is(image: str, name: ImageName) -> bool:
    return bool(image) and parse_image(image) == name
