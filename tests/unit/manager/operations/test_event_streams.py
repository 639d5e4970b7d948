# SPDX-License-Identifier: Apache-2.0
"""The end of a stream of events."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

from builders import World

from orchestrator.manager.operations.workloads.containers import ContainerOperations
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.manager.telemetry.event_log import EventLog
from orchestrator.pb import containers_pb2


async def test_stream_until_now_ends_while_events_go_on() -> None:
    """Also for a reader that takes its time over each event, and is not cancelled over it."""
    log = EventLog(Cache(MemoryKv(time.monotonic)), time.time)
    context = SimpleNamespace(events=log, now=time.time, view=World().view)
    operations = ContainerOperations(cast(Any, context))
    log.writable()
    moment = time.time()
    request = containers_pb2.EventsRequest(since=1.0, until=moment)
    seen = []
    async with asyncio.timeout(10):
        async for event in operations.events(request):
            seen.append(event)
            # One that belongs to the answer, as it was on its way, and one that does not.
            if len(seen) == 1:
                earlier = EventLog(Cache(MemoryKv(time.monotonic)), lambda: moment)
                earlier.read_only("full")
                (late,) = earlier.since(0)
                for queue, wake in log._followers.values():
                    queue.append(late)
                    wake()
                log.writable()
            await asyncio.sleep(0.05)
    assert [event.action for event in seen] == ["writable", "read_only"]
