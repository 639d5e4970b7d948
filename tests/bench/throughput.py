# SPDX-License-Identifier: Apache-2.0
"""TCP between containers on two hosts, beside a bare VXLAN link between the same two hosts.

The bare link is what the kernel gives for nothing but the tunnel: a device on each host, made by
`ip link`, with `iperf3` in the hosts' own namespaces. A container's packets pass a veth pair, a
bridge and a route on top. The two take turns.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.bench.cluster import NODES, BenchError, Cluster, Control
from tests.bench.tables import Table, at_least, median

ROUNDS = 10
SECONDS = 1.5
SLICE = 0.1
"""Seconds between two readings of a measurement."""
OMIT = 3
"""Slices in which TCP finds its speed."""
TARGET = 0.95
PORT = 5201
DEVICE, VNI, VXLAN_PORT = "benchvx", 16_000_000, 47_890
LEFT, RIGHT = "192.0.2.5", "192.0.2.6"

_WITHIN = 20.0


@dataclass(frozen=True, slots=True)
class Ends:
    """A server and a client: how to run a command at each, and the server's address."""

    server: tuple[str, ...]
    client: tuple[str, ...]
    address: str


@dataclass(slots=True)
class Throughput:
    """Bits per second of each round."""

    containers: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    underlay: float = 0.0
    """Once, between the hosts without a tunnel."""
    bridge_filtered: bool = False
    """Whether packets on a host's bridges pass its netfilter rules (br_netfilter), which costs."""


async def measure(cluster: Cluster) -> Throughput:
    """Measure by turns. Raises BenchError when iperf3 is missing or a link does not work."""
    result = Throughput()
    async with Control() as control, control.service("tcp", NODES, _WITHIN) as timed:
        progress = timed.progress
        hosts = [progress.hostnames[task.node_id] for task in progress.tasks[:2]]
        if len(set(hosts)) < 2:
            raise BenchError("the containers were not spread over the hosts")
        inside = _between_containers(cluster, hosts, progress.tasks[:2])
        result.bridge_filtered = _bridge_filtered(cluster.enter(hosts[0]))
        with _bare_link(cluster, hosts) as bare:
            result.underlay = run(_on_underlay(cluster, hosts))
            for _ in range(ROUNDS):
                result.containers.append(run(inside))
                result.bare.append(run(bare))
    return result


def _between_containers(cluster: Cluster, hosts: Sequence[str], tasks: Sequence[Any]) -> Ends:
    ways = [
        tuple(cluster.enter(host, "nsenter", "-t", str(task.status.pid), "-n", "--"))
        for host, task in zip(hosts, tasks, strict=True)
    ]
    return Ends(ways[0], ways[1], next(iter(tasks[0].status.addresses.values())))


def _on_underlay(cluster: Cluster, hosts: Sequence[str]) -> Ends:
    ways = [tuple(cluster.enter(host)) for host in hosts]
    return Ends(ways[0], ways[1], _address(ways[0]))


@contextmanager
def _bare_link(cluster: Cluster, hosts: Sequence[str]) -> Iterator[Ends]:
    ways = [tuple(cluster.enter(host)) for host in hosts]
    under = [_address(way) for way in ways]
    ends = zip(ways, under, reversed(under), (LEFT, RIGHT), strict=True)
    with ExitStack() as stack:
        for way, local, remote, address in ends:
            bare_end(way, "eth0", local, remote, address, stack)
        yield Ends(ways[0], ways[1], LEFT)


def bare_end(
    way: Sequence[str], under: str, local: str, remote: str, address: str, stack: ExitStack
) -> None:
    """One end of a VXLAN link as `ip link` makes it, over the device `under`."""
    _output(
        *way,
        *("ip", "link", "add", DEVICE, "type", "vxlan", "id", str(VNI), "dev", under),
        *("local", local, "remote", remote, "dstport", str(VXLAN_PORT)),
    )
    stack.callback(_output, *way, "ip", "link", "del", DEVICE)
    _output(*way, "ip", "address", "add", f"{address}/30", "dev", DEVICE)
    _output(*way, "ip", "link", "set", DEVICE, "up")


def _bridge_filtered(way: Sequence[str]) -> bool:
    switch = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    return _output(*way, "sh", "-c", f"cat {switch} 2>/dev/null || echo 0").strip() == "1"


def _address(way: Sequence[str]) -> str:
    [link] = json.loads(_output(*way, "ip", "-j", "-4", "address", "show", "dev", "eth0"))
    return str(link["addr_info"][0]["local"])


def run(ends: Ends) -> float:
    """One measurement: bits per second.

    Three of four of its slices were slower: what else runs on the machine takes time from some of
    them, and is not to be measured.
    """
    server = subprocess.Popen(
        [*ends.server, "iperf3", "--server", "--one-off", "--port", str(PORT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        await_listener(ends.server, PORT)
        said = _output(
            *ends.client,
            *("iperf3", "--json", "--client", ends.address, "--port", str(PORT)),
            *("--time", str(SECONDS), "--interval", str(SLICE)),
        )
        slices = json.loads(said)["intervals"][OMIT:]
        rates = sorted(float(one["sum"]["bits_per_second"]) for one in slices)
        return rates[len(rates) * 3 // 4]
    finally:
        server.kill()
        server.communicate()


def await_listener(way: Sequence[str], port: int) -> None:
    """Until something listens at the port, seen from there. Raises BenchError after a while."""
    deadline = time.monotonic() + 5.0
    while not _output(*way, "ss", "-Hltn", f"sport = :{port}"):
        if time.monotonic() > deadline:
            raise BenchError(f"nothing listens at {port}; is iperf3 installed (Debian: iperf3)?")
        time.sleep(0.02)


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise BenchError(f"{' '.join(argv[-6:])}: {said}")
    return done.stdout


def report(result: Throughput) -> Table:
    """Pure."""
    pairs = zip(result.containers, result.bare, strict=True)
    ratio = median(inside / bare for inside, bare in pairs)
    return Table(
        "TCP between two hosts",
        ("what", "rounds", "median", "least to most, Gbit/s", "of the bare link", "target"),
        (
            (
                "container to container",
                *_figures(result.containers),
                f"{ratio * 100:.1f}%",
                at_least(ratio, TARGET, "95%"),
            ),
            ("host to host, bare VXLAN", *_figures(result.bare), "100%", ""),
            ("host to host, no tunnel", *_figures([result.underlay]), "", ""),
        ),
        (
            f"One stream of iperf3, {SECONDS} s each, by turns, of which the upper quartile of "
            f"{SLICE} s counts; the ratio is the median of the rounds' ratios. Both ends share the "
            "cores of this machine.",
            "br_netfilter is "
            + (
                "on: each packet on a bridge passes netfilter."
                if result.bridge_filtered
                else "off."
            ),
        ),
    )


def _figures(rates: list[float]) -> tuple[str, str, str]:
    low, high = min(rates) / 1e9, max(rates) / 1e9
    return str(len(rates)), f"{median(rates) / 1e9:.1f} Gbit/s", f"{low:.1f} to {high:.1f}"
