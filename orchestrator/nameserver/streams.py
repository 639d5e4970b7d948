"""The TCP connections of all listeners of this node, kept to a number that one process can hold."""

from __future__ import annotations

from asyncio import StreamWriter
from collections import Counter, OrderedDict

MOST = 512
"""Connections of all clients together."""
MOST_OF_ONE = 32
"""Connections of one address."""


class Streams:
    """Who is connected, the longest unused first."""

    def __init__(self, most: int = MOST, most_of_one: int = MOST_OF_ONE) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._sources: OrderedDict[StreamWriter, str] = OrderedDict()
        self._of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sources)

    def admit(self, writer: StreamWriter, source: str) -> bool:
        """Take a connection of a client, unless that has as many as it may; where there are too
        many of all, the longest unused one is closed."""
        if self._of[source] >= self._most_of_one:
            return False
        if len(self._sources) >= self._most:
            unused = next(iter(self._sources))
            self.leave(unused)
            unused.transport.abort()
        self._sources[writer] = source
        self._of[source] += 1
        return True

    def use(self, writer: StreamWriter) -> None:
        """A question came."""
        if writer in self._sources:
            self._sources.move_to_end(writer)

    def leave(self, writer: StreamWriter) -> None:
        """It is closed; also more than once."""
        source = self._sources.pop(writer, None)
        if source is not None:
            self._of[source] -= 1
            if not self._of[source]:
                del self._of[source]
