"""From an image's name to the digest that all replicas of a service run."""

from __future__ import annotations

import asyncio

from orchestrator.manager.api.context import ApiContext
from orchestrator.manager.api.image_nodes import ask, ready_nodes
from orchestrator.manager.credentials import auth_for
from orchestrator.manager.lookup import find_image, image_hint
from orchestrator.manager.refusal import Refusal, not_found
from orchestrator.model.names import ImageName, parse_image
from orchestrator.model.specs import ContainerSpec
from orchestrator.pb import dispatch_pb2, images_pb2

WITHIN = 3.0
"""Seconds in which a registry must answer a user who waits for a service."""


async def resolve_image(
    api: ApiContext, container: ContainerSpec, *, ask_registry: bool = True
) -> str:
    """The digest that a container's image stands for now, empty where the node's own files take
    its place: in the cluster, else at its registry, which
    a node asks. With `ask_registry` off, the empty text for what the cluster lacks: each node then
    looks it up. Raises Refusal in one line when it is nowhere.
    """
    if container.rootfs:
        return ""
    name = parse_image(container.image)
    with api.tracer.span("resolve image", image=str(name)):
        return await _resolved(api, name, ask_registry)


async def _resolved(api: ApiContext, name: ImageName, ask_registry: bool) -> str:
    try:
        image = find_image(api.view, name.digest or str(name))
        return name.digest or image.id
    except Refusal:
        if not ask_registry:
            return name.digest
    nodes = ready_nodes(api)
    why = "no node is ready to ask a registry"
    if nodes:
        order = images_pb2.ResolveOrder(
            name=str(name), auth=auth_for(api.view, api.vault, str(name)), within=WITHIN
        )
        try:
            async with asyncio.timeout(WITHIN + 0.5):
                lines, _ = await ask(api, nodes[0], dispatch_pb2.OpenTunnel(resolve=order))
            return name.digest or lines[0]
        except Refusal as refused:
            why = refused.text
        except TimeoutError:
            why = f"node {nodes[0].description.hostname} does not answer"
    raise not_found(f"no image '{name}' in this cluster, and {why}; {image_hint(api.view, name)}")
