"""An encrypted network between two machines that share nothing but a wire.

Started as `pytest tests/vm/between_hosts.py`, inside a virtual machine that is the first of two:
it has the manager and a node, the second one has a node.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from devcluster import ORC, Cluster, eventually

from .hand import Hand, obey

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(1800)]

STATE = Path("/var/lib/orc-dev")
HERE, THERE = "10.99.0.1", "10.99.0.2"
PORT, ECHO = 7777, str(Path(__file__).with_name("echo.py"))
MARK = b"the plain text of a container"
MANAGER_LOG, AGENT_LOG = "/tmp/manager.log", "/tmp/agent.log"
ETH_ALL = 3
VXLAN, WIREGUARD = 4789, (51840, 51841)


class Patient(Cluster):
    """A command may take minutes where the processor is emulated, and by one that is busy."""

    def orc(
        self, *arguments: str, ok: bool = True, within: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        return super().orc(*arguments, ok=ok, within=within)


@dataclass
class Machine:
    """One of the two, and its container on both networks."""

    name: str
    hand: Hand
    agent: int = 0
    task: dict[str, Any] = field(default_factory=dict)

    def start_agent(self) -> None:
        argv = [ORC, "agent", "--data-dir", str(STATE / "agent")]
        self.agent = self.hand.start(AGENT_LOG, *argv)

    def inside(self, *argv: str) -> list[str]:
        """A command in its container's network."""
        return ["nsenter", f"--net=/proc/{self.task['pid']}/ns/net", *argv]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A manager here, and nothing yet that runs containers."""
    threading.Thread(target=obey, args=(HERE,), daemon=True).start()
    home = str(tmp_path_factory.mktemp("home"))
    env = {**os.environ, "XDG_CONFIG_HOME": home, "HOME": home, "COLUMNS": "200"}
    cluster = Patient("vm", env)
    data = str(STATE / "manager")
    cluster.orc("cluster", "init", "--advertise", HERE, "--data-dir", data)
    argv = [ORC, "manager", "--data-dir", data, "--node-timeout", "180"]
    with (
        Path(MANAGER_LOG).open("w") as log,
        subprocess.Popen(argv, env=env, stdout=log, stderr=log) as manager,
    ):
        try:
            answers = lambda: cluster.orc("node", "ls", ok=False).returncode == 0  # noqa: E731
            eventually(answers, within=300, every=1)
            yield cluster
        finally:
            manager.terminate()


@pytest.fixture(scope="module")
def machines(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[list[Machine]]:
    """Both, with a node each and a container on two networks, of which one is encrypted."""
    made = [Machine("vm1", Hand(HERE)), Machine("vm2", Hand(THERE))]
    told = cluster.orc("cluster", "token", "worker").stdout
    token = next(word for word in told.split() if word.startswith("ORC-1-"))
    eventually(lambda: made[1].hand.run("true") == "", within=300, every=1)
    for machine in made:
        machine.hand.run(
            ORC, "cluster", "join", "--token", token, "--address", machine.hand.address,
            "--data-dir", str(STATE / "agent"), f"{HERE}:7421",
        )  # fmt: skip
        machine.start_agent()
    try:
        eventually(
            lambda: [node["state"] for node in cluster.nodes().values()] == ["ready"] * 2,
            within=900,
            every=10,
        )
        made_net = cluster.orc("network", "create", "--opt", "encrypted", "secret")
        assert made_net.stderr == "", "every node can encrypt"
        cluster.orc("network", "create", "open")
        cluster.orc(
            "service", "create", "-d", "--name", "box", "--mode", "global", "--rootfs", "host",
            "--network", "secret", "--network", "open", "busybox", "sleep", "1000000",

        )  # fmt: skip
        for task in eventually(lambda: _both(cluster), within=900, every=10):
            next(each for each in made if each.name == task["node"]).task = task
    except BaseException:
        _show_logs(request, made, cluster)
        raise
    yield made
    if request.session.testsfailed:
        _show_logs(request, made, cluster)


def _both(cluster: Cluster) -> list[dict[str, Any]]:
    tasks = [task for task in cluster.tasks("box") if task["state"] == "running"]
    return tasks if len(tasks) == 2 else []


def _show_logs(request: pytest.FixtureRequest, made: list[Machine], cluster: Cluster) -> None:
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        for machine in made:
            print(f"\n{machine.name}:", machine.hand.run("tail", "-n", "40", AGENT_LOG))
            for what in ("addr", "-6 route", "-s link show type wireguard", "fdb"):
                argv = ["bridge", "fdb"] if what == "fdb" else ["ip", *what.split()]
                print(machine.hand.run(*argv, ok=False))
        print(*Path(MANAGER_LOG).read_text().splitlines()[-20:], sep="\n")
        print(cluster.orc("service", "ps", "box", ok=False).stdout)


class Wire:
    """What passes this machine's cable while it is watched, in a thread."""

    def __enter__(self) -> Wire:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL))
        self._sock.bind(("eth0", ETH_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._sock.settimeout(0.2)
        self._over = threading.Event()
        self.frames: list[bytes] = []
        self._thread = threading.Thread(target=self._watch)
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


def said(machines: list[Machine], network: str) -> bytes:
    """What comes back of a text that the first container sends to the second one's echo."""
    one, two = machines
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)\n"
        "s.sendto(sys.argv[2].encode(), (sys.argv[1], int(sys.argv[3])))\n"
        "print(s.recv(2048).decode(), end='')\n"
    )
    address = two.task["addresses"][network]
    argv = one.inside(sys.executable, "-c", code, address, MARK.decode(), str(PORT))
    done = subprocess.run(argv, capture_output=True, check=False)
    return done.stdout


@pytest.fixture(scope="module")
def echo(machines: list[Machine]) -> None:
    """The second container answers on both networks."""
    two = machines[1]
    two.hand.start("/tmp/echo.log", *two.inside(sys.executable, ECHO, "serve", str(PORT)))
    for network in ("open", "secret"):
        eventually(lambda network=network: said(machines, network) == MARK, within=300, every=1)  # type: ignore[misc]


@pytest.mark.usefixtures("echo")
def test_nothing_of_it_can_be_read_on_the_wire(machines: list[Machine]) -> None:
    with Wire() as wire:
        assert said(machines, "open") == MARK
    assert any(MARK in frame for frame in wire.frames), "the watcher sees what can be seen"
    assert VXLAN in wire.udp_ports()
    with Wire() as wire:
        assert said(machines, "secret") == MARK
    assert not any(MARK in frame for frame in wire.frames)
    assert wire.udp_ports() == {WIREGUARD[0]}
    for machine in machines:
        links = json.loads(machine.hand.run("ip", "-json", "link", "show", "type", "wireguard"))
        assert [(link["ifname"], link["mtu"]) for link in links] == [("orcwg0", 1440)]
        mode = machine.hand.run("stat", "-c", "%a", str(STATE / "agent/network/tunnel.json"))
        assert mode.strip() == "600"


class Stream:
    """Datagrams there and back between the containers, for as long as the context lasts."""

    def __init__(self, machines: list[Machine], end: Path) -> None:
        one, two = machines
        address = two.task["addresses"]["secret"]
        self._argv = one.inside(sys.executable, ECHO, "ask", address, str(PORT), "0.02", str(end))
        self._end = end

    def __enter__(self) -> Stream:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.touch()
        found = json.loads(self._process.communicate(timeout=120)[0])
        self.sent, self.lost = found["sent"], found["lost"]


def public(cluster: Cluster, name: str) -> list[str]:
    (node,) = cluster.json("node", "inspect", name)
    return [key["public"] for key in node["tunnel_keys"]]


def await_new_key(cluster: Cluster, name: str, before: str) -> float:
    """Seconds until the node has another key, and that one alone."""
    began = time.monotonic()

    def over() -> bool:
        keys = public(cluster, name)
        return len(keys) == 1 and keys[0] != before

    eventually(over, within=600, every=2)
    return time.monotonic() - began


@pytest.mark.usefixtures("echo")
def test_keys_are_replaced_and_no_packet_is_lost(
    cluster: Cluster, machines: list[Machine], tmp_path: Path
) -> None:
    before = {machine.name: public(cluster, machine.name)[0] for machine in machines}
    took = []
    with Stream(machines, tmp_path / "end") as stream:
        for name in ("vm2", "vm1"):
            cluster.orc("node", "update", "--rotate-key", name)
            took.append(await_new_key(cluster, name, before[name]))
    print(f"{stream.sent} datagrams there and back; {', '.join(f'{s:.0f} s' for s in took)} a key")
    assert stream.lost == []
    assert stream.sent > 500
    for machine in machines:
        links = json.loads(machine.hand.run("ip", "-json", "link", "show", "type", "wireguard"))
        assert [link["ifname"] for link in links] == ["orcwg1"]


@pytest.mark.usefixtures("echo")
def test_a_peer_that_was_started_again_is_reached_again(
    cluster: Cluster, machines: list[Machine]
) -> None:
    """Its agent is killed, and what a reboot takes from the kernel is taken."""
    two = machines[1]
    before = public(cluster, "vm2")
    two.hand.run("kill", "-9", str(two.agent))
    assert said(machines, "secret") == MARK, "an agent that is killed changes no packet's way"
    two.hand.run("ip", "link", "del", "orcwg1")
    assert said(machines, "secret") == b""
    two.start_agent()
    eventually(lambda: said(machines, "secret") == MARK, within=300, every=1)
    assert public(cluster, "vm2") == before


@pytest.mark.usefixtures("echo")
def test_the_rate_beside_that_of_a_plain_network(machines: list[Machine]) -> None:
    """Nothing is demanded of it: the processor is emulated, and what encrypts is its work."""
    one, two = machines
    two.hand.start("/tmp/iperf.log", *two.inside("iperf3", "-s"))
    rates = {"open": [], "secret": []}  # type: dict[str, list[float]]
    for network in ("open", "secret") * 2:
        argv = one.inside("iperf3", "-J", "-t", "4", "-c", two.task["addresses"][network])
        rates[network].append(eventually(lambda argv=argv: _rate(argv), within=120, every=2))  # type: ignore[misc]
    plain, encrypted = (max(rates[network]) / 1e6 for network in ("open", "secret"))
    print(
        f"plain {plain:.0f} Mbit/s, encrypted {encrypted:.0f} Mbit/s:"
        f" {encrypted / plain:.0%} (the processor is emulated)"
    )
    assert encrypted > 0


def _rate(argv: list[str]) -> float:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])


def test_the_last_task_takes_the_tunnels_along(cluster: Cluster, machines: list[Machine]) -> None:
    cluster.orc("service", "rm", "box")

    def gone(machine: Machine) -> Callable[[], bool]:
        return lambda: not machine.hand.run("ip", "link", "show", "type", "wireguard")

    for machine in machines:
        eventually(gone(machine), within=300, every=1)
        eventually(lambda machine=machine: public(cluster, machine.name) == [], within=60, every=1)  # type: ignore[misc]
    cluster.orc("network", "rm", "secret", "open")
