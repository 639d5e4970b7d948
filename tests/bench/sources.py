# SPDX-License-Identifier: Apache-2.0
"""What it costs to check the source addresses of what containers send: two networks, of which one
has the option `source-check=off`, measured by turns.

Two hosts made of namespaces with Orc's network helper alone for packets and CNI's ADD; a dev
cluster for a container's start. Checked in both networks is from which host a tunnel's packet is.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from orchestrator.agent.network.network_types import Attachment, NetworkConfig
from orchestrator.agent.network.node_network import NodeNetwork
from tests.bench import balance, packets, throughput
from tests.bench.cluster import Cluster, Control
from tests.bench.tables import Table, at_least, at_most, median, seconds, spread
from tests.bench.throughput import Ends

ROUNDS = 20
"""Of throughput."""
ADDS = 60
STARTS = 25
SLOWER = 0.002
"""Seconds that a start may take more."""
_WITHIN = 10.0
ON, OFF = "checked", "unchecked"
NEAR, FAR = "on one host", "between two hosts"


@dataclass(slots=True)
class Sources:
    """By network, and by way and network."""

    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Bits per second of each round."""
    datagrams: dict[tuple[str, str], float] = field(default_factory=dict)
    """Seconds of a processor for one datagram."""
    streams: dict[tuple[str, str], float] = field(default_factory=dict)
    """Seconds of a processor for a GiB of TCP."""
    add: dict[str, list[float]] = field(default_factory=lambda: {ON: [], OFF: []})
    """Seconds of each round."""


@dataclass(frozen=True, slots=True)
class Three:
    """Containers of one network: a client, its neighbor, and one on the other host."""

    client: Attachment
    neighbor: Attachment
    remote: Attachment

    def server(self, way: str) -> Attachment:
        """Whom the client talks to."""
        return self.neighbor if way == NEAR else self.remote

    def ends(self, way: str) -> Ends:
        """For iperf3."""
        server = self.server(way)
        argv = [("nsenter", f"--net={one.netns}") for one in (server, self.client)]
        return Ends(argv[0], argv[1], server.address)


def _by_turns(number: int) -> Sequence[str]:
    """Neither is always the first."""
    return (ON, OFF) if number % 2 else (OFF, ON)


async def measure(folder: Path) -> Sources:
    """Measure by turns. Raises BenchError."""
    result = Sources()
    async with balance.two_hosts(folder) as (_, nodes):
        places = {name: await _containers(nodes, name) for name in (ON, OFF)}
        await asyncio.to_thread(_packets, places, result)
        for number in range(-2, ADDS):
            for name in _by_turns(number):
                began = time.perf_counter()
                await nodes[0].attach(name, f"add-{name}")
                if number >= 0:
                    result.add[name].append(time.perf_counter() - began)
                await nodes[0].detach(f"add-{name}")
    return result


async def _containers(nodes: Sequence[NodeNetwork], name: str) -> Three:
    place = 7 + (ON, OFF).index(name)
    config = NetworkConfig(
        name, name, place, f"10.{place}.0.0/16", "", 0, "", source_check=name == ON
    )
    await balance.join(nodes, config, [IPv4Network(f"10.{place}.{n}.0/24") for n in (1, 2)])
    client, neighbor = [await nodes[0].attach(name, f"{name}-{n}") for n in (1, 2)]
    return Three(client, neighbor, await nodes[1].attach(name, f"{name}-3"))


def _packets(places: dict[str, Three], result: Sources) -> None:
    for number in range(ROUNDS):
        for way in (NEAR, FAR):
            for name in _by_turns(number):
                rate = throughput.run(places[name].ends(way))
                result.rates.setdefault((way, name), []).append(rate)
    keys = [(way, name) for way in (NEAR, FAR) for name in places]
    for kind, measured, into in (
        (socket.SOCK_DGRAM, packets.measure, result.datagrams),
        (socket.SOCK_STREAM, packets.stream, result.streams),
    ):
        ways = {}
        for way, name in keys:
            client, server = places[name].client, places[name].server(way)
            ends = (partial(balance.datagrams, one.netns, kind) for one in (client, server))
            ways[f"{way} {name}"] = *ends, server.address
        found = measured(ways)
        into.update({(way, name): found[f"{way} {name}"] for way, name in keys})


async def measure_start(cluster: Cluster) -> dict[str, list[float]]:
    """Seconds from the API call that creates a service of one container until that is seen
    running, by network. Raises BenchError."""
    result: dict[str, list[float]] = {ON: [], OFF: []}
    for name, option in ((ON, "on"), (OFF, "off")):
        cluster.orc("network", "create", "--opt", f"source-check={option}", name)
    async with Control() as control:
        for name in result:
            async with control.service(f"warm-up-{name}", 3, _WITHIN, network=name):
                pass
        for number in range(STARTS):
            for name in _by_turns(number):
                service = control.service(f"{name}{number}", 1, _WITHIN, network=name)
                async with service as timed:
                    result[name].append(timed.seconds)
    for name in result:
        cluster.orc("network", "rm", name)
    return result


def report(result: Sources) -> Table:
    """Pure."""
    return Table(
        "Source checks: packets",
        ("what", "checked", "unchecked", "speed, checked / unchecked", "target"),
        (
            *_rates(result),
            *_streams(result),
            *_datagrams(result),
            _took("ADD by the agent's helper", result.add),
        ),
        (
            f"{ROUNDS} rounds of TCP (one stream of iperf3, {throughput.SECONDS} s) and {ADDS} of "
            "ADD, by turns; the ratio of TCP's rates is the median of the rounds' ratios, which "
            "tells nothing on a busy machine. The target of ADD is about the median of the rounds' "
            "differences.",
            "A GiB of TCP takes a processor's time at both ends and between, whatever else runs; "
            f"the lower decile of {packets.STREAM_ROUNDS} rounds of {packets.STREAM >> 20} MiB.",
            f"A datagram of {packets.SIZE} bytes takes a processor's time all its way over both "
            f"hosts; the lower decile of {packets.ROUNDS} bursts.",
            "Unchecked is a network with --opt source-check=off.",
        ),
    )


def _rates(result: Sources) -> Iterator[tuple[str, ...]]:
    for way in (NEAR, FAR):
        on, off = result.rates[way, ON], result.rates[way, OFF]
        ratio = median(one / other for one, other in zip(on, off, strict=True))
        rates = (f"{median(each) / 1e9:.2f} Gbit/s" for each in (on, off))
        yield f"TCP {way}", *rates, f"{ratio * 100:.1f}%", at_least(ratio, 0.98, "98%")


def _datagrams(result: Sources) -> Iterator[tuple[str, ...]]:
    for way in (NEAR, FAR):
        on, off = result.datagrams[way, ON], result.datagrams[way, OFF]
        figures = (f"{each * 1e6:.2f} us, {1 / each:,.0f}/s" for each in (on, off))
        yield f"a datagram {way}", *figures, f"{off / on * 100:.1f}%", ""


def _streams(result: Sources) -> Iterator[tuple[str, ...]]:
    for way in (NEAR, FAR):
        on, off = result.streams[way, ON], result.streams[way, OFF]
        target = at_least(off / on, 0.98, "98%")
        figures = (f"{each * 1000:.0f} ms of a processor" for each in (on, off))
        yield f"a GiB of TCP {way}", *figures, f"{off / on * 100:.1f}%", target


def report_start(found: dict[str, list[float]]) -> Table:
    """Pure."""
    return Table(
        "Source checks: start",
        ("what", "checked", "unchecked", "speed, checked / unchecked", "target"),
        (_took("API call to RUNNING", found),),
        (
            f"{STARTS} rounds by turns; checked: {spread(found[ON])} ms, unchecked: "
            f"{spread(found[OFF])} ms. The target is about the median of the rounds' differences.",
        ),
    )


def _took(what: str, found: dict[str, list[float]]) -> tuple[str, ...]:
    on, off = median(found[ON]), median(found[OFF])
    more = median(one - other for one, other in zip(found[ON], found[OFF], strict=True))
    target = at_most(more, SLOWER, f"{SLOWER * 1000:.0f} ms more")
    return what, seconds(on), seconds(off), f"{off / on * 100:.1f}%", target
