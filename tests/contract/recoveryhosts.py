# SPDX-License-Identifier: Apache-2.0
"""A cluster of three managers loses two, and goes on with the third: real commands, daemons and
etcd, on loopback addresses of a network namespace of its own. Usage: recoveryhosts.py FOLDER"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from managerjoins import Hosts, eventually

from orchestrator.backups.archive import unpack
from orchestrator.backups.recipients import decrypt_with


def every_manager_backs_up(hosts: Hosts) -> None:
    identity, folder = hosts.folder / "identity", hosts.folder / "backups"
    made = subprocess.run(
        ["age-keygen", "-o", str(identity)], check=True, capture_output=True, text=True
    )
    recipient = made.stderr.split()[-1]
    wrong = ("cluster", "backup", "--every", "6h", "--recipient", "age1wrong", folder)
    assert "nothing was changed: cannot encrypt to the recipient" in hosts.refused(*wrong)
    schedule = ("--every", "6h", "--keep", "3", "--recipient", recipient)
    said = hosts.done("cluster", "backup", *schedule, folder)
    rows = json.loads(hosts.done("cluster", "backups", "--format", "json"))
    assert [row["state"] for row in rows] == ["ok"] * 3, rows
    files = {Path(row["file"]) for row in rows}
    assert files == set(folder.rglob("*.orcbackup")), said
    # All of them have the same hostname here.
    assert len({file.parent for file in files}) == 3
    for file in files:
        opened = decrypt_with(file.read_bytes(), identity)
        assert unpack(opened).manifest.keys > 0
    assert "every 6h" in hosts.done("cluster", "info")


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts = Hosts(Path(sys.argv[1]))
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    for number in (2, 3):
        joined = hosts.join(number)
        assert joined.returncode == 0, joined.stderr
        hosts.start(number)
        hosts.await_states(**{f"m{each}": "ready" for each in range(1, number + 1)})
    hosts.done("network", "create", "before")
    # Each member has it, not just a quorum, which need not include the survivor.
    eventually(lambda: all(row["lag"] == 0 for row in hosts.managers().values()))
    every_manager_backs_up(hosts)
    recover = ("cluster", "recover", "--force-new-cluster", "--data-dir", hosts.data(1))
    assert "another manager runs" in hosts.refused(*recover)
    for number in (1, 2, 3):
        hosts.power_off(number)
    said = hosts.done(*recover)
    assert "is the only one" in said, said
    hosts.done("cluster", "admin", "--data-dir", hosts.data(1))
    hosts.start(1)
    hosts.await_states(m1="ready")
    hosts.done("network", "create", "after")
    names = {row["name"] for row in json.loads(hosts.done("network", "ls", "--format", "json"))}
    assert names == {"bridge", "default", "before", "after"}, names
    [row] = json.loads(hosts.done("cluster", "backups", "--format", "json"))
    assert row["state"] == "ok", row
    # The cluster grows again.
    joined = hosts.join(4)
    assert joined.returncode == 0, joined.stderr
    hosts.start(4)
    hosts.await_states(m1="ready", m4="ready")


if __name__ == "__main__":
    main()
