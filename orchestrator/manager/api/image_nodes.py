"""Work on images that is done on nodes: which node, the tunnel to it, and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Container, Iterable
from dataclasses import replace
from typing import Any

from orchestrator.manager.api.context import ApiContext
from orchestrator.manager.imagenames import give_names
from orchestrator.manager.lookup import find_node
from orchestrator.manager.refusal import invalid, precondition
from orchestrator.model.convert import from_proto
from orchestrator.model.names import ImageName, parse_image
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.objects import Image
from orchestrator.model.platforms import architecture, wanted_architecture
from orchestrator.pb import dispatch_pb2


def parsed(text: str) -> ImageName:
    """An image's name. Raises Refusal."""
    try:
        return parse_image(text)
    except ValueError as error:
        raise invalid(str(error)) from None


def choose_node(api: ApiContext, word: str = "", platform: str = "") -> Node:
    """The node asked for, else the connected one with the fewest tasks; of a platform, where one
    is asked for. Raises Refusal."""
    wanted = _architecture(platform)
    if word:
        node = find_node(api.view, word)
        if wanted and architecture(node.description.arch) != wanted:
            raise precondition(f"node {word} is {_platform(node)}, not {platform}")
        return node
    ready = ready_nodes(api)
    if not ready:
        raise precondition("no node is ready to take an image; see 'orc node ls'")
    fitting = [n for n in ready if wanted in ("", architecture(n.description.arch))]
    if not fitting:
        there = ", ".join(sorted({_platform(node) for node in ready}))
        raise precondition(f"no node that is ready is {platform}; there is {there}")
    return min(fitting, key=lambda n: (len(api.view.tasks_of_node(n.id)), n.description.hostname))


def _architecture(platform: str) -> str:
    try:
        return wanted_architecture(platform) if platform else ""
    except ValueError as error:
        raise invalid(str(error)) from None


def _platform(node: Node) -> str:
    return f"linux/{architecture(node.description.arch)}"


def ready_nodes(api: ApiContext) -> list[Node]:
    """All nodes that take work now, by name."""
    ready = (
        node.id
        for node in api.view.nodes.values()
        if node.state is NodeState.READY and node.availability is Availability.ACTIVE
    )
    near = [api.view.nodes[node_id] for node_id in api.dispatcher.nearest(ready)]
    return sorted(near, key=lambda node: node.description.hostname)


def holder(api: ApiContext, image: Image) -> Node:
    """A connected node that has the image. Raises Refusal."""
    for node_id in api.dispatcher.nearest(image.nodes):
        if (node := api.view.nodes.get(node_id)) is not None:
            return node
    name = next(iter(image.names or image.reported_names), image.id)
    raise precondition(f"no node that has the image '{name}' is connected; see 'orc node ls'")


async def frames(api: ApiContext, node: Node, order: Any) -> AsyncGenerator[Any, None]:
    """Give an order that needs no upload; the frames of its answer, the result at last.

    Raises Refusal with the node's words when it failed.
    """
    async with api.tunnels.open(
        node.id, node.description.hostname, order, api.dispatcher.deliver
    ) as tunnel:
        async for frame in tunnel.frames():
            if frame.WhichOneof("kind") == "result" and frame.result.error:
                raise precondition(frame.result.error)
            yield frame


async def ask(api: ApiContext, node: Node, order: Any) -> tuple[list[str], Any]:
    """Give an order and wait for its end: its lines and its result. Raises Refusal."""
    lines: list[str] = []
    result = None
    async for frame in frames(api, node, order):
        if frame.WhichOneof("kind") == "line":
            lines.append(frame.line)
        elif frame.WhichOneof("kind") == "result":
            result = frame.result
    return lines, result


async def settled(
    api: ApiContext,
    node: Node,
    result: Any,
    names: Iterable[str] | None,
    digests: Container[str] | None = None,
) -> Image:
    """The image of a result once it and its names are in the cluster's table.

    `names` are those that the user gave it; None: those of an archive, which the node read.
    `digests`: those that it may have, where they are known. Raises Refusal with the node's words
    when it failed, and for an image that was not asked for.
    """
    if result.error:
        raise precondition(result.error)
    image: Image = from_proto(result.image)
    if digests is not None and image.id not in digests:
        raise precondition(
            f"node {node.description.hostname} answered with another image, {image.id}; check "
            "that host"
        )
    named = image.names if names is None else names
    given = tuple(sorted({str(parsed(name)) for name in named if name}))
    image = replace(image, names=given, reported_names=(), condemned=())
    return await give_names(api.kv, api.cache, node.id, image)


async def every(api: ApiContext, nodes: list[Node], order: dispatch_pb2.OpenTunnel) -> list[str]:
    """Give an order to several nodes at once; a line for each that could not do it."""

    async def one(node: Node) -> str:
        if not api.dispatcher.nearest([node.id]):
            return f"node {node.description.hostname} is away"
        try:
            await ask(api, node, order)
        except Exception as error:
            return f"node {node.description.hostname}: {error}"
        return ""

    said = await asyncio.gather(*(one(node) for node in nodes))
    return [line for line in said if line]
