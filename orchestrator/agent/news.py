"""News that cut short what is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class News:
    """One block at a time may be cut short by it; where there is none, nobody hears of it."""

    def __init__(self) -> None:
        self._scope: asyncio.Timeout | None = None

    def arrive(self) -> None:
        """Cut short the block that is under way, if there is one."""
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())
            self._scope = None

    @asynccontextmanager
    async def may_interrupt(self) -> AsyncIterator[None]:
        """Leave the block quietly when news arrives; what it awaits must bear that."""
        try:
            async with asyncio.timeout(None) as scope:
                self._scope = scope
                yield
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._scope = None
