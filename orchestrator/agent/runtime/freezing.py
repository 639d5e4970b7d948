"""Containers that stand still: frozen whole, or not at all."""

from __future__ import annotations

import asyncio

from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.agent.runtime.cgroups import Cgroups

_STILL_WITHIN, _LOOK = 5.0, 0.002
"""Seconds in which all of a container has to be frozen, and between looks."""


async def freeze(cgroups: Cgroups, container_id: str) -> None:
    """Until all of it stands still. Raises RuntimeFailure, and then it goes on."""
    _order(cgroups, container_id, frozen=True)
    until = asyncio.get_running_loop().time() + _STILL_WITHIN
    while not cgroups.still(container_id):
        if asyncio.get_running_loop().time() > until:
            thaw(cgroups, container_id)
            raise RuntimeFailure("it could not be paused: not all of it stands still; try again")
        await asyncio.sleep(_LOOK)


def thaw(cgroups: Cgroups, container_id: str) -> None:
    """Let it go on. Raises RuntimeFailure."""
    _order(cgroups, container_id, frozen=False)


def _order(cgroups: Cgroups, container_id: str, *, frozen: bool) -> None:
    try:
        cgroups.freeze(container_id, frozen)
    except OSError as error:
        word = "paused" if frozen else "resumed"
        raise RuntimeFailure(f"it could not be {word}: {error.strerror or error}") from error
