# SPDX-License-Identifier: Apache-2.0
"""Transfers from and to registries, and credentials: `orc pull`, `push`, `login`, `logout`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from orchestrator.manager.errors import failed_precondition, invalid_argument, not_found
from orchestrator.manager.object_lookup import find_image
from orchestrator.manager.operations.context import Operations, on_current_state
from orchestrator.manager.operations.images.registry_client import ResolvedImage
from orchestrator.manager.operations.node_requests import (
    choose_node,
    node_with_image,
    parse_image_name,
    ready_nodes,
    register_image,
    stream_replies,
)
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.security.registry_credentials import (
    auth_for,
    given_auth,
    purpose,
    registry_name,
)
from orchestrator.manager.store.commit import commit
from orchestrator.model.convert import to_proto
from orchestrator.model.names import parse_image
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Credential, Image
from orchestrator.pb import control_pb2, dispatch_pb2, images_pb2
from orchestrator.registries.registry_errors import ImageError


class RegistryOperations(Operations):
    """Operations on registries."""

    async def pull(
        self, request: images_pb2.PullImageRequest
    ) -> AsyncIterator[control_pb2.ImageProgress]:
        """Pull an image from a registry to nodes."""
        ctx = self.ctx
        name = str(parse_image_name(request.name))
        nodes = ready_nodes(ctx) if request.all_nodes else [choose_node(ctx, request.node)]
        if not nodes:
            raise failed_precondition("no node is ready to pull an image; see 'orc node ls'")
        auth = given_auth(name, request.login) or auth_for(ctx.view, ctx.vault, name)
        try:
            resolved = await ctx.registries.resolve(name, auth)
        except ImageError as error:
            raise failed_precondition(str(error)) from None
        digest = resolved.digest
        order = images_pb2.PullOrder(name=name, digest=digest, registry=True, auth=auth)
        order.sources.extend(self._sources(digest))
        image = None
        async for progress in self._pulled(nodes[0], order, resolved):
            if progress.WhichOneof("part") == "image":
                image = progress
            else:
                yield progress
        if len(nodes) > 1:
            # One node has pulled from the registry; the others pull from that node.
            order.sources[:] = self._sources(digest)
            order.registry = False
            order.ClearField("auth")
            for done in asyncio.as_completed(
                [self._quietly(node, order, resolved) for node in nodes[1:]]
            ):
                yield control_pb2.ImageProgress(line=await done)
        yield control_pb2.ImageProgress(line=f"digest: {digest}")
        if image is not None:
            yield image

    async def _pulled(self, node: Node, order: Any, resolved: ResolvedImage) -> AsyncIterator[Any]:
        async for frame in stream_replies(self.ctx, node, dispatch_pb2.OpenTunnel(pull=order)):
            match frame.WhichOneof("kind"):
                case "layer":
                    yield control_pb2.ImageProgress(layer=frame.layer)
                case "line":
                    yield control_pb2.ImageProgress(line=frame.line)
                case "result":
                    image: Image = await register_image(
                        self.ctx, node, frame.result, (_tagged(order.name),), resolved.manifests
                    )
                    yield control_pb2.ImageProgress(image=to_proto(image))

    async def _quietly(self, node: Node, order: Any, resolved: ResolvedImage) -> str:
        async for _ in self._pulled(node, order, resolved):
            pass
        return f"{node.description.hostname}: has it"

    def _sources(self, digest: str) -> list[str]:
        found = []
        for image in self.ctx.view.images.values():
            if digest == image.id or digest in image.indexes:
                for node_id in self.ctx.dispatcher.reachable_nodes(image.nodes):
                    about = self.ctx.view.nodes[node_id].description
                    found.append(f"{about.address}:{about.blob_port}")
        return sorted(set(found))

    async def push(
        self, request: images_pb2.PushImageRequest
    ) -> AsyncIterator[control_pb2.ImageProgress]:
        """Push an image from a node to its registry, and verify the digest there."""
        ctx = self.ctx
        name = str(parse_image_name(request.name))
        image = find_image(ctx.view, name)
        node = node_with_image(ctx, image)
        auth = given_auth(name, request.login) or auth_for(ctx.view, ctx.vault, name)
        order = images_pb2.PushOrder(image=image.id, name=name, auth=auth)
        async for frame in stream_replies(ctx, node, dispatch_pb2.OpenTunnel(push=order)):
            match frame.WhichOneof("kind"):
                case "layer":
                    yield control_pb2.ImageProgress(layer=frame.layer)
                case "line":
                    yield control_pb2.ImageProgress(line=frame.line)
        if notice := await self._unproved(name, image, auth):
            yield control_pb2.ImageProgress(line=notice)
        yield control_pb2.ImageProgress(image=to_proto(image))

    async def _unproved(self, name: str, image: Image, auth: bytes) -> str:
        """Why this manager cannot verify the pushed image at the registry; empty if it is verified.
        Raises RequestError if the registry has another image."""
        try:
            resolved = await self.ctx.registries.resolve(name, auth)
        except ImageError as error:
            return f"not verified at the registry by this manager: {error}"
        if image.id not in resolved.manifests:
            raise failed_precondition(
                f"the registry has {resolved.digest} under {name}, not the image {image.id} that "
                "was pushed; check who else pushes there, and the node"
            )
        return ""

    @on_current_state
    async def login(self, request: images_pb2.LoginRequest) -> images_pb2.LoginReply:
        """Check credentials at a registry and store them sealed."""
        ctx = self.ctx
        registry = self._registry(request.registry)
        if not request.username or ":" in request.username:
            raise invalid_argument("a user name is needed, without ':' in it; give it with -u")
        try:
            await ctx.registries.login(registry, request.username, request.password)
        except ImageError as error:
            raise failed_precondition(str(error)) from None
        sealing = ctx.sealing()
        before = ctx.view.credentials.get(registry)
        after = replace(
            before or Credential(id=registry, created_at=ctx.now()),
            username=request.username,
            sealed=ctx.vault.seal(request.password, purpose(registry)),
        )
        await ctx.cache.wait_for(await commit(ctx.kv, [Change(before, after)], sealing))
        return images_pb2.LoginReply(registry=registry)

    @on_current_state
    async def logout(self, request: images_pb2.LogoutRequest) -> images_pb2.LogoutReply:
        """Forget the credentials of a registry."""
        ctx = self.ctx
        registry = self._registry(request.registry)
        before = ctx.view.credentials.get(registry)
        if before is None:
            raise not_found(f"this cluster is not logged in to {registry}")
        await ctx.cache.wait_for(await commit(ctx.kv, [Change(before, None)]))
        return images_pb2.LogoutReply(registry=registry)

    def _registry(self, text: str) -> str:
        try:
            return registry_name(text)
        except ValueError as error:
            raise invalid_argument(str(error)) from None


def _tagged(name: str) -> str:
    """The name without a digest; empty if only the digest identifies the image."""
    parsed = parse_image(name)
    return str(replace(parsed, digest="")) if parsed.tag else ""
