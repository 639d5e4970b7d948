"""What can go wrong with an image, in the user's words."""

from __future__ import annotations

from orchestrator.registries.registry_errors import ImageError as ImageError


class BuildError(ImageError):
    """An instruction of a Dockerfile failed; the text names its line."""


class ImageInUse(ImageError):
    """The image cannot be removed now, because a container is made from it."""


class NoSpace(ImageError):
    """The node's disk is too small for the image and what else is there."""


class SourceGone(ImageError):
    """Whoever was fetching a blob has gone; the others fetch it themselves."""
