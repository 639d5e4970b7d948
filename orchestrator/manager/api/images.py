"""The Images service: all calls of `images.proto` that the CLI makes."""

from __future__ import annotations

from orchestrator.manager.operations.images.archives import ImageArchiveOperations
from orchestrator.manager.operations.images.building import BuildCacheOperations
from orchestrator.manager.operations.images.catalog import ImageCatalogOperations
from orchestrator.manager.operations.images.registry_transfers import RegistryOperations
from orchestrator.pb import images_pb2_grpc


class ImagesApi(
    RegistryOperations,
    ImageCatalogOperations,
    ImageArchiveOperations,
    BuildCacheOperations,
    images_pb2_grpc.ImagesServicer,  # type: ignore[misc]
):
    """Every call about images that is not in the control API."""
