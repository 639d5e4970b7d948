"""The Images service: all calls of `images.proto` that the CLI makes."""

from __future__ import annotations

from orchestrator.manager.api.image_builds import BuildCacheCalls
from orchestrator.manager.api.image_files import FileCalls
from orchestrator.manager.api.image_names import NameCalls
from orchestrator.manager.api.image_registry import RegistryCalls
from orchestrator.pb import images_pb2_grpc


class ImagesApi(
    RegistryCalls,
    NameCalls,
    FileCalls,
    BuildCacheCalls,
    images_pb2_grpc.ImagesServicer,  # type: ignore[misc]
):
    """Every call about images that is not in the control API."""
