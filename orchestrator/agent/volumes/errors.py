"""What can go wrong with volumes, in the user's words."""

from __future__ import annotations


class VolumeError(Exception):
    """A volume cannot be made, mounted or removed; one line that says why and what to do."""


class PluginAway(VolumeError):
    """A plugin did not answer, or what came was no answer. It may work later."""
