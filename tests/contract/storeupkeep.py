# SPDX-License-Identifier: Apache-2.0
"""A database that grows, is full and has room again: three managers with a small quota, real etcd,
on loopback addresses of a network namespace of its own. Usage: storeupkeep.py FOLDER"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from managerjoins import ORC, Hosts, etcd_of, eventually

from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.kv import Delete, Put, StoreFull

QUOTA = "16m"
FILLER = "/filler/"
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


class SmallHosts(Hosts):
    """Managers whose etcd has a small quota."""

    quota = QUOTA

    def start(self, number: int) -> None:
        with (self.folder / f"m{number}.log").open("ab") as log:
            flags = ("--data-dir", self.data(number), "--etcd-quota", self.quota)
            self.daemons[number] = subprocess.Popen(
                [ORC, "manager", *flags], env=self.env, stderr=log
            )

    def store(self) -> dict[str, dict[str, Any]]:
        """Hostnames are equal here, so by member."""
        rows = json.loads(self.done("manager", "store", "status", "--format", "json"))
        return {row["member"]: row for row in rows}

    def alarms(self) -> int:
        return sum(len(row["alarms"]) for row in self.store().values())

    def ids(self) -> list[str]:
        """Of the managers, by address."""
        return [self.managers()[address]["id"] for address in ADDRESSES]

    def kv(self) -> EtcdKv:
        """The first manager's etcd."""
        folder = self.data(1) / "etcd"
        port = json.loads((folder / "ports.json").read_text())["client"]
        tls = EtcdTls(*(folder / "tls" / f"{each}.pem" for each in ("ca", "client", "client-key")))
        return EtcdKv((f"https://127.0.0.1:{port}",), tls, timeout=10.0)

    def writable(self) -> bool:
        """Whether a client can create and remove something."""
        created = self.orc("config", "create", "probe", __file__)
        assert created.returncode == 0, created.stderr
        self.done("config", "rm", "probe")
        return True


async def fill(kv: EtcdKv, keys: Iterator[str]) -> None:
    async with kv:
        with suppress(StoreFull):
            for key in keys:
                await kv.txn([], [Put(key, b"x" * (256 << 10))])


async def remove_fillers(kv: EtcdKv) -> None:
    """As etcd allows it also while the database is full."""
    async with kv:
        for entry in (await kv.list(FILLER)).entries:
            await kv.txn([], [Delete(entry.key)])


def versions_of_one_key() -> Iterator[str]:
    return (FILLER for _ in count())


def many_keys() -> Iterator[str]:
    return (f"{FILLER}{number}" for number in count())


def history_is_dropped_by_itself(hosts: SmallHosts) -> None:
    """Nothing is lost and no operator needed where history has filled the database."""
    asyncio.run(fill(hosts.kv(), versions_of_one_key()))
    said = hosts.refused("config", "create", "late", __file__)
    assert "etcd's database is full" in said, said
    assert "orc manager store status" in said, said
    eventually(hosts.writable)
    sizes = [row["size"] for row in hosts.store().values()]
    assert max(sizes) < 4 << 20, sizes
    assert hosts.alarms() == 0


def live_data_leave_the_cluster_read_only(hosts: SmallHosts) -> None:
    asyncio.run(fill(hosts.kv(), many_keys()))
    eventually(lambda: hosts.alarms() > 0)
    rows = hosts.managers()
    assert any("database is full" in row["reason"] for row in rows.values()), rows
    said = hosts.refused("manager", "store", "disarm")
    assert "is still full" in said, said
    hosts.refused("config", "create", "late", __file__)
    assert len(json.loads(hosts.done("service", "ls", "--format", "json"))) == 0, "it can be read"


def an_operator_makes_room(hosts: SmallHosts) -> None:
    asyncio.run(remove_fillers(hosts.kv()))
    assert int(hosts.done("manager", "store", "compact")) > 1
    assert len(hosts.done("manager", "store", "defrag").splitlines()) == 3
    hosts.done("manager", "store", "disarm")
    eventually(hosts.writable)
    assert hosts.alarms() == 0


def a_larger_quota_helps_without_a_leader(hosts: SmallHosts) -> None:
    """Managers that start with a full database cannot elect a leader until there is room."""
    asyncio.run(fill(hosts.kv(), many_keys()))
    for number in (1, 2, 3):
        hosts.power_off(number)
    hosts.quota = "64m"
    for number in (1, 2, 3):
        hosts.start(number)
    eventually(hosts.writable)
    eventually(lambda: any(row["leader"] for row in hosts.managers().values()))
    asyncio.run(remove_fillers(hosts.kv()))


def free_pages_are_given_back(hosts: SmallHosts) -> None:
    """Without a request, where they are more than half of a file."""
    assert min(row["size"] for row in hosts.store().values()) > 12 << 20
    hosts.done("manager", "store", "compact")

    def small() -> bool:
        # etcd counts free pages when it writes the next time.
        assert hosts.writable()
        return max(row["size"] for row in hosts.store().values()) < 4 << 20

    eventually(small)


def one_at_a_time(hosts: SmallHosts) -> None:
    """Two operators at two managers have all members defragmented."""
    ids = hosts.ids()

    def operator(order: list[str]) -> None:
        for id in order:
            hosts.orc("manager", "store", "defrag", id)

    both = [threading.Thread(target=operator, args=(each,)) for each in (ids, ids[::-1])]
    for each in both:
        each.start()
    for each in both:
        each.join()
    spans = sorted(span for number in (1, 2, 3) for span in _defragmentations(hosts, number))
    assert len(spans) > 6, spans
    for (_, end), (start, _) in pairwise(spans):
        assert end <= start, spans


def _defragmentations(hosts: Hosts, number: int) -> Iterator[tuple[str, str]]:
    """Begin and end of each, by etcd's log."""
    began = ""
    for line in (hosts.data(number) / "etcd" / "etcd.log").read_text().splitlines():
        entry = json.loads(line)
        if entry["msg"] == "starting defragment":
            began = entry["ts"]
        elif entry["msg"] == "finished defragment":
            yield began, entry["ts"]


def a_marginal_quorum_is_left_alone(hosts: SmallHosts) -> None:
    ids = hosts.ids()
    hosts.power_off(3)
    hosts.await_states(m1="ready", m2="ready", m3="down")
    said = hosts.refused("manager", "store", "defrag", ids[1])
    assert "1 of 3 members would be healthy, and a quorum needs 2" in said, said
    assert "in " in hosts.done("manager", "store", "defrag", "--force", ids[1])
    hosts.start(3)
    hosts.await_states(m1="ready", m2="ready", m3="ready")
    hosts.done("manager", "store", "defrag", ids[1])


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts = SmallHosts(Path(sys.argv[1]))
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    for number in (2, 3):
        joined = hosts.join(number)
        assert joined.returncode == 0, joined.stderr
        hosts.start(number)
        hosts.await_states(**{f"m{each}": "ready" for each in range(1, number + 1)})
    assert all(etcd_of(hosts.data(number)) for number in (1, 2, 3))
    history_is_dropped_by_itself(hosts)
    live_data_leave_the_cluster_read_only(hosts)
    an_operator_makes_room(hosts)
    a_larger_quota_helps_without_a_leader(hosts)
    free_pages_are_given_back(hosts)
    one_at_a_time(hosts)
    a_marginal_quorum_is_left_alone(hosts)


if __name__ == "__main__":
    main()
