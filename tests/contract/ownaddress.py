# SPDX-License-Identifier: Apache-2.0
"""The only manager of a cluster, whose host gets other addresses: real commands, daemon and etcd in
a network namespace of their own. Usage: ownaddress.py FOLDER"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from managerjoins import Hosts, eventually

NAME = "manager.test"


def give(*addresses: str) -> None:
    """Have the host's interface have these addresses, and the name mean the first."""
    subprocess.run(["ip", "-4", "address", "flush", "dev", "link0"], check=True)
    for address in addresses:
        subprocess.run(["ip", "address", "add", f"{address}/24", "dev", "link0"], check=True)
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n{addresses[0]} {NAME}\n")


def stop(hosts: Hosts) -> None:
    hosts.daemons[1].terminate()
    hosts.daemons.pop(1).wait(60)


def is_at(hosts: Hosts, address: str) -> bool:
    listed = hosts.orc("manager", "ls", "--format", "json")
    if listed.returncode != 0:
        return False
    [manager] = json.loads(listed.stdout)
    assert (manager["address"], manager["state"]) == (f"{address}:7420", "ready"), manager
    return True


def presents(hosts: Hosts, address: str) -> None:
    """A browser accepts the certificate for the address."""
    subprocess.run(
        [sys.executable, "-c", ASKED, str(hosts.data(1) / "ca.pem"), address], check=True
    )


ASKED = """
import http.client, ssl, sys
trust = ssl.create_default_context(cafile=sys.argv[1])
connection = http.client.HTTPSConnection(sys.argv[2], 7422, context=trust, timeout=20)
connection.request("GET", "/")
connection.getresponse()
"""


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "hosts").touch()
    subprocess.run(["mount", "--bind", folder / "hosts", "/etc/hosts"], check=True)
    for command in (
        "link set lo up",
        "link add link0 type veth peer name link1",
        "link set link0 up",
        "link set link1 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    hosts = Hosts(folder)
    give("10.9.0.2")
    hosts.done("cluster", "init", "--advertise", "10.9.0.2", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: is_at(hosts, "10.9.0.2"))

    # A node that joins by a name keeps it.
    token = hosts.done("cluster", "token", "worker", "-q").strip()
    node = folder / "node"
    hosts.done("cluster", "join", "--token", token, "--data-dir", node, f"{NAME}:7421")
    known = json.loads((node / "node.json").read_text())["managers"]
    assert known == ["10.9.0.2:7420", f"{NAME}:7420"], known
    hosts.done("context", "update", "--endpoint", NAME)

    # The host gets another address while it is off.
    stop(hosts)
    give("10.9.0.3")
    hosts.start(1)
    eventually(lambda: is_at(hosts, "10.9.0.3"))
    presents(hosts, "10.9.0.3")
    assert "the host has another address" in (folder / "m1.log").read_text()

    # Among two, an operator chooses.
    stop(hosts)
    give("10.9.0.4", "10.9.0.5")
    hosts.start(1)
    assert hosts.daemons.pop(1).wait(60) == 1
    last = (folder / "m1.log").read_text().splitlines()[-1]
    assert "10.9.0.4 (link0), 10.9.0.5 (link0)" in last, last
    assert last.endswith("orc cluster advertise 10.9.0.4"), last
    hosts.done("cluster", "advertise", "--data-dir", hosts.data(1), "10.9.0.4")
    hosts.start(1)
    eventually(lambda: is_at(hosts, "10.9.0.4"))
    presents(hosts, "10.9.0.4")

    # An address that was advertised before the host has it is waited for.
    stop(hosts)
    hosts.done("cluster", "advertise", "--data-dir", hosts.data(1), "10.9.0.6")
    give("10.9.0.7")
    hosts.start(1)
    assert hosts.daemons.pop(1).wait(60) == 1
    give("10.9.0.6")
    hosts.start(1)
    eventually(lambda: is_at(hosts, "10.9.0.6"))


if __name__ == "__main__":
    main()
