# SPDX-License-Identifier: Apache-2.0
"""This node's part in a network diagnosis: it reports its state, probes the paths to other nodes,
and counts the probes that it receives from them.

A manager directs the diagnosis step by step over a tunnel, which bounds its lifetime, and evaluates
the results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.agent.diagnostics.echo import SMALL, Echo, Series
from orchestrator.agent.diagnostics.path_mtu import CONCURRENCY
from orchestrator.agent.diagnostics.throughput import (
    DATAGRAMS,
    Responder,
    measure_rate,
    send_datagrams,
)
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Forgery, NetworkConfig, Underlay
from orchestrator.agent.network.node_network import Connections
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.pb import dispatch_pb2, doctor_pb2

COUNT, PAUSE = 20, 0.01
"""Echoes to each node, and seconds between them."""
DOUBT_COUNT, DOUBT_PAUSE = 200, 0.004
"""Additional echoes after partial loss, to measure the loss rate."""
LARGE_COUNT = 5
IDLE_TIMEOUT = 60.0
"""Seconds without an order after which a diagnosis is aborted."""
MOST_DEVIATIONS = 20
"""Maximum number of reported deviations per network."""


class Networking(Protocol):
    """The methods of `network.node_network.NodeNetwork` that are used here."""

    async def deviations(self, network: str) -> list[str]: ...

    async def unbalanced(self) -> list[str]: ...

    async def unexposed(self) -> list[str]: ...

    async def forgeries(self) -> list[Forgery]: ...

    async def underlay(self, network: str) -> Underlay: ...

    async def connections(self) -> Connections: ...


class Ordered(Protocol):
    """The methods of `network.reconciler.NetworkReconciler` that are used here."""

    def applied(self) -> Mapping[str, NetworkConfig]: ...

    def failures(self) -> Mapping[str, str]: ...


class Paths(Protocol):
    """The methods of `path_mtu.PathMtus` that are used here."""

    async def measure(self, echo: Echo, peer: str) -> int: ...


@dataclass(slots=True)
class _Test:
    """The state of one diagnosis on this node."""

    echo: Echo
    token: bytes
    address: str = ""
    """This node's address in the tested network; empty: it is not in that network."""
    mtu: int = 0
    inner: Echo | None = None
    responder: Responder | None = None


class PeerTests:
    """Takes part in diagnoses."""

    def __init__(self, address: str, network: Networking, ordered: Ordered, paths: Paths) -> None:
        """`address` is this node's on the underlay."""
        self._address = address
        self._network = network
        self._ordered = ordered
        self._paths = paths

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Take part in a diagnosis until it ends (a handler of `tunnels.Tunnels`)."""
        asked = order.diagnosis
        async with AsyncExitStack() as stack:
            test = _Test(stack.enter_context(Echo(self._address)), asked.token)
            here = await self._enter(stack, readers, test, asked)
            await call.write(_frame(here=here))
            while True:
                frame = await self._next(call)
                match frame.WhichOneof("kind"):
                    case "probe":
                        answer = _frame(probed=await self._probe(test, frame.probe))
                    case "rate":
                        target = frame.rate.address, frame.rate.port
                        rate = await measure_rate(
                            test.address, target, test.token, frame.rate.seconds
                        )
                        answer = _frame(rated=doctor_pb2.Rated(rate=rate))
                    case _:
                        return dispatch_pb2.TunnelResult(diagnosis=await self._result(test))
                await call.write(answer)

    async def _next(self, call: Any) -> doctor_pb2.DiagnosisFrame:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT):
                frame = await call.read()
        except TimeoutError:
            raise RuntimeFailure(
                f"the diagnosis timed out: no request from the manager for {IDLE_TIMEOUT:.0f} s"
            ) from None
        if not isinstance(frame, dispatch_pb2.Frame):  # grpc.aio.EOF
            raise RuntimeFailure("the manager has aborted the diagnosis")
        return frame.diagnosis

    async def _enter(
        self,
        stack: AsyncExitStack,
        readers: asyncio.TaskGroup,
        test: _Test,
        asked: doctor_pb2.DiagnosisOrder,
    ) -> doctor_pb2.Here:
        """Prepare the test; return the network's state on this node. Raises RuntimeFailure."""
        here = doctor_pb2.Here(drifts=await self.drifts())
        try:
            connections = await self._network.connections()
            forgeries = await self._network.forgeries()
        except NetworkError as error:
            raise RuntimeFailure(f"the node's network helper failed: {error}") from None
        here.tracked, here.trackable = connections.count, connections.limit
        here.dropped.extend(
            doctor_pb2.DroppedPackets(
                network=each.network, container=each.container, packets=each.packets
            )
            for each in forgeries
        )
        config = self._ordered.applied().get(asked.network_id)
        if config is None or not config.vni or config.id in self._ordered.failures():
            return here
        # The name server uses the reserved port at the gateway's own address.
        address = config.tunnel_address if asked.reserved_port else config.own_address
        try:
            under = await self._network.underlay(config.id)
            inner = stack.enter_context(Echo(address))
            responder = await stack.enter_async_context(
                Responder(readers, address, asked.token, reserved=asked.reserved_port)
            )
        except (OSError, NetworkError) as error:
            raise RuntimeFailure(f"network {config.name} cannot be tested here: {error}") from None
        test.address, test.mtu, test.inner, test.responder = address, under.tunnel, inner, responder
        here.address, here.port, here.mtu = address, responder.port, under.tunnel
        here.device, here.device_mtu = under.device, under.mtu
        return here

    async def drifts(self) -> list[doctor_pb2.Drift]:
        """Drift of this node's networks: differences between desired state and kernel."""
        found = []
        failures = self._ordered.failures()
        for id, config in sorted(self._ordered.applied().items()):
            try:
                # Only the plugin can check a network of its own.
                deviations = [] if config.driver else await self._network.deviations(id)
                failure = failures.get(id, "")
            except NetworkError as error:
                deviations, failure = [], str(error)
            if deviations or failure:
                found.append(_drift(config.name, deviations, failure))
        try:
            of_all = [*await self._network.unbalanced(), *await self._network.unexposed()]
            if of_all:
                found.append(_drift("", of_all))
        except NetworkError as error:
            found.append(_drift("", [], str(error)))
        return found

    async def _probe(self, test: _Test, order: doctor_pb2.Probe) -> doctor_pb2.Probed:
        turns = asyncio.Semaphore(CONCURRENCY)

        async def one(target: doctor_pb2.ProbeTarget) -> doctor_pb2.ProbedPath:
            async with turns:
                return await self._path(test, order.number, target)

        return doctor_pb2.Probed(paths=await asyncio.gather(*map(one, order.targets)))

    async def _path(
        self, test: _Test, number: int, target: doctor_pb2.ProbeTarget
    ) -> doctor_pb2.ProbedPath:
        under = await _series(test.echo, target.underlay)
        found = doctor_pb2.ProbedPath(node_id=target.node_id, underlay=_echoes(under))
        if test.inner is None or not target.overlay:
            found.path_mtu = await self._mtu(test, target, under)
            return found
        over, _ = await asyncio.gather(
            _series(test.inner, target.overlay),
            send_datagrams(test.address, (target.overlay, target.port), test.token, number),
        )
        found.overlay.CopyFrom(_echoes(over))
        found.datagrams = DATAGRAMS
        found.path_mtu = await self._mtu(test, target, under, over)
        if over.received:
            large = await test.inner.series(target.overlay, LARGE_COUNT, PAUSE, test.mtu)
            found.large.CopyFrom(_echoes(large))
        return found

    async def _mtu(self, test: _Test, target: doctor_pb2.ProbeTarget, *asked: Series) -> int:
        """The path MTU in bytes, if a reply came back; else 0."""
        if not any(series.received for series in asked):
            return 0
        return await self._paths.measure(test.echo, target.underlay)

    async def _result(self, test: _Test) -> doctor_pb2.DiagnosisResult:
        received = test.responder.received if test.responder is not None else {}
        return doctor_pb2.DiagnosisResult(
            heard=[
                doctor_pb2.Heard(number=number, checked=checked, unchecked=unchecked)
                for number, (checked, unchecked) in received.items()
            ],
            drifts=await self.drifts(),
        )


async def _series(echo: Echo, address: str) -> Series:
    """Send echoes, and additional ones after partial loss."""
    found = await echo.series(address, COUNT, PAUSE, SMALL)
    if 0 < found.received < found.sent:
        found += await echo.series(address, DOUBT_COUNT, DOUBT_PAUSE, SMALL)
    return found


def _echoes(series: Series) -> doctor_pb2.Echoes:
    return doctor_pb2.Echoes(sent=series.sent, received=series.received, latency=series.latency)


def _drift(network: str, deviations: Collection[str], failure: str = "") -> doctor_pb2.Drift:
    reported = list(deviations)[:MOST_DEVIATIONS]
    if more := len(deviations) - len(reported):
        reported.append(f"and {more} more")
    return doctor_pb2.Drift(network=network, deviations=reported, failure=failure)


def _frame(**kind: Any) -> dispatch_pb2.Frame:
    return dispatch_pb2.Frame(diagnosis=doctor_pb2.DiagnosisFrame(**kind))
