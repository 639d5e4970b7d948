# SPDX-License-Identifier: Apache-2.0
"""What breaks between nodes is found, and said in the one right sentence: broken on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

NODES = ("node1", "node2", "node3")
BOX = "/bin/busybox"
FILTER = (
    "add table inet broken; "
    "add chain inet broken raw { type filter hook prerouting priority -300; }; "
    "add rule inet broken raw "
)
OFFLOAD = """
import array, fcntl, socket, struct, sys
value = array.array("B", struct.pack("II", 0x17, int(sys.argv[2])))  # ETHTOOL_STXCSUM
request = struct.pack("16sP16x", sys.argv[1].encode(), value.buffer_info()[0])
fcntl.ioctl(socket.socket(), 0x8946, request)  # SIOCETHTOOL
"""
"""`ethtool -K DEVICE tx on|off`, as 1 or 0."""
SERVE = "mkdir -p /tmp; head -c 300000 /dev/zero >/tmp/page; exec httpd -f -p 80 -h /tmp"
SABOTAGE = "while :; do bridge fdb del {mac} dev {device} 2>/dev/null; sleep 0.2; done"


def diagnosis(cluster: Cluster, *network: str) -> dict[str, Any]:
    """What the doctor finds; its exit status says whether anything is wrong."""
    done = cluster.orc("network", "doctor", *network, "--format", "json", ok=False)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1), done.stderr
    return found


def wrong(found: dict[str, Any]) -> list[str]:
    return [finding["text"] for finding in found["findings"] if finding["wrong"]]


@pytest.fixture
def addresses(cluster: Cluster) -> dict[str, str]:
    return {name: node["address"] for name, node in cluster.nodes().items()}


@contextmanager
def filtered(cluster: Cluster, node: str, *rules: str) -> Iterator[None]:
    """Rules of somebody else on a node."""
    cluster.exec(node, "nft", "; ".join(FILTER + rule for rule in rules))
    try:
        yield
    finally:
        cluster.exec(node, "nft", "delete", "table", "inet", "broken")


def switch(cluster: Cluster, *command: str) -> str:
    """Run a command in the switch between the hosts."""
    argv = ["ip", "netns", "exec", f"orcdev-{cluster.name}", *command]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@contextmanager
def narrowed(cluster: Cluster, node: str, mtu: int) -> Iterator[None]:
    """The switch drops what is larger on its way to a node, and tells nobody."""
    switch(cluster, "ip", "link", "set", node, "mtu", str(mtu))
    try:
        yield
    finally:
        switch(cluster, "ip", "link", "set", node, "mtu", "1500")


def tunnel(cluster: Cluster, node: str) -> dict[str, Any]:
    """The device of the default network's tunnel."""
    (network,) = cluster.json("network", "inspect", "default")
    command = ("ip", "-json", "link", "show", f"orcvx{network['vni']}")
    link: dict[str, Any] = json.loads(cluster.exec(node, *command).stdout)[0]
    return link


def test_healthy_paths_between_nodes_have_no_finding(cluster: Cluster) -> None:
    listening = cluster.exec("node1", "ss", "-Hlntu").stdout
    text = cluster.orc("network", "doctor").stdout
    assert cluster.exec("node1", "ss", "-Hlntu").stdout == listening
    assert text.startswith("FROM    TO      UNDERLAY   NETWORK   LOSS"), text
    assert text.endswith("No problems between 3 nodes.\n"), text
    found = diagnosis(cluster)
    assert found["network"] == "default"
    assert (found["ok"], found["pairs"]) == (True, 3)
    assert [(node["hostname"], node["tested"], node["drift"]) for node in found["nodes"]] == [
        (name, True, []) for name in NODES
    ]
    assert len(found["paths"]) == 6
    for path in found["paths"]:
        assert path["path_mtu"] == 1500
        assert path["rate"] > 1e6
        for kind in ("underlay", "overlay"):
            assert path[kind]["received"] == path[kind]["sent"] >= 20
            assert 0 < path[kind]["latency"] < 1
    assert {node["mtu"] for node in found["nodes"]} == {1450}


def test_two_nodes_apart(cluster: Cluster, addresses: dict[str, str]) -> None:
    one, two = f"ip saddr {addresses['node2']} drop", f"ip saddr {addresses['node1']} drop"
    with filtered(cluster, "node1", one), filtered(cluster, "node2", two):
        found = diagnosis(cluster)
    assert wrong(found) == [
        "no packets get through between node1 and node2, neither pings nor the tunnel's"
    ]
    assert found["findings"][0]["nodes"] == ["node1", "node2"]
    # Of one only: nothing of node2 arrives at node1.
    with filtered(cluster, "node1", one):
        assert wrong(diagnosis(cluster)) == [
            "no packets from node2 arrive at node1, though those from node1 arrive at node2"
        ]


def test_a_firewall_drops_the_tunnel(cluster: Cluster, addresses: dict[str, str]) -> None:
    with filtered(cluster, "node1", "udp dport 4789 drop"):
        found = diagnosis(cluster)
        assert wrong(found) == [
            "packets of the tunnel (UDP port 4789) from node2 and node3 do not arrive at node1, "
            "though pings do"
        ]
        assert "let UDP port 4789 through" in found["findings"][0]["remedy"]
    rule = "ip saddr {} udp dport 4789 drop"
    with (
        filtered(cluster, "node1", rule.format(addresses["node3"])),
        filtered(cluster, "node3", rule.format(addresses["node1"])),
    ):
        assert wrong(diagnosis(cluster)) == [
            "packets of the tunnel (UDP port 4789) do not get through between node1 and node3, "
            "though pings do"
        ]


def test_dropped_pings_are_no_fault(cluster: Cluster) -> None:
    with filtered(cluster, "node2", "iifname eth0 meta l4proto icmp drop"):
        text = cluster.orc("network", "doctor").stdout
    ways = {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines()[1:7]}
    assert ways["node1", "node2"][:3] == ["silent", "ok", "0%"], text
    assert ways["node1", "node3"][:3] == ["ok", "ok", "0%"], text
    assert {way[5] for way in ways.values()} == {"1500"}, text
    assert text.endswith("No problems between 3 nodes.\n"), text


def test_packets_get_lost(cluster: Cluster, addresses: dict[str, str]) -> None:
    rule = f"ip saddr {addresses['node3']} numgen random mod 100 < 20 drop"
    with filtered(cluster, "node2", rule):
        done = cluster.orc("network", "doctor", ok=False)
    assert done.returncode == 1
    assert done.stderr == "orc: 1 thing is wrong\n"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("wrong: ")]
    share, _, rest = line.removeprefix("wrong: ").partition("% ")
    assert 5 < int(share) < 40, line
    assert rest == "of packets between node2 and node3 get lost"


def test_a_card_that_does_not_compute_checksums(
    cluster: Cluster, addresses: dict[str, str]
) -> None:
    device = tunnel(cluster, "node1")["ifname"]
    # The sender fills in the checksum of UDP inside of the tunnel, and the wire spoils it.
    switch(
        cluster, "nft",
        "add table bridge broken; "
        "add chain bridge broken wire { type filter hook forward priority 0; }; "
        f"add rule bridge broken wire ip saddr {addresses['node1']} udp dport 4789 "
        "@th,312,8 17 @th,448,16 != 0 @th,448,16 set 0x1234",
    )  # fmt: skip
    cluster.exec("node1", sys.executable, "-c", OFFLOAD, device, "0")
    try:
        found = diagnosis(cluster)
    finally:
        cluster.exec("node1", sys.executable, "-c", OFFLOAD, device, "1")
        switch(cluster, "nft", "delete table bridge broken")
    assert wrong(found) == [
        "TCP and UDP from node1 arrive at node2 and node3 with a wrong checksum and are dropped: "
        "eth0 of node1 claims to compute it inside tunnels, and does not"
    ]
    assert f"ethtool -K {device} tx off" in found["findings"][0]["remedy"]


def test_entries_removed_by_another_program_are_reported(cluster: Cluster) -> None:
    mac, device = tunnel(cluster, "node2")["address"], tunnel(cluster, "node1")["ifname"]
    script = SABOTAGE.format(mac=mac, device=device)
    cluster.exec("node1", "sh", "-c", f"({script}) >/dev/null 2>&1 & echo $! >/tmp/sabotage")
    try:
        eventually(
            lambda: mac not in cluster.exec("node1", "bridge", "fdb", "show", "dev", device).stdout,
        )
        # The agent may just have put it back when the doctor looks.
        (text,) = eventually(lambda: wrong(diagnosis(cluster)))
    finally:
        cluster.exec("node1", "sh", "-c", "kill $(cat /tmp/sabotage)")
    assert text.startswith(
        "network default on node1 differs in the kernel from its configuration: "
        f"the forwarding entry (FDB) of {mac} to "
    )
    assert text.endswith(f" is missing on {device}")
    eventually(lambda: diagnosis(cluster)["ok"])


def test_nodes_that_are_down(cluster: Cluster, addresses: dict[str, str]) -> None:
    cluster.stop("node3")
    eventually(lambda: cluster.nodes()["node3"]["state"] == "down")
    found = diagnosis(cluster)
    assert wrong(found) == ["node3 is down, but its host answers node1 and node2"]
    assert [node["tested"] for node in found["nodes"]] == [True, True, False]
    cluster.power_off("node3")
    assert wrong(diagnosis(cluster)) == [f"node3 is down, and {addresses['node3']} does not answer"]


def test_a_path_that_carries_less(cluster: Cluster, hello: str) -> None:
    def start(name: str, node: str) -> None:
        cluster.orc(
            "run", "-d", "--name", name, "--node", node, "--entrypoint", BOX, hello,
            "sh", "-c", SERVE,
        )  # fmt: skip

    def mtu(name: str) -> str:
        return cluster.orc("exec", name, BOX, "cat", "/sys/class/net/eth0/mtu").stdout.strip()

    def fetch(name: str, host: str) -> str:
        script = f"wget -q -T 5 -O - http://{host}/page | wc -c"
        return cluster.orc("exec", name, BOX, "sh", "-c", script).stdout.strip()

    cluster.orc("network", "create", "--attachable", "--opt", "mtu=1450", "large")
    own = [(f"own-{node}", node) for node in NODES]
    try:
        for name, node in own:
            cluster.orc(
                "run", "-d", "--name", name, "--network", "large", "--node", node,
                "--entrypoint", BOX, hello, "sleep", "10000",
            )  # fmt: skip
        start("old", "node1")
        assert diagnosis(cluster, "large")["ok"]
        with narrowed(cluster, "node2", 1400):
            found = diagnosis(cluster, "large")
            (finding,) = [each for each in found["findings"] if each["wrong"]]
            assert finding["text"].startswith("packets of 1450 bytes, as network large has them")
            assert "that path carries 1400 bytes, 50 of them for the tunnel" in finding["text"]
            assert finding["remedy"].startswith("recreate the network with --opt mtu=1350, or ")
            # What was measured is what networks follow that are left to us.
            eventually(lambda: {tunnel(cluster, node)["mtu"] for node in NODES} == {1350})
            found = diagnosis(cluster)
            (other,) = wrong(found)
            assert other.startswith("network large has an MTU of 1450 bytes, and the ")
            (note,) = [each for each in found["findings"] if "bytes and no larger" in each["text"]]
            assert "though eth0 of node" in note["text"]
            # Containers from before go on, also to new ones and back.
            start("new", "node2")
            assert (mtu("old"), mtu("new")) == ("1450", "1350")
            assert fetch("old", "new") == fetch("new", "old") == "300000"
        # A path that carries more again is believed when it was seen twice.
        diagnosis(cluster)
        diagnosis(cluster)
        eventually(lambda: {tunnel(cluster, node)["mtu"] for node in NODES} == {1450})
    finally:
        cluster.orc("rm", "-f", "old", "new", *(name for name, _ in own), ok=False)
        eventually(lambda: cluster.orc("network", "rm", "large", ok=False).returncode == 0)


def test_a_network_of_few_nodes_and_one_that_is_unknown(cluster: Cluster, hello: str) -> None:
    cluster.orc("network", "create", "--attachable", "--internal", "inner")
    names = []
    try:
        assert "spans fewer than two nodes" in cluster.orc("network", "doctor", "inner").stdout
        for node in ("node1", "node3"):
            names.append(f"in-{node}")
            cluster.orc(
                "run", "-d", "--name", names[-1], "--network", "inner", "--node", node,
                "--entrypoint", BOX, hello, "sleep", "10000",
            )  # fmt: skip
        # Also where a network lets nobody else in.
        found = diagnosis(cluster, "inner")
        assert found["ok"], found
        ways = [(path["source"], path["target"]) for path in found["paths"]]
        assert ways == [("node1", "node3"), ("node3", "node1")]
        assert all(path["rate"] for path in found["paths"])
        assert "did you mean 'inner'?" in cluster.refused("network", "doctor", "iner")
    finally:
        cluster.orc("rm", "-f", *names, ok=False)
        eventually(lambda: cluster.orc("network", "rm", "inner", ok=False).returncode == 0)
