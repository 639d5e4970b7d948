"""Stops what must not run on where no manager can see it (`--on-disconnect stop-after=…`).

Elsewhere the manager starts such a task anew only when it is sure to have ended here: so long after
it has called this node down, which it does later than this node notices that it is alone, because a
session that is dead is noticed in four seconds, and a node is down after five.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from orchestrator.agent.runner import TaskRunner

log = logging.getLogger(__name__)

PERIOD = 0.5
"""Seconds between two looks."""


async def watch_isolation(
    connected: Callable[[], bool],
    runners: Callable[[], Iterable[TaskRunner]],
    clock: Callable[[], float],
) -> None:
    """Look until cancelled; `clock` is monotonic, in seconds. An agent that has just started counts
    from then."""
    alone_since = clock()
    while True:
        await asyncio.sleep(PERIOD)
        now = clock()
        if connected():
            alone_since = now
        else:
            stop_lonely(runners(), now - alone_since)


def stop_lonely(runners: Iterable[TaskRunner], alone: float) -> None:
    """Stop those that may not be alone for so many seconds."""
    for runner in runners:
        if 0 < runner.stop_after <= alone and not runner.lonely:
            log.warning("stopped: no manager for too long", extra={"task": runner.id})
            runner.isolate()
