"""Stored objects that this manager cannot decode.

A newer version may have written them, or they are damaged.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A stored object that cannot be decoded."""

    key: str
    """In the store."""
    kind: str
    """`task`, `service`, …; empty for a kind of object that this version does not know."""
    id: str
    reason: str
    """Why it cannot be decoded, in the user's words."""
    services: frozenset[str] = frozenset()
    """Ids of the services that are not planned while the object is quarantined."""
