"""What is to be given back and could not be yet: tried again with growing pauses, and given up at
last when the container's namespace is gone, since some plugins fail for ever."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from orchestrator.agent.netplugins.records import Record, Records, namespace_stamp
from orchestrator.agent.network.helper import NetworkError

log = logging.getLogger(__name__)

RETRY_FIRST, RETRY_MOST = 1.0, 300.0
"""Seconds between two attempts."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Retry:
    due: float = 0.0
    """Loop time of the next attempt."""
    pause: float = RETRY_FIRST


class Overdue:
    """The records of which the containers are gone, until what they tell of is gone as well."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._retries: dict[Key, _Retry] = {}
        self.news = asyncio.Event()
        """Set when there are others."""

    def __contains__(self, key: Key) -> bool:
        return key in self._retries

    def note(self, key: Key) -> None:
        """What is of this record is to be given back now."""
        self._retries[key] = _Retry()
        self.news.set()

    def forget(self, key: Key) -> None:
        """It is done, or somebody has it again."""
        self._retries.pop(key, None)

    def due(self) -> list[Key]:
        """Those whose time has come."""
        now = asyncio.get_running_loop().time()
        return [key for key, retry in self._retries.items() if retry.due <= now]

    def failed(self, key: Key, error: NetworkError) -> None:
        """An attempt has failed: another will be made, or none any more."""
        record = self._records.get(*key)
        earlier = self._retries.get(key, _Retry())
        network, container = key
        if record is not None and self._hopeless(record, earlier):
            log.error(
                "given up; what it holds of network %s in a plugin's books is left there: %s",
                network,
                error,
                extra={"task": container},
            )
            self._records.drop(record)
            self.forget(key)
            return
        if not earlier.due:
            log.error(
                "it is not taken off network %s yet: %s", network, error, extra={"task": container}
            )
        due = asyncio.get_running_loop().time() + earlier.pause
        self._retries[key] = _Retry(due, min(2 * earlier.pause, RETRY_MOST))
        self.news.set()

    async def wait(self, period: float) -> None:
        """Until one is due or there are others, at most for so many seconds."""
        due = [retry.due for retry in self._retries.values()]
        try:
            async with asyncio.timeout_at(min((asyncio.get_running_loop().time() + period, *due))):
                await self.news.wait()
        except TimeoutError:
            pass

    def _hopeless(self, record: Record, retry: _Retry) -> bool:
        return retry.pause >= RETRY_MOST and not namespace_stamp(record.netns)
