# SPDX-License-Identifier: Apache-2.0
"""An encrypted network between two machines that share nothing but a wire.

Started as `pytest tests/vm/between_hosts.py` by `python -m tests.vm encryption`: the manager and
the commands are on this machine, in a network namespace, so that only a node's agent and kernel are
emulated. What is on the wire is what QEMU's processes send each other.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from devcluster import ORC, Cluster, eventually

from tests.freeports import free_ports

from .hand import Hand
from .kernel import cache_folder, ensure_kernel
from .machine import (
    CABLE,
    GROUP,
    LOOPBACK,
    NETWORK,
    OUTSIDE,
    VXLAN,
    WIREGUARD,
    Machine,
    Wire,
)

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).parents[2]
STATE = Path("/var/lib/orc-dev/agent")
PORT, ECHO = 7777, str(Path(__file__).with_name("echo.py"))
MARK = b"the plain text of a container"
AGENT_LOG = "/tmp/agent.log"
SUPERVISE = 'while :; do "$@"; sleep 1; done'
VXLAN_PORT, WIREGUARD_PORT = 4789, 51840


@dataclass
class Node:
    """A virtual machine, and its container on both networks."""

    number: int
    hand: Hand
    agent: int = 0
    task: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"vm{self.number}"

    def start_agent(self) -> None:
        """`agent` starts it again whenever it ends, as systemd does on a host."""
        argv = [ORC, "agent", "--data-dir", str(STATE)]
        self.agent = self.hand.start(AGENT_LOG, "sh", "-c", SUPERVISE, "sh", *argv)

    def kill_agent(self) -> None:
        """SIGKILL, and nobody starts it again."""
        kill = 'kill -STOP "$1"; pkill -9 -P "$1"; kill -9 "$1"'
        self.hand.run("sh", "-c", kill, "sh", str(self.agent))

    def inside(self, *argv: str) -> list[str]:
        """A command in its container's network."""
        return ["nsenter", f"--net=/proc/{self.task['pid']}/ns/net", *argv]

    def tunnels(self) -> list[tuple[str, int]]:
        """Name and MTU of its WireGuard devices."""
        links = json.loads(
            self.hand.run("ip", "-json", "link", "show", "type", "wireguard") or "[]"
        )
        return [(link["ifname"], link["mtu"]) for link in links if link]


@pytest.fixture(scope="module")
def segment() -> int:
    return free_ports()


@pytest.fixture(scope="module")
def booted(segment: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """Two machines with nothing on them."""
    scratch = tmp_path_factory.mktemp("machines")
    kernel = ensure_kernel("trixie", cache_folder())
    with ExitStack() as stack:
        made = []
        for number in (1, 2):
            wire = Wire(number, segment, free_ports())
            modules = (*NETWORK, *VXLAN, *WIREGUARD, *CABLE)
            machine = Machine(kernel, "v2", modules, wire=wire)
            argv = [sys.executable, "-m", "tests.vm.hand"]
            stack.enter_context(machine.beside(argv, REPOSITORY, scratch / f"{number}.log"))
            made.append(Node(number, Hand(wire.door)))
        for node in made:
            eventually(node.hand.answers, within=300, every=1)
        yield made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A manager, and nothing yet that runs containers."""
    home = tmp_path_factory.mktemp("home")
    env = {**os.environ, "XDG_CONFIG_HOME": str(home), "HOME": str(home), "COLUMNS": "200"}
    cluster = Cluster("vm", env)
    data = str(home / "manager")
    cluster.orc("cluster", "init", "--advertise", OUTSIDE, "--data-dir", data)
    argv = [ORC, "manager", "--data-dir", data, "--node-timeout", "180"]
    with (
        (home / "manager.log").open("w") as log,
        subprocess.Popen(argv, env=env, stdout=log, stderr=log) as manager,
    ):
        try:
            eventually(lambda: cluster.orc("node", "ls", ok=False).returncode == 0, within=60)
            yield cluster
        finally:
            manager.terminate()


@pytest.fixture(scope="module")
def nodes(
    cluster: Cluster, booted: list[Node], request: pytest.FixtureRequest
) -> Iterator[list[Node]]:
    """A node on each machine, with a container on two networks, of which one is encrypted."""
    told = cluster.orc("cluster", "token", "worker").stdout
    token = next(word for word in told.split() if word.startswith("ORC-1-"))
    try:
        for node in booted:
            node.hand.run(
                ORC, "cluster", "join", "--token", token, "--address", f"10.99.0.{node.number}",
                "--data-dir", str(STATE), f"{OUTSIDE}:7421",
            )  # fmt: skip
            node.start_agent()
        states = lambda: [node["state"] for node in cluster.nodes().values()]  # noqa: E731
        eventually(lambda: states() == ["ready"] * 2, within=900, every=1)
        for name in cluster.nodes():
            cluster.orc("node", "update", "--allow", "host-files", name)
        made = cluster.orc("network", "create", "--opt", "encrypted", "secret")
        assert made.stderr == "", "every node can encrypt"
        cluster.orc("network", "create", "open")
        cluster.orc(
            "service", "create", "-d", "--name", "box", "--mode", "global", "--rootfs", "host",
            "--network", "secret", "--network", "open", "busybox", "sleep", "1000000",
        )  # fmt: skip
        for task in eventually(lambda: _both(cluster), within=900, every=1):
            next(node for node in booted if node.name == task["node"]).task = task
    except BaseException:
        _show_logs(request, booted, cluster)
        raise
    yield booted
    if request.session.testsfailed:
        _show_logs(request, booted, cluster)


def _both(cluster: Cluster) -> list[dict[str, Any]]:
    tasks = [task for task in cluster.tasks("box") if task["state"] == "running"]
    return tasks if len(tasks) == 2 else []


def _show_logs(request: pytest.FixtureRequest, made: list[Node], cluster: Cluster) -> None:
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        for node in made:
            print(f"\n{node.name}:", node.hand.run("tail", "-n", "40", AGENT_LOG, ok=False))
            for what in ("ip addr", "ip -6 route", "ip -s link show type wireguard", "bridge fdb"):
                print(node.hand.run(*what.split(), ok=False))
        print(cluster.orc("node", "ls", ok=False).stdout)
        print(cluster.orc("service", "ps", "box", "--no-trunc", ok=False).stdout)


class Tap:
    """What passes on the wire between the machines while it is watched."""

    def __init__(self, segment: int) -> None:
        self._segment = segment
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.frames: list[bytes] = []

    def __enter__(self) -> Tap:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((GROUP, self._segment))
        member = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(LOOPBACK))
        self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        self._sock.settimeout(0.2)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while True:
            try:
                self.frames.append(self._sock.recv(65535))
            except TimeoutError:
                if self._over.is_set():
                    return

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sock.close()

    def udp_ports(self) -> set[int]:
        """Of IPv4, the ports that packets were sent to."""
        return {
            int.from_bytes(frame[36:38], "big")
            for frame in self.frames
            if frame[12:14] == b"\x08\0" and frame[23] == socket.IPPROTO_UDP
        }


SAY = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
sock.sendto(sys.argv[2].encode(), (sys.argv[1], int(sys.argv[3])))
try:
    print(sock.recv(2048).decode(), end="")
except (TimeoutError, ConnectionRefusedError):
    pass
"""


def said(nodes: list[Node], network: str) -> bytes:
    """What comes back of a text that the first container sends to the second one's echo."""
    one, two = nodes
    words = two.task["addresses"][network], MARK.decode(), str(PORT)
    return one.hand.run(*one.inside(sys.executable, "-IS", "-c", SAY, *words)).encode()


@pytest.fixture(scope="module")
def echo(nodes: list[Node]) -> None:
    """The second container answers on both networks."""
    two = nodes[1]
    two.hand.start("/tmp/echo.log", *two.inside(sys.executable, ECHO, "serve", str(PORT)))
    for network in ("open", "secret"):
        eventually(lambda network=network: said(nodes, network) == MARK, within=300, every=1)  # type: ignore[misc]


@pytest.mark.usefixtures("echo")
def test_encrypted_traffic_is_unreadable_on_the_wire(nodes: list[Node], segment: int) -> None:
    with Tap(segment) as tap:
        assert said(nodes, "open") == MARK
    assert any(MARK in frame for frame in tap.frames), "the watcher sees what can be seen"
    assert VXLAN_PORT in tap.udp_ports()
    with Tap(segment) as tap:
        assert said(nodes, "secret") == MARK
    assert not any(MARK in frame for frame in tap.frames)
    assert tap.udp_ports() == {WIREGUARD_PORT}
    for node in nodes:
        assert node.tunnels() == [("orcwg0", 1440)]
        mode = node.hand.run("stat", "-c", "%a", str(STATE / "network/tunnel.json"))
        assert mode.strip() == "600"


class Stream:
    """Datagrams there and back between the containers, for as long as the context lasts."""

    def __init__(self, nodes: list[Node]) -> None:
        self._one, two = nodes
        address = two.task["addresses"]["secret"]
        argv = [sys.executable, ECHO, "ask", address, str(PORT), "0.05", "/tmp/echo.end"]
        self._argv = self._one.inside(*argv)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        found = json.loads(self._one.hand.run(*self._argv))
        self.sent, self.lost = found["sent"], found["lost"]

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._one.hand.run("touch", "/tmp/echo.end")
        self._thread.join()


def public(cluster: Cluster, name: str) -> list[str]:
    (node,) = cluster.json("node", "inspect", name)
    return [key["public"] for key in node["tunnel_keys"]]


def await_new_key(cluster: Cluster, name: str, before: str) -> float:
    """Seconds until the node has another key, and that one alone."""
    began = time.monotonic()

    def over() -> bool:
        keys = public(cluster, name)
        return len(keys) == 1 and keys[0] != before

    eventually(over, within=600, every=1)
    return time.monotonic() - began


@pytest.mark.usefixtures("echo")
def test_keys_are_replaced_and_no_packet_is_lost(
    cluster: Cluster, nodes: list[Node], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {node.name: public(cluster, node.name)[0] for node in nodes}
    took = []
    with Stream(nodes) as stream:
        for name in ("vm2", "vm1"):
            cluster.orc("node", "update", "--rotate-key", name)
            took.append(await_new_key(cluster, name, before[name]))
    with capsys.disabled():
        seconds = ", ".join(f"{each:.0f} s" for each in took)
        print(f"\n{stream.sent} datagrams there and back, {len(stream.lost)} lost; {seconds} a key")
    assert stream.lost == []
    assert stream.sent > 500
    assert [node.tunnels() for node in nodes] == [[("orcwg1", 1440)]] * 2


@pytest.mark.usefixtures("echo")
def test_a_peer_that_was_started_again_is_reached_again(
    cluster: Cluster, nodes: list[Node]
) -> None:
    """Its agent is killed, and what a reboot takes from the kernel is taken."""
    two = nodes[1]
    before = public(cluster, "vm2")
    two.kill_agent()
    assert said(nodes, "secret") == MARK, "an agent that is killed changes no packet's way"
    for name, _ in two.tunnels():
        two.hand.run("ip", "link", "del", name)
    assert said(nodes, "secret") == b""
    two.start_agent()
    eventually(lambda: said(nodes, "secret") == MARK, within=600, every=1)
    assert public(cluster, "vm2") == before


@pytest.mark.usefixtures("echo")
def test_the_rate_beside_that_of_a_plain_network(
    nodes: list[Node], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is demanded of it: the processor is emulated, and what encrypts is its work."""
    one, two = nodes
    two.hand.start("/tmp/iperf.log", *two.inside("iperf3", "-s"))
    rates: dict[str, list[float]] = {"open": [], "secret": []}
    for network in ("open", "secret") * 2:
        address = two.task["addresses"][network]
        rates[network].append(eventually(lambda to=address: _rate(one, to), within=300, every=1))  # type: ignore[misc]
    plain, encrypted = (max(rates[network]) / 1e6 for network in ("open", "secret"))
    with capsys.disabled():
        print(
            f"\nplain {plain:.1f} Mbit/s, encrypted {encrypted:.1f} Mbit/s:"
            f" {encrypted / plain:.0%} (the processor is emulated)"
        )
    assert encrypted > 0


def _rate(node: Node, address: str) -> float:
    found = json.loads(node.hand.run(*node.inside("iperf3", "-J", "-t", "4", "-c", address)))
    return float(found["end"]["sum_received"]["bits_per_second"])


def test_tunnels_are_removed_with_the_last_task(cluster: Cluster, nodes: list[Node]) -> None:
    cluster.orc("service", "rm", "-d", "box")

    def gone(node: Node) -> Callable[[], bool]:
        return lambda: node.tunnels() == [] and public(cluster, node.name) == []

    for node in nodes:
        eventually(gone(node), within=300, every=1)
    cluster.orc("network", "rm", "secret", "open")
