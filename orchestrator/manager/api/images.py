# SPDX-License-Identifier: Apache-2.0
"""gRPC service `Images`: names, registries, archives and build caches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from orchestrator.manager.api.grpc_status import streaming, unary
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.operations.images.archives import ImageArchiveOperations
from orchestrator.manager.operations.images.building import BuildCacheOperations
from orchestrator.manager.operations.images.catalog import ImageCatalogOperations
from orchestrator.manager.operations.images.registry_transfers import RegistryOperations
from orchestrator.pb import images_pb2_grpc


class ImagesApi(images_pb2_grpc.ImagesServicer):  # type: ignore[misc]
    """Handles the calls of `Images`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._registry = RegistryOperations(ctx)
        self._image_catalog = ImageCatalogOperations(ctx)
        self._image_archive = ImageArchiveOperations(ctx)
        self._build_cache = BuildCacheOperations(ctx)

    @streaming
    def Pull(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._registry.pull(request)

    @streaming
    def Push(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._registry.push(request)

    @unary
    async def Tag(self, request: Any, context: Any) -> Any:
        return await self._image_catalog.tag(request)

    @unary
    async def Remove(self, request: Any, context: Any) -> Any:
        return await self._image_catalog.remove_image(request)

    @unary
    async def Prune(self, request: Any, context: Any) -> Any:
        return await self._image_catalog.prune_images(request)

    @unary
    async def Inspect(self, request: Any, context: Any) -> Any:
        return await self._image_catalog.inspect_image(request)

    @streaming
    def Save(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._image_archive.save(request)

    @streaming
    def Import(self, request: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        return self._image_archive.import_image(request)

    @unary
    async def Commit(self, request: Any, context: Any) -> Any:
        return await self._image_archive.commit_container(request)

    @unary
    async def Diff(self, request: Any, context: Any) -> Any:
        return await self._image_archive.diff(request)

    @streaming
    def Export(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._image_archive.export(request)

    @unary
    async def Login(self, request: Any, context: Any) -> Any:
        return await self._registry.login(request)

    @unary
    async def Logout(self, request: Any, context: Any) -> Any:
        return await self._registry.logout(request)

    @unary
    async def BuildCaches(self, request: Any, context: Any) -> Any:
        return await self._build_cache.build_caches(request)
