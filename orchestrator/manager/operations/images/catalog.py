# SPDX-License-Identifier: Apache-2.0
"""Names, removal and inspection of images: `orc tag`, `rmi`, `image prune`, `image inspect`."""

from __future__ import annotations

import hashlib
import json
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from orchestrator.manager.errors import failed_precondition
from orchestrator.manager.object_lookup import find_image_by_word, images_of, matches_prune_filters
from orchestrator.manager.operations.context import Operations, hostnames, on_current_state
from orchestrator.manager.operations.images.registry_client import manifests_of
from orchestrator.manager.operations.node_requests import (
    node_with_image,
    parse_image_name,
    send_request,
    send_to_all,
    stream_replies,
)
from orchestrator.manager.operations.references import in_use_error
from orchestrator.manager.planning.consumers import consumer
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.commit import commit
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Image
from orchestrator.model.specs import ContainerSpec
from orchestrator.model.states import is_terminal
from orchestrator.pb import dispatch_pb2, images_pb2, types_pb2


def users(view: ClusterView, image: Image) -> list[str]:
    """Descriptions of the containers and services that use the image."""
    known = {image.id, *image.indexes}

    def needs(digest: str, container: ContainerSpec) -> bool:
        # Without a digest, each node has resolved the name itself.
        names = {*image.names, *image.reported_names}
        return digest in known if digest else _name(container.image) in names

    found = []
    for task in sorted(view.tasks.values(), key=lambda task: task.name):
        of_service = bool(task.service_id)
        if needs(task.image_digest, task.spec.container) and not (
            of_service and is_terminal(task.status.state)
        ):
            node = None if of_service else view.nodes.get(task.node_id)
            where = f" on {node.description.hostname}" if node else ""
            found.append(f"{consumer(view, task)}{where}")
    for service in sorted(view.services.values(), key=lambda service: service.spec.name):
        if not service.removed and needs(service.image_digest, service.spec.task.container):
            found.append(f"service {service.spec.name}")
    return list(dict.fromkeys(found))


class ImageCatalogOperations(Operations):
    """Operations on the images that the cluster has."""

    @on_current_state
    async def tag(self, request: images_pb2.TagImageRequest) -> types_pb2.Image:
        """Give an image another name, on all its nodes."""
        ctx = self.ctx
        image = await self._named(request.image)
        name = str(parse_image_name(request.name))
        after = replace(image, names=tuple(sorted({*image.names, name})), pending_removal=())
        changes = [
            Change(other, replace(other, names=tuple(n for n in other.names if n != name)))
            for other in ctx.view.images.values()
            if name in other.names and other.id != image.id
        ]
        if after != image:
            changes.append(Change(image, after))
        if changes:
            await ctx.cache.wait_for(await commit(ctx.kv, changes))
        order = images_pb2.TagOrder(image=image.id, name=name)
        await send_to_all(ctx, self._nodes(image), dispatch_pb2.OpenTunnel(tag=order))
        return to_proto(after)

    async def _named(self, word: str) -> Image:
        """The image to tag. For the digest of an index, a node must present the index: merely
        claiming an image of it is not enough. Raises RequestError."""
        image = find_image_by_word(self.ctx.view, word)
        index = word.partition("@")[2]
        if not index or index == image.id:
            return image
        for each in images_of(self.ctx.view, index):
            node = node_with_image(self.ctx, each)
            order = images_pb2.ReadOrder(image=index)
            async with aclosing(
                stream_replies(self.ctx, node, dispatch_pb2.OpenTunnel(read_image=order))
            ) as answer:
                first = await anext(answer, None)
            shown = first.line if first is not None else ""
            if _digest(shown) == index and each.id in manifests_of(shown.encode()):
                return each
        raise failed_precondition(
            f"no node shows an image of {index}; pull '{word}', or use an image id"
        )

    async def remove_image(
        self, request: images_pb2.RemoveImageRequest
    ) -> images_pb2.RemoveImageReply:
        """Remove a name of an image, or the image from all its nodes."""
        view = self.ctx.view
        image = find_image_by_word(view, request.image, reported=True)
        name = request.image
        if name not in image.names:
            name = next((n for n in image.names if n == str(_name(name))), "")
        reply = images_pb2.RemoveImageReply()
        if name and len(image.names) > 1:
            await self._untag(image, name, reply)
            return reply
        needed = users(view, image)
        if needed and not request.force:
            raise in_use_error(
                f"image '{request.image}'", needed, hint="or remove its names with -f"
            )
        if not name and len(image.names) > 1 and not request.force:
            raise failed_precondition(
                f"image '{request.image}' has {len(image.names)} names "
                f"({', '.join(image.names)}); remove it with -f"
            )
        if needed:
            for each in dict.fromkeys((*image.names, *image.reported_names)):
                await self._untag(image, each, reply)
                image = self.ctx.view.images[image.id]
            reply.notices.append(f"the image stays while it is used by {needed[0]}")
            return reply
        await self._delete(image, reply)
        return reply

    async def _untag(self, image: Image, name: str, reply: Any) -> None:
        ctx = self.ctx
        await self._forget_name(image.id, name)
        order = images_pb2.RemoveOrder(image=image.id, name=name)
        await send_to_all(ctx, self._nodes(image), dispatch_pb2.OpenTunnel(remove_image=order))
        reply.untagged.append(name)

    @on_current_state
    async def _forget_name(self, id: str, name: str) -> None:
        ctx = self.ctx
        if (image := ctx.view.images.get(id)) is None:
            return
        after = replace(
            image,
            names=tuple(n for n in image.names if n != name),
            reported_names=tuple(n for n in image.reported_names if n != name),
        )
        if after != image:
            await ctx.cache.wait_for(await commit(ctx.kv, [Change(image, after)]))

    async def _delete(self, image: Image, reply: Any) -> None:
        """Remove an image from all reachable nodes, after taking its names."""
        ctx = self.ctx
        nodes = self._nodes(image)
        away = [node for node in nodes if not ctx.dispatcher.connected(node.id)]
        pending_removal = tuple(sorted(node.id for node in away))
        after = replace(image, names=(), reported_names=(), pending_removal=pending_removal)
        if after != image:
            await ctx.cache.wait_for(await commit(ctx.kv, [Change(image, after)]))
        order = images_pb2.RemoveOrder(image=image.id)
        there = [node for node in nodes if node not in away]
        notices = [
            f"node {node.description.hostname} is unavailable and removes its copy when it returns"
            for node in away
        ]
        notices += await send_to_all(ctx, there, dispatch_pb2.OpenTunnel(remove_image=order))
        reply.untagged.extend(image.names or image.reported_names)
        reply.notices.extend(notices)
        reply.freed += image.size * max(0, len(image.nodes) - len(notices))
        if len(notices) < len(image.nodes):
            reply.deleted.append(image.id)
        if not notices:
            async with ctx.cache.subscribe() as feed:
                while image.id in ctx.view.images:
                    await feed.next()

    async def prune_images(
        self, request: images_pb2.PruneImagesRequest
    ) -> images_pb2.RemoveImageReply:
        """Remove images that nothing uses."""
        reply = images_pb2.RemoveImageReply()
        for image in sorted(self.ctx.view.images.values(), key=lambda image: image.id):
            named = image.names or _unclaimed(self.ctx.view, image)
            if (named and not request.all) or users(self.ctx.view, image):
                continue
            if not matches_prune_filters(image.labels, image.created_at, request):
                continue
            await self._delete(image, reply)
        return reply

    async def inspect_image(
        self, request: images_pb2.InspectImageRequest
    ) -> images_pb2.InspectImageReply:
        """Return an image's manifest and config, verified against its digest."""
        ctx = self.ctx
        image = find_image_by_word(ctx.view, request.image, reported=True)
        order = images_pb2.ReadOrder(image=image.id)
        node = node_with_image(ctx, image)
        lines, _ = await send_request(ctx, node, dispatch_pb2.OpenTunnel(read_image=order))
        manifest, config = lines
        if _digest(manifest) != image.id or _digest(config) != _config_of(manifest):
            raise failed_precondition(
                f"node {node.description.hostname} answered with other documents than those of "
                f"image {image.id}; check that host"
            )
        return images_pb2.InspectImageReply(
            image=to_proto(image), manifest=manifest, config=config, hostnames=hostnames(ctx.view)
        )

    def _nodes(self, image: Image) -> list[Node]:
        nodes = self.ctx.view.nodes
        return [nodes[id] for id in image.nodes if id in nodes]


def _unclaimed(view: ClusterView, image: Image) -> list[str]:
    """The names that nodes report of it and no other image has."""
    return [name for name in image.reported_names if view.image_by_name(name) is None]


def _digest(document: str) -> str:
    return f"sha256:{hashlib.sha256(document.encode()).hexdigest()}"


def _config_of(manifest: str) -> str:
    """The digest of a manifest's config."""
    return str(json.loads(manifest)["config"]["digest"])


def _name(text: str) -> str:
    try:
        return str(parse_image_name(text))
    except Exception:
        return ""
