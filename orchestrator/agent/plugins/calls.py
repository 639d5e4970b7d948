"""Calls of plugins: each has a time limit, its answer is checked, its error is one line.

A plugin that answers nothing for `SILENCE` seconds counts as hung: no caller waits longer for it.
One that is at work, such as attaching a disk, has longer, as long as it answers `/Plugin.Activate`
meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from orchestrator.agent.plugins.errors import PluginAway, PluginError, UnknownCall
from orchestrator.agent.plugins.http import Address, post

T = TypeVar("T")

Tell = Callable[[str], None]
"""Is told what an operation waits for; empty: for nothing any more."""

NOTICE = 2.0
"""Seconds after which whoever waits for a plugin is told so."""
SILENCE = 5.0
"""Seconds without any answer after which a plugin counts as hung."""
PATIENCE = SILENCE
"""Seconds for which a plugin that cannot be reached is tried again, with growing pauses."""
CALL_TIMEOUT = 60.0
"""Seconds that a plugin which answers other calls gets to do what it was asked."""
_FIRST_PAUSE = 0.1


async def ask(
    address: Address,
    path: str,
    body: Mapping[str, Any],
    what: str,
    timeout: float | None = None,
) -> dict[str, Any]:
    """A plugin's answer to a call within `timeout` seconds (default: `SILENCE`). `what` names the
    plugin in errors that it reports, such as `volume driver nfs`. Raises PluginError."""
    limit = SILENCE if timeout is None else timeout
    try:
        async with asyncio.timeout(limit):
            status, answer = await post(address, path, body)
    except TimeoutError:
        raise PluginAway(f"no answer within {limit:g} s") from None
    if not isinstance(answer, dict | None):
        raise PluginAway(f"its answer to {path} is no JSON object")
    # Those that give out addresses say it by the longer word.
    said = (answer or {}).get("Err") or (answer or {}).get("Error")
    if status >= 400 or said:
        words = " ".join(str(said or f"HTTP status {status}").split())
        kind = UnknownCall if status == 404 else PluginError
        raise kind(f"{what}: {words}")
    return answer or {}


async def work(address: Address, path: str, body: Mapping[str, Any], what: str) -> dict[str, Any]:
    """As `ask`, for a call that may take long: `CALL_TIMEOUT` seconds while the plugin answers
    other calls. Raises PluginError."""
    outcomes: list[dict[str, Any] | PluginError] = []

    async def call() -> None:
        try:
            outcomes.append(await ask(address, path, body, what, CALL_TIMEOUT))
        except PluginError as error:
            outcomes.append(error)

    async def watch() -> None:
        while True:
            await asyncio.sleep(NOTICE)
            try:
                await ask(address, "/Plugin.Activate", {}, what, SILENCE - NOTICE)
            except PluginAway:
                outcomes.append(PluginAway(f"no answer within {SILENCE:g} s"))
                return
            except PluginError:
                continue  # it answers

    async with asyncio.TaskGroup() as group:
        running = {group.create_task(call(), name=path), group.create_task(watch(), name="watch")}
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for each in running:
            each.cancel()
    outcome = outcomes[0]
    if isinstance(outcome, PluginError):
        raise outcome
    return outcome


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """What an attempt returns; it is repeated while it raises PluginAway, for `PATIENCE` seconds.
    Raises the last one."""
    loop = asyncio.get_running_loop()
    give_up, pause = loop.time() + PATIENCE, _FIRST_PAUSE
    while True:
        try:
            return await attempt()
        except PluginAway:
            if loop.time() + pause > give_up:
                raise
        await asyncio.sleep(pause)
        pause *= 2


@contextmanager
def announced(tell: Tell, text: str) -> Iterator[None]:
    """Tell what is waited for, once the block has taken `NOTICE` seconds, until it ends."""
    told = False

    def now() -> None:
        nonlocal told
        told = True
        tell(text)

    timer = asyncio.get_running_loop().call_later(NOTICE, now)
    try:
        yield
    finally:
        timer.cancel()
        if told:
            tell("")
