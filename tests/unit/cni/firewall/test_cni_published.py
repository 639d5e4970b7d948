# SPDX-License-Identifier: Apache-2.0
"""Published ports of a node with many networks: what a pass over all of them costs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from orchestrator.cni.attachments import attachment
from orchestrator.cni.attachments.ipam import Ipam, Key
from orchestrator.cni.firewall import portmap
from orchestrator.cni.netconf import NetConf, parse

NETWORKS = 30


class Rules:
    """nftables that records the scripts, changed by no other process unless the test does so."""

    def __init__(self) -> None:
        self.scripts: list[str] = []
        self._in_force: dict[str, str] = {}

    def ensure(self, subject: str, script: str) -> None:
        if self._in_force.get(subject) != script:
            self.scripts.append(script)
            self._in_force[subject] = script

    def holds(self, subject: str) -> bool:
        return subject in self._in_force

    def doubt(self, subject: str) -> None:
        self._in_force.pop(subject, None)


def network(number: int, port: int = 0) -> NetConf:
    conf = {
        "cniVersion": "1.0.0",
        "type": "orc-cni",
        "name": f"n{number}",
        "bridge": f"b{number}",
        "subnet": f"10.{number}.0.0/24",
        "cluster": f"10.{number}.0.0/16",
    }
    if port:
        mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
        conf["runtimeConfig"] = {"portMappings": [mapping]}  # type: ignore[assignment]
    return parse(conf)


def test_a_pass_over_all_networks_reads_the_leases_once(tmp_path: Path) -> None:
    rules = Rules()
    with Ipam(tmp_path) as ipam:
        host = SimpleNamespace(ipam=ipam, nft=rules, published=None)
        for number in range(NETWORKS):
            ipam.reserve(Key(f"n{number}", f"c{number}", "eth0"), network(number, 8000 + number))
        statements: list[str] = []
        ipam._db.set_trace_callback(statements.append)

        def reads(passes: int = 1) -> int:
            statements.clear()
            for _ in range(passes * NETWORKS):
                attachment.restore_published(host)  # type: ignore[arg-type]
            return sum("FROM lease" in statement for statement in statements)

        assert reads(passes=3) == 1
        assert "8029" in rules.scripts[-1]
        ipam.release(Key("n29", "c29", "eth0"))
        assert reads() == 1
        assert "8029" not in rules.scripts[-1]
        with Ipam(tmp_path) as other:  # the plugin's command
            other.reserve(Key("n29", "c29", "eth0"), network(29, 9000))
        assert reads() == 1
        assert "9000" in rules.scripts[-1]
        rules.doubt(portmap.CONTAINERS)  # a port was published meanwhile, or a hand was at it
        before = len(rules.scripts)
        assert reads() == 1
        assert len(rules.scripts) == before + 1


def test_remembering_a_network_reads_that_one(tmp_path: Path) -> None:
    with Ipam(tmp_path) as ipam:
        for number in range(NETWORKS):
            ipam.remember(f"n{number}", "{}")
        rows: list[tuple[object, ...]] = []
        ipam._db.row_factory = lambda cursor, row: (rows.append(row), row)[1]
        for number in range(NETWORKS):
            ipam.remember(f"n{number}", "{}")
        assert len(rows) == NETWORKS
