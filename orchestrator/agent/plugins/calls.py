"""Calls of plugins: each has its time, its answer is looked at, its error is one line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from orchestrator.agent.plugins.errors import PluginAway, PluginError, UnknownCall
from orchestrator.agent.plugins.http import Address, post

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds for which a plugin that cannot be reached is tried again, with growing pauses."""
CALL_TIMEOUT = 60.0
"""Seconds that a plugin gets to do what it was asked: it may have to attach a disk."""
_FIRST_PAUSE, _MOST_PAUSE = 0.1, 8.0


async def ask(
    address: Address,
    path: str,
    body: Mapping[str, Any],
    what: str,
    timeout: float | None = None,
) -> dict[str, Any]:
    """A plugin's answer to a call, within so many seconds (`CALL_TIMEOUT` if none are said). `what`
    it is begins what it says itself, such as `volume driver nfs`. Raises PluginError."""
    limit = CALL_TIMEOUT if timeout is None else timeout
    try:
        async with asyncio.timeout(limit):
            status, answer = await post(address, path, body)
    except TimeoutError:
        raise PluginAway(f"no answer within {limit:.0f} s") from None
    if not isinstance(answer, dict | None):
        raise PluginAway(f"its answer to {path} is no JSON object")
    # Those that give out addresses say it by the longer word.
    said = (answer or {}).get("Err") or (answer or {}).get("Error")
    if status >= 400 or said:
        words = " ".join(str(said or f"HTTP status {status}").split())
        kind = UnknownCall if status == 404 else PluginError
        raise kind(f"{what}: {words}")
    return answer or {}


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """What an attempt gives; it is made again while it raises PluginAway. Raises the last one."""
    loop = asyncio.get_running_loop()
    give_up, pause = loop.time() + PATIENCE, _FIRST_PAUSE
    while True:
        try:
            return await attempt()
        except PluginAway:
            if loop.time() + pause > give_up:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _MOST_PAUSE)
