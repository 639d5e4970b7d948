# SPDX-License-Identifier: Apache-2.0
"""Requests to nodes through tunnels: node selection, request and reply, registration of images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Container, Iterable, Iterator
from dataclasses import replace
from typing import Any

from orchestrator.manager.errors import failed_precondition, invalid_argument
from orchestrator.manager.object_lookup import find_node
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict, Kv
from orchestrator.model.convert import from_proto
from orchestrator.model.formats.platforms import architecture, wanted_architecture
from orchestrator.model.names import ImageName, parse_image
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.objects import Image
from orchestrator.pb import dispatch_pb2


async def assign_image_names(kv: Kv, cache: Cache, node_id: str, image: Image) -> Image:
    """Record that a node has an image, and move the image's names to it.

    Any manager may do it. Returns the image as stored, once this manager's cache has it. Raises
    StoreError.
    """
    while True:
        read = cache.revision
        changes = list(image_name_changes(cache.view, node_id, image))
        if not changes:
            return cache.view.images[image.id]
        try:
            revision = await commit(kv, changes)
        except Conflict:
            # The leader recorded the node's inventory; retry on top of it.
            await cache.wait_for(read + 1)
        else:
            await cache.wait_for(revision)


def image_name_changes(view: ClusterView, node_id: str, image: Image) -> Iterator[Change]:
    """The changes that move the image's names to it from other images."""
    for other in list(view.images.values()):
        if other.id != image.id and set(other.names) & set(image.names):
            names = tuple(n for n in other.names if n not in image.names)
            yield Change(other, replace(other, names=names))
    known = view.images.get(image.id)
    if known is None:
        yield Change(None, replace(image, nodes=(node_id,), revision=0))
        return
    after = replace(
        known,
        names=tuple(sorted({*known.names, *image.names})),
        nodes=tuple(sorted({*known.nodes, node_id})),
        pending_removal=(),  # no longer to be removed
        indexes=tuple(sorted({*known.indexes, *image.indexes})),
    )
    if after != known:
        yield Change(known, after)


def parse_image_name(text: str) -> ImageName:
    """Parse an image's name. Raises RequestError."""
    try:
        return parse_image(text)
    except ValueError as error:
        raise invalid_argument(str(error)) from None


async def upload_header(uploads: AsyncIterator[Any]) -> Any:
    """The header, with which an upload begins; its name is complete. Raises RequestError."""
    first = await anext(uploads, None)
    if first is None or first.WhichOneof("part") != "header":
        raise invalid_argument("an upload begins with its header")
    header = first.header
    if header.name:
        header.name = str(parse_image_name(header.name))
    return header


def choose_node(ctx: ManagerContext, word: str = "", platform: str = "") -> Node:
    """The requested node, or the connected one with the fewest tasks, optionally of a platform.
    Raises RequestError."""
    wanted = _architecture(platform)
    if word:
        node = find_node(ctx.view, word)
        if wanted and architecture(node.description.arch) != wanted:
            raise failed_precondition(f"node {word} is {_platform(node)}, not {platform}")
        return node
    ready = ready_nodes(ctx)
    if not ready:
        raise failed_precondition("no node is ready to take an image; see 'orc node ls'")
    fitting = [n for n in ready if wanted in ("", architecture(n.description.arch))]
    if not fitting:
        there = ", ".join(sorted({_platform(node) for node in ready}))
        raise failed_precondition(f"no node that is ready is {platform}; there is {there}")
    return min(fitting, key=lambda n: (len(ctx.view.tasks_of_node(n.id)), n.description.hostname))


def _architecture(platform: str) -> str:
    try:
        return wanted_architecture(platform) if platform else ""
    except ValueError as error:
        raise invalid_argument(str(error)) from None


def _platform(node: Node) -> str:
    return f"linux/{architecture(node.description.arch)}"


def ready_nodes(ctx: ManagerContext) -> list[Node]:
    """All connected nodes that accept work, by name."""
    ready = (
        node.id
        for node in ctx.view.nodes.values()
        if node.state is NodeState.READY and node.availability is Availability.ACTIVE
    )
    near = [ctx.view.nodes[node_id] for node_id in ctx.dispatcher.reachable_nodes(ready)]
    return sorted(near, key=lambda node: node.description.hostname)


def node_with_image(ctx: ManagerContext, image: Image) -> Node:
    """A connected node that has the image. Raises RequestError."""
    for node_id in ctx.dispatcher.reachable_nodes(image.nodes):
        if (node := ctx.view.nodes.get(node_id)) is not None:
            return node
    name = next(iter(image.names or image.reported_names), image.id)
    raise failed_precondition(
        f"no node that has the image '{name}' is connected; see 'orc node ls'"
    )


async def stream_replies(ctx: ManagerContext, node: Node, order: Any) -> AsyncGenerator[Any, None]:
    """Send a request without upload; the frames of the reply, with the result last.

    Raises RequestError with the node's message if it failed.
    """
    async with ctx.tunnels.open(
        node.id, node.description.hostname, order, ctx.dispatcher.deliver
    ) as tunnel:
        async for frame in tunnel.frames():
            if frame.WhichOneof("kind") == "result" and frame.result.error:
                raise failed_precondition(frame.result.error)
            yield frame


async def send_request(ctx: ManagerContext, node: Node, order: Any) -> tuple[list[str], Any]:
    """Send a request and wait for its end: output lines and result. Raises RequestError."""
    lines: list[str] = []
    result = None
    async for frame in stream_replies(ctx, node, order):
        if frame.WhichOneof("kind") == "line":
            lines.append(frame.line)
        elif frame.WhichOneof("kind") == "result":
            result = frame.result
    return lines, result


async def register_image(
    ctx: ManagerContext,
    node: Node,
    result: Any,
    names: Iterable[str] | None,
    digests: Container[str] | None = None,
) -> Image:
    """Register a resulting image and its names in the cluster.

    `names` are those that the user gave; None: those in the archive, which the node read.
    `digests`: the expected digests, if known. Raises RequestError with the node's message if it
    failed, and for an unexpected image.
    """
    if result.error:
        raise failed_precondition(result.error)
    image: Image = from_proto(result.image)
    if digests is not None and image.id not in digests:
        raise failed_precondition(
            f"node {node.description.hostname} answered with another image, {image.id}; check "
            "that host"
        )
    named = image.names if names is None else names
    given = tuple(sorted({str(parse_image_name(name)) for name in named if name}))
    image = replace(image, names=given, reported_names=(), pending_removal=())
    return await assign_image_names(ctx.kv, ctx.cache, node.id, image)


async def send_to_all(
    ctx: ManagerContext, nodes: list[Node], order: dispatch_pb2.OpenTunnel
) -> list[str]:
    """Send a request to several nodes at once; a line for each that failed."""

    async def one(node: Node) -> str:
        if not ctx.dispatcher.reachable_nodes([node.id]):
            return f"node {node.description.hostname} is unavailable"
        try:
            await send_request(ctx, node, order)
        except Exception as error:
            return f"node {node.description.hostname}: {error}"
        return ""

    said = await asyncio.gather(*(one(node) for node in nodes))
    return [line for line in said if line]
