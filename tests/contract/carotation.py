# SPDX-License-Identifier: Apache-2.0
"""Rotation of the CA of two managers: real commands, daemons and etcd, on loopback addresses of a
network namespace of its own. Usage: carotation.py FOLDER"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from managerjoins import Hosts, eventually, peer_answers


def status(hosts: Hosts) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hosts.done("cluster", "ca", "status", "--format", "json"))
    return found


def is_over(hosts: Hosts) -> bool:
    ended = hosts.orc("cluster", "ca", "status", "--format", "json")
    return ended.returncode == 0 and json.loads(ended.stdout)["phase"] == "idle"


def certificates(path: Path) -> int:
    return path.read_text().count("BEGIN CERTIFICATE")


def is_new_everywhere(hosts: Hosts) -> bool:
    """Whether all managers trust one CA, and meet with certificates of it."""
    roots = {(hosts.data(number) / "ca.pem").read_text() for number in (1, 2)}
    return len(roots) == 1 and all(
        certificates(hosts.data(number) / "ca.pem") == 1 for number in (1, 2)
    )


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts = Hosts(Path(sys.argv[1]))
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    assert hosts.join(2).returncode == 0
    hosts.start(2)
    hosts.await_states(m1="ready", m2="ready")
    first, token = status(hosts)["digest"], hosts.done("cluster", "token", "worker", "-q")

    hosts.done("cluster", "ca", "rotate")
    eventually(lambda: is_over(hosts))
    assert status(hosts)["digest"] != first
    assert hosts.done("cluster", "token", "worker", "-q") != token
    eventually(lambda: is_new_everywhere(hosts))
    hosts.await_states(m1="ready", m2="ready")
    for address in ("127.0.0.1", "127.0.0.2"):
        eventually(lambda address=address: peer_answers(address, hosts.data(1), "manager"))

    # Managers lose power again and again while the CA is rotated.
    second = status(hosts)["digest"]
    hosts.done("cluster", "ca", "rotate")
    for number in (2, 1, 2, 1):
        hosts.power_off(number)
        hosts.start(number)
        eventually(lambda: hosts.orc("cluster", "ca", "status").returncode == 0)
    eventually(lambda: is_over(hosts))
    assert status(hosts)["digest"] not in (first, second)
    eventually(lambda: is_new_everywhere(hosts))
    hosts.await_states(m1="ready", m2="ready")


if __name__ == "__main__":
    main()
