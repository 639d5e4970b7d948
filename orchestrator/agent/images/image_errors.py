# SPDX-License-Identifier: Apache-2.0
"""Errors of images; the text is one line for the user."""

from __future__ import annotations

from orchestrator.registries.registry_errors import ImageError as ImageError


class BuildError(ImageError):
    """An instruction of a Dockerfile failed; the text names its line."""


class ImageInUse(ImageError):
    """The image cannot be removed, because a container uses it."""


class NoSpace(ImageError):
    """The node's disk has too little space for the image."""


class SourceGone(ImageError):
    """The caller that fetched a shared blob was cancelled; another waiter fetches it again."""
