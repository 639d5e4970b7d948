"""What can go wrong with a plugin, in the user's words."""

from __future__ import annotations


class PluginError(Exception):
    """A plugin refuses, or cannot be used; one line that says why."""


class PluginAway(PluginError):
    """A plugin did not answer, or what came was no answer. It may work later."""


class UnknownCall(PluginError):
    """A plugin does not know the call: it is older, or need not know it."""
