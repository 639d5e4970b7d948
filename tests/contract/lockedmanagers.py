# SPDX-License-Identifier: Apache-2.0
"""Managers whose key files are locked: real commands, daemons and etcd, on loopback addresses of a
network namespace of its own. Usage: lockedmanagers.py FOLDER"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from managerjoins import ORC, Hosts, eventually

KEYS = {"ca.key", "cluster.key"}


def names(hosts: Hosts, number: int) -> set[str]:
    return {path.name for path in hosts.data(number).iterdir()}


def unlock(hosts: Hosts, key: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ORC, "cluster", "unlock"],
        env=hosts.env,
        input=key + "\n",
        capture_output=True,
        text=True,
        check=False,
    )


def unlock_all(hosts: Hosts, key: str, wanted: int) -> None:
    """Unlock that many managers, as they start to listen."""
    unlocked: set[str] = set()

    def more() -> bool:
        unlocked.update(unlock(hosts, key).stdout.split())
        return len(unlocked) == wanted

    eventually(more)


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts = Hosts(Path(sys.argv[1]))
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    assert hosts.join(2).returncode == 0
    hosts.start(2)
    hosts.await_states(m1="ready", m2="ready")
    note = hosts.folder / "note"
    note.write_text("kept")
    hosts.done("config", "create", "note", note)

    ended = hosts.orc("cluster", "lock")
    key = ended.stdout.strip()
    assert ended.stderr == "", "it waits for the running managers"
    assert not any(names(hosts, number) & KEYS for number in (1, 2))
    former = key
    key = hosts.done("cluster", "unlock-key", "--rotate").strip()
    assert key != former
    eventually(lambda: hosts.orc("cluster", "unlock-key").stderr == "")

    # One of two: the other says what it waits for.
    hosts.power_off(2)
    hosts.start(2)
    eventually(lambda: "is not the key" in unlock(hosts, former).stderr)
    unlock_all(hosts, key, 1)
    hosts.await_states(m1="ready", m2="ready")

    # All have lost power.
    for number in (1, 2):
        hosts.power_off(number)
    for number in (1, 2):
        hosts.start(number)
    eventually(lambda: "is locked; run 'orc cluster unlock'" in hosts.orc("node", "ls").stderr)
    unlock_all(hosts, key, 2)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    hosts.await_states(m1="ready", m2="ready")
    assert "kept" in hosts.done("config", "inspect", "--pretty", "note")

    hosts.done("cluster", "lock", "--off")
    eventually(lambda: all(names(hosts, number) >= KEYS for number in (1, 2)))
    assert all("locked.keys" not in names(hosts, number) for number in (1, 2))


if __name__ == "__main__":
    main()
