# SPDX-License-Identifier: Apache-2.0
"""Errors of volumes, in words for users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.agent.plugins import plugin_client


class VolumeError(Exception):
    """A volume cannot be created, mounted or removed; one line that says why and what to do."""


class VolumePluginUnavailable(VolumeError):
    """A volume plugin did not answer, or its answer was invalid. It may work later."""


@contextmanager
def of_volumes() -> Iterator[None]:
    """Convert errors of plugins to errors of volumes."""
    try:
        yield
    except plugin_client.PluginUnavailable as error:
        raise VolumePluginUnavailable(str(error)) from error
    except plugin_client.PluginError as error:
        raise VolumeError(str(error)) from error
