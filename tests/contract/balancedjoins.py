# SPDX-License-Identifier: Apache-2.0
"""Joins through a load balancer that takes turns with each connection: real commands, daemons and
HAProxy on loopback addresses of a network and a UTS namespace. Usage: balancedjoins.py FOLDER"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from managerjoins import Hosts, eventually

BALANCER = "127.0.0.9"


@contextmanager
def balancer(folder: Path) -> Iterator[None]:
    settings = folder / "haproxy.cfg"
    parts = [
        "defaults\n  mode tcp\n  balance roundrobin\n  option redispatch\n"
        "  timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n"
    ]
    for port in (7420, 7421):
        parts.append(f"listen port{port}\n  bind {BALANCER}:{port}\n")
        parts += [f"  server m{each} 127.0.0.{each}:{port} check inter 200ms\n" for each in (1, 2)]
    settings.write_text("".join(parts))
    with subprocess.Popen(["/usr/sbin/haproxy", "-db", "-f", settings]) as process:
        try:
            yield
        finally:
            process.terminate()


def node_joins(hosts: Hosts, name: str) -> None:
    socket.sethostname(name)
    token = hosts.done("cluster", "token", "worker", "-q").strip()
    data = hosts.folder / name
    joined = hosts.orc("cluster", "join", "--token", token, "--data-dir", data, f"{BALANCER}:7421")
    assert (joined.returncode, joined.stderr) == (0, ""), joined.stderr
    known = json.loads((data / "node.json").read_text())["managers"]
    assert known[-1] == f"{BALANCER}:7420", known
    assert "127.0.0.1:7420" in known, known


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts = Hosts(Path(sys.argv[1]))
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    joined = hosts.join(2)
    assert joined.returncode == 0, joined.stderr
    hosts.start(2)
    hosts.await_states(m1="ready", m2="ready")
    with balancer(hosts.folder):
        hosts.done("context", "update", "--endpoint", BALANCER)
        for name in ("node1", "node2", "node3"):
            node_joins(hosts, name)
        joined = hosts.join(3, at=f"{BALANCER}:7421")
        assert joined.returncode == 0, joined.stderr
        hosts.start(3)
        hosts.await_states(m1="ready", m2="ready", m3="ready")
        hosts.power_off(2)
        node_joins(hosts, "node4")
        hosts.await_states(m1="ready", m2="down", m3="ready")


if __name__ == "__main__":
    main()
