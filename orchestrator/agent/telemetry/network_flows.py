# SPDX-License-Identifier: Apache-2.0
"""Network flows of this node's containers, streamed to a manager on request.

A thread reads the kernel's connection table every few seconds, less often if that takes long, so
that it uses at most a twentieth of a core. Without a request the table is not read, and byte
counters are off. A file records that they are on, so that the next agent switches them off if this
one is killed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.cni.netlink import conntrack
from orchestrator.cni.netlink.conntrack import Connection
from orchestrator.pb import dispatch_pb2, flows_pb2

log = logging.getLogger(__name__)

MOST_FLOWS = 1000
"""Flows per frame."""
LEAST_PERIOD, MOST_PERIOD = 0.5, 60.0
SHARE = 20
"""The pause between two reads, in multiples of a read's duration."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The connections at a monotonic time."""

    at: float
    connections: Sequence[Connection]


class NetworkFlows:
    """Reads the table for all requests, and sends each its changes.

    `record` is a file that need not survive a reboot: it exists while this agent has byte counters
    switched on.
    """

    def __init__(
        self,
        runners: Mapping[str, TaskRunner],
        record: Path,
        read: Callable[[Collection[bytes]], Sequence[Connection]] = conntrack.connections,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runners = runners
        self._record = record
        self._read = read
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._sample = Sample(float("-inf"), ())
        self._took = 0.0
        self._requests = 0
        """Requests that are being served."""

    def __enter__(self) -> Self:
        self._stop_counting()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_counting()

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Send flows until the stream ends (a handler of `tunnels.Tunnels`). Raises OSError."""
        period = min(max(order.flows.period, LEAST_PERIOD), MOST_PERIOD)
        before: Sample | None = None
        async with self._counting():
            while True:
                now = await self._newest(period / 2)
                await call.write(dispatch_pb2.Frame(flows=changes(before, now)))
                before = now
                await asyncio.sleep(max(period, SHARE * self._took))

    async def _newest(self, old: float) -> Sample:
        """The table, at most `old` seconds old: requests share it."""
        async with self._lock:
            began = self._monotonic()
            if began - self._sample.at > old:
                found = await asyncio.to_thread(self._read, self._addresses())
                self._took = self._monotonic() - began
                self._sample = Sample(began, found)
            return self._sample

    def _addresses(self) -> frozenset[bytes]:
        """The addresses of this node's containers."""
        found = (runner.status for runner in self._runners.values())
        return frozenset(
            ipaddress.ip_address(address).packed
            for status in found
            for address in (*status.addresses.values(), *status.addresses6.values())
        )

    @asynccontextmanager
    async def _counting(self) -> AsyncIterator[None]:
        """Switch byte counters on during requests, unless they were on before."""
        self._requests += 1
        try:
            if self._requests == 1 and not conntrack.counts_bytes():
                self._record.touch()
                _count(True)
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._sample = Sample(float("-inf"), ())
                self._stop_counting()

    def _stop_counting(self) -> None:
        """Switch byte counters off that this agent, or a killed one, has switched on."""
        if self._record.exists():
            _count(False)
            self._record.unlink()


def _count(wanted: bool) -> None:
    try:
        conntrack.count_bytes(wanted)
    except OSError as error:
        log.info("byte counters of connections cannot be switched: %s", error)


def changes(before: Sample | None, now: Sample) -> flows_pb2.NodeFlows:
    """The open connections, and their traffic since the previous sample. Pure."""
    known = {each.id: each for each in before.connections} if before else {}
    found: dict[tuple[bytes, bytes, int, int], list[int]] = {}
    for each in now.connections:
        key = (each.client, each.server, each.port, each.protocol)
        sums = found.setdefault(key, [0, 0, 0, 0])
        sums[0] += each.open
        if before is None:
            continue
        earlier = known.get(each.id)
        if earlier is None or earlier.sent > each.sent:  # another connection with the same ports
            sums[1] += 1
            earlier = None
        sums[2] += each.sent - (earlier.sent if earlier else 0)
        sums[3] += max(each.received - (earlier.received if earlier else 0), 0)
    reported = sorted(
        ((key, sums) for key, sums in found.items() if any(sums)),
        key=lambda one: (-one[1][2] - one[1][3], -one[1][0], one[0]),
    )
    return flows_pb2.NodeFlows(
        seconds=now.at - before.at if before else 0.0,
        left_out=max(len(reported) - MOST_FLOWS, 0),
        flows=[
            flows_pb2.Flow(
                client=client,
                server=server,
                port=port,
                protocol=protocol,
                open=sums[0],
                begun=sums[1],
                sent=sums[2],
                received=sums[3],
            )
            for (client, server, port, protocol), sums in reported[:MOST_FLOWS]
        ],
    )
