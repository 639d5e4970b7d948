# SPDX-License-Identifier: Apache-2.0
"""Hosts made of network namespaces, joined by an underlay, for tests of the network.

The test process stays in its own namespace: a socket belongs to the namespace that it was opened
in, so `socket_in` opens one elsewhere and returns at once. What dead test runs left is removed
first.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.cni.netlink import namespaces

ROOT = Path("/run/orc-network-tests")
T = TypeVar("T")


def remove_tree(folder: Path) -> None:
    """Unmount all namespaces below a folder and remove it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and namespaces.exists(path):
            namespaces.remove(path)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder of this process for namespaces and state, gone afterwards."""
    ROOT.mkdir(exist_ok=True)
    for left in ROOT.iterdir():
        if not Path("/proc", left.name).exists():
            remove_tree(left)
    folder = ROOT / str(os.getpid())
    try:
        yield folder
    finally:
        remove_tree(folder)
        with suppress(OSError):  # another run is using it, or two fixtures of this one were
            ROOT.rmdir()


def within(netns: Path | str, action: Callable[[], T]) -> T:
    """Run something short in another network namespace."""
    with namespaces.opened(netns) as descriptor, namespaces.inside(descriptor):
        return action()


def socket_in(netns: Path | str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket of another network namespace, with a short timeout."""
    sock = within(netns, lambda: socket.socket(socket.AF_INET, kind))
    sock.settimeout(3.0)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def reach(
    server: Path | str,
    client: Path | str,
    address: str,
    port: int,
    listen: int = 0,
    source: str = "",
) -> str:
    """Connect from one namespace to a listener in another; return whom the listener saw.

    `listen` is the listener's port where it is not the one that is dialled.
    """
    with socket_in(server) as listener, socket_in(client) as dialler:
        listener.bind(("0.0.0.0", listen or port))
        listener.listen()
        if source:
            dialler.bind((source, 0))
        dialler.connect((address, port))
        accepted, peer = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
            assert dialler.recv(16) == b"hello"
        return str(peer[0])


@dataclass(frozen=True, slots=True)
class NsHost:
    """A host: its namespace, its address on the underlay, its folders."""

    netns: Path
    address: str
    state: Path
    run: Path

    def command(self, *argv: str) -> tuple[str, ...]:
        return ("nsenter", f"--net={self.netns}", *argv)

    @property
    def helper(self) -> tuple[str, ...]:
        return self.command(sys.executable, "-m", "orchestrator.cni.helper")

    def shell(self, *argv: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            self.command(*argv), input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ip(self, *argv: str) -> Any:
        """What `ip -json` prints, an implementation that is not ours."""
        return json.loads(self.shell("ip", "-json", "-details", *argv) or "[]")

    def cni(self, command: str, conf: dict[str, Any], **environment: str) -> tuple[int, Any]:
        """Execute the plugin as a runtime would."""
        done = subprocess.run(
            self.command(sys.executable, "-m", "orchestrator.cni.plugin.protocol"),
            input=json.dumps(conf),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "CNI_COMMAND": command, **environment},
        )
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout) if done.stdout else None


def make_host(folder: Path, name: str, address: str = "192.0.2.11") -> NsHost:
    """A namespace with folders, without a way out."""
    place = folder / name
    host = NsHost(place / "net", address, place / "state", place / "run")
    namespaces.ensure(host.netns)
    return host


def wait_for(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what the kernel does on its own, soon."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "the kernel did not get there in time"
        time.sleep(0.01)


def answers(one: NsHost, two: NsHost) -> bool:
    """Whether a packet between two hosts arrives."""
    with (
        socket_in(two.netns, socket.SOCK_DGRAM) as receiver,
        socket_in(one.netns, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((two.address, 0))
        receiver.settimeout(0.02)
        sender.sendto(b"?", receiver.getsockname())
        try:
            return receiver.recv(1) == b"?"
        except TimeoutError:
            return False


def make_hosts(folder: Path, count: int) -> list[NsHost]:
    """Hosts h1... at 192.0.2.11..., and a router 192.0.2.1 beyond which is 198.51.100.1."""
    folder.mkdir(parents=True)
    router = make_host(folder, "router", "192.0.2.1")
    lines = [
        "link add under type bridge",
        "link set under up",
        "addr add 192.0.2.1/24 dev under",
        "addr add 198.51.100.1/32 dev lo",
    ]
    hosts = [router]
    for number in range(1, count + 1):
        host = make_host(folder, f"h{number}", f"192.0.2.{10 + number}")
        with namespaces.opened(host.netns) as descriptor:
            # A descriptor of this process, under a name that `ip` understands.
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            router.shell(
                "ip", "link", "add", f"h{number}", "type", "veth", "peer", "name", "uplink",
                "netns", path,
            )  # fmt: skip
        lines += [f"link set h{number} master under up"]
        host.shell(
            "ip", "-batch", "-",
            stdin=f"addr add {host.address}/24 dev uplink\n"
            "link set uplink up\nroute add default via 192.0.2.1\n",
        )  # fmt: skip
        hosts.append(host)
    router.shell("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
    for host in hosts[1:]:
        # The kernel may take a second to notice the carrier of a new veth pair.
        wait_for(lambda host=host: answers(router, host))  # type: ignore[misc]
    return hosts
