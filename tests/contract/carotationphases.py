# SPDX-License-Identifier: Apache-2.0
"""The leader of three managers is killed in one phase of a rotation of the CA: real commands,
daemons and etcd, on loopback addresses of a network namespace of its own.
Usage: carotationphases.py FOLDER PHASE"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from carotation import certificates, is_over, status
from managerjoins import Hosts, eventually

NUMBERS = (1, 2, 3)


def reached(phase: str, data: Path) -> Callable[[], bool]:
    """Whether the manager with this data folder has reached a phase of a rotation that begins now,
    by the file that it writes then."""
    ca, key, own = data / "ca.pem", data / "ca.key", data / "manager.pem"
    former_ca, former_key, former_own = ca.read_text(), key.read_text(), own.read_text()
    return {
        "begun": lambda: True,
        "trusting": lambda: certificates(ca) == 2,
        "signing": lambda: key.read_text() != former_key,
        "renewed": lambda: own.read_text() != former_own,
        "ended": lambda: certificates(ca) == 1 and ca.read_text() != former_ca,
    }[phase]


def leader(hosts: Hosts) -> int:
    """The number of the manager that leads."""

    def ask() -> int:
        rows = hosts.managers().items()
        return next((int(address[-1]) for address, row in rows if row["leader"]), 0)

    return eventually(ask)


def kill_the_leader(hosts: Hosts, phase: str) -> int:
    """Begin a rotation, and SIGKILL the leader and its etcd when it reaches a phase; its number."""
    number = leader(hosts)
    is_reached = reached(phase, hosts.data(number))
    hosts.done("cluster", "ca", "rotate")
    until = time.monotonic() + 120
    while not is_reached():
        assert time.monotonic() < until, f"{phase} was not reached"
        if phase == "ended":
            hosts.orc("manager", "ls")  # an admin renews with a command
        time.sleep(0.005)
    hosts.power_off(number)
    return number


def joins(hosts: Hosts, name: str, token: str, number: int) -> str:
    """Why a node cannot join at a manager; empty if it can. It is removed again: a rotation waits
    for nodes that are not connected."""
    target = f"127.0.0.{number}:7421"
    ended = hosts.orc(
        "cluster", "join", "--token", token, "--data-dir", hosts.folder / name, target
    )
    if ended.returncode != 0:
        return str(ended.stderr)
    for row in json.loads(hosts.done("node", "ls", "--format", "json")):
        hosts.done("node", "rm", "--force", row["id"])
    return ""


def is_stale(refusal: str) -> bool:
    """Whether a token is refused since the CA was rotated, by a manager that knows the former CA or
    by the host, which finds another CA."""
    return "before a rotation of the cluster's CA" in refusal or "CA was rotated since" in refusal


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts, phase = Hosts(Path(sys.argv[1])), sys.argv[2]
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    for number in NUMBERS[1:]:
        assert hosts.join(number).returncode == 0
        hosts.start(number)
        hosts.await_states(**{f"m{each}": "ready" for each in range(1, number + 1)})
    first = status(hosts)["digest"]
    former = hosts.done("cluster", "token", "worker", "-q").strip()

    killed = kill_the_leader(hosts, phase)
    eventually(lambda: leader(hosts) != killed)
    other = next(number for number in NUMBERS if number != killed)
    if phase in ("begun", "trusting"):
        # The rotation waits for the manager that is down, so the former CA still signs.
        assert status(hosts)["phase"] == "trusting", status(hosts)
        refusal = joins(hosts, "early", former, other)
        assert refusal == "", refusal
    else:
        refusal = joins(hosts, "early", former, other)
        assert is_stale(refusal), refusal

    hosts.start(killed)
    eventually(lambda: is_over(hosts))
    assert status(hosts)["digest"] != first
    hosts.await_states(m1="ready", m2="ready", m3="ready")
    eventually(
        lambda: (
            len({(hosts.data(number) / "ca.pem").read_text() for number in NUMBERS}) == 1
            and certificates(hosts.data(1) / "ca.pem") == 1
        )
    )
    keys = {(hosts.data(number) / "ca.key").read_text() for number in NUMBERS}
    assert len(keys) == 1, "all managers sign with the new CA"
    token = hosts.done("cluster", "token", "worker", "-q").strip()
    assert token != former
    assert is_stale(joins(hosts, "former", former, killed))
    assert joins(hosts, "new", token, killed) == ""


if __name__ == "__main__":
    main()
