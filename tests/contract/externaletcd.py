# SPDX-License-Identifier: Apache-2.0
"""The life of managers on an external etcd: real commands, daemons and etcd, on loopback addresses
of a network namespace of its own. Usage: externaletcd.py FOLDER"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from carotation import certificates, is_over
from managerjoins import Hosts, eventually

from orchestrator.manager.store.etcd_member import EtcdMember


def joined(hosts: Hosts) -> None:
    """A second manager, which runs no etcd and reads what the first one has written."""
    file = hosts.folder / "app.conf"
    file.write_text("answer = 42\n")
    hosts.done("config", "create", "app.conf", file)
    ended = hosts.join(2)
    assert ended.returncode == 0, ended.stderr
    assert "external etcd: start it with the same --etcd-… flags" in ended.stdout, ended.stdout
    hosts.start(2)
    hosts.await_states(m1="ready", m2="ready")
    for number in (1, 2):
        assert not (hosts.data(number) / "etcd").exists()


def the_second_serves_alone(hosts: Hosts) -> None:
    hosts.power_off(1)
    hosts.await_states(m1="down", m2="ready")
    # It is encrypted in the store: the join has brought the key.
    assert "answer = 42" in hosts.done("config", "inspect", "app.conf")
    hosts.done("network", "create", "without-m1")
    hosts.start(1)
    hosts.await_states(m1="ready", m2="ready")


def the_ca_rotates(hosts: Hosts) -> None:
    hosts.done("cluster", "ca", "rotate")
    hosts.power_off(1)
    hosts.start(1)
    eventually(lambda: is_over(hosts))
    for number in (1, 2):
        eventually(lambda number=number: certificates(hosts.data(number) / "ca.pem") == 1)
    hosts.await_states(m1="ready", m2="ready")


def another_address(hosts: Hosts) -> None:
    """A manager whose address changes is found again, by the other one and by a client."""
    hosts.daemons[2].terminate()
    hosts.daemons.pop(2).wait(60)
    hosts.done("cluster", "advertise", "--data-dir", hosts.data(2), "127.0.0.4")
    hosts.start(2)
    hosts.await_states(m1="ready", m4="ready")
    hosts.power_off(1)
    hosts.await_states(m1="down", m4="ready")
    hosts.start(1)
    hosts.await_states(m1="ready", m4="ready")


def removed_and_left(hosts: Hosts) -> None:
    ended = hosts.join(3)
    assert ended.returncode == 0, ended.stderr
    hosts.start(3)
    hosts.await_states(m1="ready", m3="ready", m4="ready")
    hosts.done("manager", "rm", "127.0.0.3")
    assert hosts.daemons.pop(3).wait(60) == 1
    assert "this manager was removed" in (hosts.folder / "m3.log").read_text()
    assert not (hosts.data(3) / "ca.key").exists()
    hosts.done("cluster", "leave", "--data-dir", hosts.data(2))
    assert hosts.daemons.pop(2).wait(60) in (0, 1)
    hosts.await_states(m1="ready")
    said = hosts.refused("manager", "rm", "127.0.0.1")
    assert "the only manager" in said, said


def scenario(hosts: Hosts) -> None:
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    joined(hosts)
    the_second_serves_alone(hosts)
    the_ca_rotates(hosts)
    another_address(hosts)
    removed_and_left(hosts)


async def with_etcd(folder: Path) -> None:
    async with EtcdMember(folder / "etcd") as etcd:
        tls = etcd.tls
        flags = ("--etcd-endpoints", ",".join(etcd.endpoints), "--etcd-cacert", str(tls.ca))
        flags += ("--etcd-cert", str(tls.cert), "--etcd-key", str(tls.key))
        await asyncio.to_thread(scenario, Hosts(folder, flags))


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    asyncio.run(with_etcd(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
