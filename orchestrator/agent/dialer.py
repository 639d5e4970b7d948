"""Which manager to dial, and when: the loop around `session.py`.

All managers that are known are tried in turn, in random order, with a back-off that grows to eight
seconds and is jittered, so that a thousand agents do not come back in step. The newest list of
managers is kept on disk: the ones that the node joined by may be long gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

import grpc

from orchestrator.agent.session import CertificateRefused, Redirected, Session, SessionEnded
from orchestrator.agent.statedb import StateDb
from orchestrator.pb import dispatch_pb2

log = logging.getLogger(__name__)

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 2.0
"""Seconds between attempts, from the first failure on. The most is short: a node that was cut off
has old names and addresses until it has a session again."""
BACKOFF_REFUSED = 60.0
"""The most where the node's certificate was revoked: it will not be accepted again."""
_REDIRECTS = 3
"""Redirects in a row that are followed at once; from then on they count as failures."""

PATIENCE_FIRST, PATIENCE_MOST = 5.0, 60.0
"""Seconds that a manager has to say welcome, from the first failure on. A host that is too slow for
the first would be dialled for ever."""

Dial = Callable[[str], grpc.aio.Channel]


def backoff(attempt: int, unit: float, refused: bool = False) -> float:
    """Seconds to wait after the failure number `attempt` (1 and up) in a row: doubled and capped;
    `unit` from 0 to 1 chooses between half of that and all of it. `refused`: the node's
    certificate was revoked."""
    cap = BACKOFF_REFUSED if refused else BACKOFF_MOST
    most: float = min(BACKOFF_FIRST * 2.0 ** min(attempt - 1, 16), cap)
    return most * (0.5 + unit / 2)


def patience(failures: int) -> float:
    """Seconds that the next manager has, after so many failures in a row: grows from the third."""
    most: float = min(PATIENCE_FIRST * 2.0 ** max(0, min(failures, 16) - 2), PATIENCE_MOST)
    return most


class Dialer:
    """Keeps the node in session with one manager after another."""

    def __init__(
        self,
        *,
        db: StateDb,
        joined_by: Sequence[str],
        dial: Dial,
        new_session: Callable[[], Session],
        rng: random.Random,
        serial: Callable[[], str] = lambda: "",
    ) -> None:
        """`joined_by` are the managers (HOST:PORT) that the node knows from joining; `serial` is
        the serial number of the node's certificate."""
        self._db = db
        self._joined_by = tuple(joined_by)
        self._dial = dial
        self._new_session = new_session
        self._rng = rng
        self._serial = serial
        self._session: Session | None = None
        self.channel: grpc.aio.Channel | None = None
        """To the manager that has welcomed this node; None without a session."""
        self.connected_to = ""
        """HOST:PORT of the manager that has welcomed this node; empty without a session."""

    def report_images(self) -> None:
        """Send the image inventory, now or when there is a session."""
        if self._session is not None:
            self._session.report_images()

    async def run(self) -> str:
        """Dial until a manager says that the certificate which the node has was revoked, and
        return what it said. Only a manager that has proved who it is can say so, and no other
        failure counts: a node whose managers cannot be reached keeps its tasks."""
        failures = redirects = 0
        refused = False
        queue: list[str] = []
        said: dict[str, str] = {}
        while True:
            queue = queue or self._candidates()
            address = queue.pop(0)
            end = await self._hold(address, patience(failures))
            if self.connected_to:
                failures = redirects = 0
                refused = False
                self.connected_to = ""
                said.clear()
            if isinstance(end, Redirected):
                queue.insert(0, end.leader)
                redirects += 1
                if redirects <= _REDIRECTS:
                    continue
            if isinstance(end, CertificateRefused) and end.serial and end.serial == self._serial():
                return str(end)
            failures += 1
            refused = refused or isinstance(end, CertificateRefused)
            delay = backoff(failures, self._rng.random(), refused)
            # A manager may be away for hours: what is known of it is not said every few seconds.
            level = logging.DEBUG if said.get(address) == str(end) else logging.WARNING
            said[address] = str(end)
            extra = {"manager": address, "retry_in": f"{delay:.2f}"}
            log.log(level, "no session: %s", end, extra=extra)
            await asyncio.sleep(delay)

    async def _hold(self, address: str, within: float) -> SessionEnded:
        def welcomed(welcome: dispatch_pb2.Welcome) -> None:
            self.connected_to = address
            if welcome.managers:
                self._db.put_managers(welcome.managers)
            log.info("session opened", extra={"manager": address})

        self._session = self._new_session()
        try:
            async with self._dial(address) as channel:
                self.channel = channel
                return await self._session.run(channel, welcomed, within)
        finally:
            self._session = self.channel = None

    def _candidates(self) -> list[str]:
        """Every known manager once: the newest list shuffled, then what the node joined by."""
        newest = list(self._db.managers())
        self._rng.shuffle(newest)
        return newest + [manager for manager in self._joined_by if manager not in newest]
