# SPDX-License-Identifier: Apache-2.0
"""What a VIP costs: its throughput, a connection's set-up beside many services, changes.

Two hosts made of namespaces, a container on each, joined by Orc's network helper alone: no agent
and no manager. Beside it the same two hosts with a bare VXLAN link. All of it takes turns.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from orchestrator.agent.network.network_types import Attachment, Interface, NetworkConfig, Peer
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.cni.balancing.endpointtable import (
    Endpoint,
    Network,
    Node,
    Published,
    Service,
    Table,
)
from orchestrator.cni.netlink import namespaces
from tests.bench import packets, tables, throughput
from tests.bench.cluster import BenchError
from tests.bench.processes import run_number
from tests.bench.tables import at_least, at_most, median, seconds
from tests.bench.throughput import Ends

ROUNDS = 7
SERVICES, ENDPOINTS = 1000, 10
CONNECTIONS = 2000
CHANGES = 1000
CLUSTER = IPv4Network("10.128.0.0/14")
SUBNETS = (IPv4Network("10.128.1.0/24"), IPv4Network("10.128.2.0/24"))
ADDRESSES = ("192.0.2.1", "192.0.2.2")
VIP = IPv4Address("10.131.0.9")
ECHO_PORT = 7
UNFILTERED = "cd /proc/sys/net/bridge && for it in bridge-nf-call-*; do echo 0 >$it; done; true"
"""As a host is that has not loaded br_netfilter: built in, it is on in a new namespace."""
PERIOD = 0.001

_CONNECT = """
import socket, struct, sys, time
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
reset = struct.pack("ii", 1, 0)  # leave no TIME_WAIT
batches = []
for _ in range(count // 50):
    began = time.perf_counter()
    for _ in range(50):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        sock.connect((address, port))
        sock.close()
    batches.append((time.perf_counter() - began) / 50)
print(sorted(batches)[len(batches) // 4])
"""
_LISTEN = """
import socket, sys
sock = socket.create_server(("", int(sys.argv[1])), backlog=4096)
while True:
    sock.accept()[0].close()
"""


@dataclass(slots=True)
class Balance:
    """Bits per second and seconds of each round."""

    bare: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    vip: list[float] = field(default_factory=list)
    few: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    direct_set_up: list[float] = field(default_factory=list)
    packets: dict[str, float] = field(default_factory=dict)
    whole: float = 0.0
    changes: float = 0.0
    at_once: float = 0.0
    retransmitted: int = 0
    slowest: float = 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """The hosts by name, the network's two nodes, and a container on each."""

    hosts: tuple[str, str]
    nodes: tuple[NodeNetwork, NodeNetwork]
    client: Attachment
    server: Attachment

    def ends(self, address: str) -> Ends:
        """The containers, the server to be asked at an address."""
        server, client = (("nsenter", f"--net={a.netns}") for a in (self.server, self.client))
        return Ends(server, client, address)


async def measure(folder: Path) -> Balance:
    """Measure by turns. Raises BenchError."""
    result = Balance()
    async with _pair(folder) as pair:
        few = Table(1, services=(_service(pair, 0),), networks=(_network(),), policies=())
        await _have(pair, few)
        await asyncio.to_thread(_throughput, pair, result)
        many = replace(few, revision=2, services=tuple(_service(pair, n) for n in range(SERVICES)))
        with _listening(pair.server):
            for number in range(ROUNDS):
                for table, into in ((few, result.few), (many, result.many)):
                    whole = replace(table, revision=2 * number + table.revision)
                    await _have(pair, whole)
                    into.append(await asyncio.to_thread(_connect, pair, str(VIP)))
                direct = await asyncio.to_thread(_connect, pair, pair.server.address)
                result.direct_set_up.append(direct)
        await _have(pair, replace(few, revision=50))
        began = time.perf_counter()
        await _have(pair, replace(many, revision=100), nodes=pair.nodes[:1])
        result.whole = time.perf_counter() - began
        await _changes(pair, many.services, result)
    return result


def _network() -> Network:
    return Network("n1", "orcbr7", CLUSTER, "orcvx7", nodes=tuple(map(Node, SUBNETS)))


def _service(pair: Pair, number: int, ready: int = ENDPOINTS) -> Service:
    """The first one has one endpoint, the server; the others have some that are nowhere."""
    if number == 0:
        ends: tuple[Endpoint, ...] = (Endpoint(IPv4Address(pair.server.address)),)
    else:
        base = int(CLUSTER.network_address) + (1 << 16) + number * ENDPOINTS
        ends = tuple(Endpoint(IPv4Address(base + n), ready=n < ready) for n in range(ENDPOINTS))
    ports = (Published("tcp", 20000 + number, 80),)
    return Service(f"s{number}", "n1", VIP + number, endpoints=ends, ports=ports)


async def _have(pair: Pair, table: Table, nodes: Sequence[NodeNetwork] = ()) -> None:
    for node in nodes or pair.nodes:
        await node.balance(table, lambda: table)


# -- throughput ----------------------------------------------------------------------------------


def _throughput(pair: Pair, result: Balance) -> None:
    with _bare_link(pair.hosts) as bare:
        for _ in range(ROUNDS):
            result.bare.append(throughput.run(bare))
            result.direct.append(throughput.run(pair.ends(pair.server.address)))
            result.vip.append(throughput.run(pair.ends(str(VIP))))
        client, server = (partial(datagrams, one.netns) for one in (pair.client, pair.server))
        left, right = (partial(datagrams, f"/run/netns/{host}") for host in pair.hosts)
        result.packets = packets.measure(
            {
                "bare": (right, left, throughput.LEFT),
                "direct": (client, server, pair.server.address),
                "vip": (client, server, str(VIP)),
            }
        )


def datagrams(netns: str | Path, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    """A UDP socket in a network namespace, or one of another kind."""
    with namespaces.opened(netns) as descriptor, namespaces.inside(descriptor):
        return socket.socket(socket.AF_INET, kind)


@contextmanager
def _bare_link(hosts: tuple[str, str]) -> Iterator[Ends]:
    ends = [(throughput.LEFT, *ADDRESSES), (throughput.RIGHT, *reversed(ADDRESSES))]
    ways = [("ip", "netns", "exec", host) for host in hosts]
    with ExitStack() as stack:
        for way, (address, local, remote) in zip(ways, ends, strict=True):
            throughput.bare_end(way, "uplink", local, remote, address, stack)
        yield Ends(ways[0], ways[1], throughput.LEFT)


# -- set-up --------------------------------------------------------------------------------------


@contextmanager
def _listening(where: Attachment) -> Iterator[None]:
    way = ("nsenter", f"--net={where.netns}")
    process = subprocess.Popen([*way, sys.executable, "-c", _LISTEN, "80"])
    try:
        throughput.await_listener(way, 80)
        yield
    finally:
        process.kill()
        process.wait()


def _connect(pair: Pair, address: str) -> float:
    """Seconds that a connection takes to be made, the lower quartile of many batches' means: what
    else runs on the machine is not to be measured."""
    command = [sys.executable, "-c", _CONNECT, address, "80", str(CONNECTIONS)]
    done = subprocess.run(
        ["nsenter", f"--net={pair.client.netns}", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout)


# -- changes -------------------------------------------------------------------------------------


async def _changes(pair: Pair, services: Sequence[Service], result: Balance) -> None:
    """Of the client's node, which holds the table of revision 100, one after the other and then
    all at once, while an established connection goes on."""
    node = pair.nodes[0]
    changed = [
        _service(pair, 1 + number % (len(services) - 1), ready=ENDPOINTS - 1)
        for number in range(CHANGES)
    ]
    with _conversation(pair, result):
        began = time.perf_counter()
        for number, service in enumerate(changed):
            change = Table(101 + number, 100 + number, services=(service,))
            await node.balance(change, _unknown)
        result.changes = time.perf_counter() - began
        back = {service.key: services[int(service.id[1:])] for service in changed}
        base = 100 + len(changed)
        began = time.perf_counter()
        await node.balance(Table(base + 1, base, services=tuple(back.values())), _unknown)
        result.at_once = time.perf_counter() - began


def _unknown() -> Table:
    raise BenchError("the helper was replaced during the measurement")


@contextmanager
def _conversation(pair: Pair, result: Balance) -> Iterator[None]:
    """An established connection through the VIP, a question every millisecond."""
    over = threading.Event()
    with _socket_in(pair.server) as listener, _socket_in(pair.client) as client:
        listener.bind(("", ECHO_PORT))
        listener.listen()
        client.connect((str(VIP), ECHO_PORT))
        server, _ = listener.accept()
        server.settimeout(5.0)

        def talk() -> None:
            while not over.is_set():
                began = time.perf_counter()
                client.send(b"?")
                server.send(server.recv(1))
                client.recv(1)
                result.slowest = max(result.slowest, time.perf_counter() - began)
                time.sleep(PERIOD)

        thread = threading.Thread(target=talk)
        with server:
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
            result.retransmitted = _retransmitted(client) + _retransmitted(server)


def _retransmitted(sock: socket.socket) -> int:
    """tcpi_total_retrans, tcp(7)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[100:104], sys.byteorder)


def _socket_in(where: Attachment) -> socket.socket:
    with namespaces.opened(where.netns) as descriptor, namespaces.inside(descriptor):
        sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(5.0)
    return sock


# -- the two hosts -------------------------------------------------------------------------------


@asynccontextmanager
async def _pair(folder: Path) -> AsyncIterator[Pair]:
    async with two_hosts(folder) as (hosts, nodes):
        await join(nodes, NetworkConfig("n1", "bench", 7, str(CLUSTER), "", 0, ""), SUBNETS)
        client, server = [await node.attach("n1", "bench", Interface()) for node in nodes]
        yield Pair(hosts, nodes, client, server)


async def join(
    nodes: Sequence[NodeNetwork], config: NetworkConfig, subnets: Sequence[IPv4Network]
) -> None:
    """Have a network over both hosts, with these slices."""
    peers = tuple(Peer(str(s), a) for s, a in zip(subnets, ADDRESSES, strict=True))
    for node, subnet, address in zip(nodes, subnets, ADDRESSES, strict=True):
        own = replace(config, subnet=str(subnet), node_address=address, peers=peers)
        await node.apply(own)


@asynccontextmanager
async def two_hosts(
    folder: Path,
) -> AsyncIterator[tuple[tuple[str, str], tuple[NodeNetwork, NodeNetwork]]]:
    """Two namespaces, by name, with a veth pair between them and a network helper each."""
    left, right = (f"orc-bench-{run_number()}-{side}" for side in "lr")
    async with AsyncExitStack() as stack:
        for name in (left, right):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("netns", "exec", name, "sh", "-c", UNFILTERED)
        veth = ("link", "add", "uplink", "type", "veth", "peer", "name", "uplink")
        _ip("-n", left, *veth, "netns", right)
        nodes = []
        for name, address in zip((left, right), ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "uplink")
            _ip("-n", name, "link", "set", "uplink", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            # Not `ip netns exec`: nobody else would see what is mounted in there.
            way = ("nsenter", f"--net=/run/netns/{name}")
            helper = (*way, sys.executable, "-m", "orchestrator.cni.helper")
            state, run = folder / f"{name}-state", folder / f"{name}-run"
            node = await stack.enter_async_context(NodeNetwork(state, run, command=helper))
            stack.push_async_callback(_clear, node)
            nodes.append(node)
        yield (left, right), (nodes[0], nodes[1])


async def _clear(node: NodeNetwork) -> None:
    for network in await node.networks():
        await node.remove(network)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


# -- the table -----------------------------------------------------------------------------------

WAYS = (
    ("bare", "a packet's way, bare VXLAN"),
    ("direct", "a packet's way, container to container"),
    ("vip", "a packet's way through a VIP"),
)


def _way(result: Balance, way: str, words: str) -> tuple[str, str, str, str]:
    took = result.packets[way]
    return (
        words,
        f"{took * 1e6:.2f} us of a processor",
        f"{took / result.packets['bare'] * 100:.0f}%",
        "",
    )


def report(result: Balance) -> tables.Table:
    """Pure."""
    rate = median(vip / bare for vip, bare in zip(result.vip, result.bare, strict=True))
    direct = median(d / bare for d, bare in zip(result.direct, result.bare, strict=True))
    cost = median(many / few for many, few in zip(result.many, result.few, strict=True))
    lost = at_most(result.retransmitted, 1, "1 packet sent again")
    rows = (
        ("TCP between two hosts, bare VXLAN", _rate(result.bare), "100%", ""),
        ("TCP, container to container", _rate(result.direct), f"{direct * 100:.1f}%", ""),
        ("TCP through a VIP", _rate(result.vip), f"{rate * 100:.1f}%", at_least(rate, 0.9, "90%")),
        *(_way(result, *of) for of in WAYS),
        ("a connection, no VIP", seconds(median(result.direct_set_up)), "", ""),
        ("a connection through a VIP, 1 service", seconds(median(result.few)), "100%", ""),
        (
            f"the same beside {SERVICES} services of {ENDPOINTS}",
            seconds(median(result.many)),
            f"{cost * 100:.1f}%",
            at_most(cost, 1.1, "110%"),
        ),
        (f"the table of {SERVICES} services, whole", seconds(result.whole), "", ""),
        (
            f"{CHANGES} changes of endpoints at once",
            seconds(result.at_once),
            "",
            at_most(result.at_once, 2.0, "2 s"),
        ),
        ("the same, each waiting for the one before", seconds(result.changes), "", ""),
        ("an established connection meanwhile", seconds(result.slowest), "slowest answer", lost),
    )
    return tables.Table(
        "Balanced services",
        ("what", "median", "of the reference", "target"),
        rows,
        (
            f"{ROUNDS} rounds by turns; a set-up is the mean of {CONNECTIONS} connections.",
            "A busy agent takes what has changed meanwhile as one change.",
            "One stream of iperf3; both ends share the cores of this machine.",
        ),
    )


def _rate(rates: list[float]) -> str:
    return f"{median(rates) / 1e9:.1f} Gbit/s"
