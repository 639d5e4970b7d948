"""What can go wrong with volumes, in the user's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.agent.plugins import plugin_client


class VolumeError(Exception):
    """A volume cannot be made, mounted or removed; one line that says why and what to do."""


class VolumePluginUnavailable(VolumeError):
    """A plugin did not answer, or what came was no answer. It may work later."""


@contextmanager
def of_volumes() -> Iterator[None]:
    """Errors of a plugin's within are errors with volumes."""
    try:
        yield
    except plugin_client.PluginUnavailable as error:
        raise VolumePluginUnavailable(str(error)) from error
    except plugin_client.PluginError as error:
        raise VolumeError(str(error)) from error
