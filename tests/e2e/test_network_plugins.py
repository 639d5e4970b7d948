# SPDX-License-Identifier: Apache-2.0
"""Networks of CNI plugins and of Docker's plugins, as a user has them: packets, names, kills."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

BOX = "/bin/busybox"
FORGE = """
import socket, struct
wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
ends = socket.inet_aton("9.9.9.9") + socket.inet_aton("10.79.0.1")
for _ in range(3):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0, 64, socket.IPPROTO_UDP, 0)
    wire.sendto(head + ends + struct.pack("!4H", 9, 9, 8, 0), ("10.79.0.1", 0))
"""
"""Three datagrams with the source of a stranger."""
SOCKET = "/run/docker/plugins/toy.sock"


@pytest.fixture
def tidy(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, afterwards without containers of their own and without further networks."""
    yield cluster
    for service in cluster.json("service", "ls"):
        cluster.orc("service", "rm", "-d", service["name"])
    if own := [row["id"] for row in cluster.json("ps", "-a") if not row["service"]]:
        cluster.orc("rm", "-f", *own)

    def pruned() -> bool:
        cluster.orc("network", "prune", "--force")
        names = [row["name"] for row in cluster.json("network", "ls")]
        assert names == ["bridge", "default"], names
        return True

    eventually(pruned)


def conflist(folder: Path, *plugins: dict[str, Any], name: str = "lan") -> str:
    """A file with a list; what `--opt` takes."""
    file = folder / f"{name}.conflist"
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": plugins}))
    return f"conflist={file}"


def bridge(cluster: Cluster, **more: Any) -> dict[str, Any]:
    """Debian's bridge with host-local, whose books are each node's own and outlive a power loss."""
    return {
        "type": "bridge",
        "bridge": "cni-lan",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "dataDir": f"/var/lib/orc-dev/{cluster.name}/{{{{.Node.Hostname}}}}/addresses",
            "ranges": [[{"subnet": "10.79.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
        "capabilities": {"ips": True, "mac": True},
        **more,
    }


def given(cluster: Cluster, node: str, name: str = "lan") -> list[str]:
    """The addresses that host-local has given out on a node."""
    folder = Path("/var/lib/orc-dev", cluster.name, node, "addresses", name)
    return sorted(path.name for path in folder.glob("10.*"))


def on_record(cluster: Cluster, node: str, kind: str = "cni") -> list[str]:
    """What a node's agent has on record of networks of others."""
    folder = cluster.data(node) / "network-plugins" / kind / "attachments"
    return [path.name for path in folder.iterdir()]


def start(cluster: Cluster, name: str, image: str, *flags: str) -> dict[str, Any]:
    """A container of its own that does nothing."""
    cluster.orc("run", "-d", "--name", name, *flags, "--entrypoint", BOX, image, "sleep", "10000")
    return shown(cluster, name)


def shown(cluster: Cluster, name: str) -> dict[str, Any]:
    (row,) = [row for row in cluster.json("ps", "-a") if row["name"] == name]
    found: dict[str, Any] = row
    return found


def inside(cluster: Cluster, name: str, *command: str, ok: bool = True) -> str:
    """What a program prints in a container."""
    return cluster.orc("exec", name, BOX, *command, ok=ok).stdout


def fetched(cluster: Cluster, node: str, port: int) -> str:
    """A page from a node's own address."""
    address = cluster.nodes()[node]["address"]
    command = ["curl", "-s", "-m", "3", f"http://{address}:{port}/"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_a_service_on_a_chain_over_kills(tidy: Cluster, hello: str, tmp_path: Path) -> None:
    cluster = tidy
    chain = conflist(
        tmp_path,
        bridge(cluster),
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "321"}},
    )
    cluster.orc("network", "create", "--driver", "cni", "--opt", chain)
    (found,) = cluster.json("network", "inspect", "lan")
    assert found["conflist"]["plugins"][0]["type"] == "bridge"
    flags = ("--network", "lan", "--replicas", "3", "--publish", "8088:80")
    cluster.orc("service", "create", "--name", "web", *flags, "--replicas-max-per-node", "1", hello)
    tasks = cluster.running("web")
    assert {task["node"] for task in tasks} == {"node1", "node2", "node3"}
    # Each node's own network, so that the same address is on each.
    assert {task["addresses"]["lan"] for task in tasks} == {"10.79.0.2"}
    (one,) = [task for task in tasks if task["node"] == "node1"]
    eventually(lambda: f"Hello from {one['name']}" in fetched(cluster, "node1", 8088))
    sysctl = cluster.in_network(one, "cat", "/proc/sys/net/core/somaxconn").stdout
    assert sysctl.strip() == "321"
    # Packets with a foreign source address are dropped at the node's end of the veth pair.
    cluster.in_network(one, sys.executable, "-c", FORGE)
    told = json.loads(cluster.orc("network", "doctor", "--format", "json", ok=False).stdout)
    dropped = f"source check on node1 dropped 3 packets from container {one['name']} in network lan"
    assert dropped in [finding["text"] for finding in told["findings"]]
    # Its gateway is the node's own address, so the name server answers there.
    eventually(lambda: "Address: 10.79.0.2" in inside(cluster, one["name"], "nslookup", "web"))
    assert inside(cluster, one["name"], "nslookup", "tasks.web").count("Address: 10.") == 1

    cluster.kill9("node1", "daemon")
    assert f"Hello from {one['name']}" in fetched(cluster, "node1", 8088)
    cluster.await_ready("node1")
    (same,) = [task for task in cluster.running("web") if task["node"] == "node1"]
    assert same["id"] == one["id"]

    cluster.orc("service", "rm", "-d", "web")
    for node in ("node1", "node2", "node3"):
        eventually(lambda node=node: not on_record(cluster, node))
        assert given(cluster, node) == []
        assert "10.79.0.2" not in cluster.exec(node, "iptables-save").stdout


def test_container_passes_requests_to_a_chain(tidy: Cluster, hello: str, tmp_path: Path) -> None:
    cluster = tidy
    chain = conflist(
        tmp_path, bridge(cluster), {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    )
    cluster.orc("network", "create", "--driver", "cni", "--opt", chain, "wire")
    network = "name=wire,ip=10.79.0.50,mac-address=02:00:00:00:00:50,driver-opt=egress-rate=20m"
    row = start(cluster, "fixed", hello, "--network", network)
    assert row["addresses"] == {"wire": "10.79.0.50"}
    assert "02:00:00:00:00:50" in inside(cluster, "fixed", "ip", "link", "show", "eth0")
    assert "rate 20Mbit" in cluster.exec(row["node"], "tc", "qdisc", "show").stdout
    # What no plugin of the chain wants to know is refused at once.
    words = cluster.refused("run", "-d", "--network", "wire", "--publish", "8089:80", hello)
    assert words.endswith("no plugin of its conflist has the capability 'portMappings'")
    words = cluster.refused("run", "-d", "--network", "name=wire,driver-opt=egres-rate=1m", hello)
    assert "driver-opt 'egres-rate' is unknown to a CNI network; did you mean" in words
    # On another network besides, joined and left while it runs.
    start(cluster, "both", hello, "--node", row["node"])
    cluster.orc("network", "connect", "wire", "both")
    address = shown(cluster, "both")["addresses"]["wire"]
    assert inside(cluster, "both", "ping", "-c", "1", "-W", "2", "10.79.0.50")
    eventually(lambda: "10.79.0.50" in inside(cluster, "both", "nslookup", "fixed"))
    assert sorted(given(cluster, row["node"])) == sorted(["10.79.0.50", address])
    cluster.orc("network", "disconnect", "wire", "both")
    assert given(cluster, row["node"]) == ["10.79.0.50"]


def test_addresses_of_one_wire_over_hosts(tidy: Cluster, hello: str, tmp_path: Path) -> None:
    """Macvlan on the hosts' own wire: each node gives out its own part of one subnet."""
    cluster = tidy
    part = {
        "subnet": "{{.Network.Subnet}}",
        "rangeStart": "{{.Node.First}}",
        "rangeEnd": "{{.Node.Last}}",
    }
    ipam = {"type": "host-local", "dataDir": "/run/cni/addresses", "ranges": [[part]]}
    plugin = {"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": ipam}
    flags = ("--driver", "cni", "--subnet", "10.66.0.0/16", "--opt", conflist(tmp_path, plugin))
    cluster.orc("network", "create", *flags)
    one = start(cluster, "one", hello, "--network", "lan", "--node", "node1")["addresses"]["lan"]
    two = start(cluster, "two", hello, "--network", "lan", "--node", "node2")["addresses"]["lan"]
    (found,) = cluster.json("network", "inspect", "lan")
    parts = {each["hostname"]: each["subnet"] for each in found["nodes"]}
    assert one.rpartition(".")[0] == parts["node1"].rpartition(".")[0]
    assert two.rpartition(".")[0] == parts["node2"].rpartition(".")[0]
    assert "1 packets received" in inside(cluster, "one", "ping", "-c", "1", "-W", "3", two)


SLOW = """#!/bin/sh
[ "$CNI_COMMAND" = VERSION ] && \\
 echo '{{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}}' && exit 0
echo $CNI_COMMAND >> {folder}/calls
[ "$CNI_COMMAND" != ADD ] || while [ ! -e {folder}/go ]; do sleep 0.1; done
sed -n 's/.*"prevResult": *\\({{.*}}\\)}}$/\\1/p'
"""
"""A plugin at the end of a chain that takes its time over ADD, and passes on what it was given."""


@pytest.fixture
def slow(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """The name of that plugin, in the folder of all hosts."""
    folder = Path("/opt/cni/bin")
    new = [each for each in (folder, folder.parent) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / f"slow-{cluster.name}"
    script.write_text(SLOW.format(folder=tmp_path))
    script.chmod(0o755)
    yield script.name
    script.unlink()
    for each in new:
        with suppress(OSError):  # somebody else has put something there
            each.rmdir()


def test_an_agent_dies_in_the_middle_of_add(
    tidy: Cluster, hello: str, tmp_path: Path, slow: str
) -> None:
    cluster = tidy
    chain = conflist(tmp_path, bridge(cluster), {"type": slow})
    cluster.orc("network", "create", "--driver", "cni", "--attachable", "--opt", chain)
    # It is seen without a restart of anything.
    cluster.orc(
        "service", "create", "--detach", "--name", "web", "--network", "lan",
        "--constraint", "node.hostname==node1", hello,
    )  # fmt: skip

    def called() -> list[str]:
        file = tmp_path / "calls"
        return file.read_text().split() if file.exists() else []

    eventually(lambda: called() == ["ADD"])
    assert len(given(cluster, "node1")) == 1
    cluster.kill9("node1", "daemon")
    (tmp_path / "go").touch()
    (task,) = cluster.await_running("web", 1)
    # Undone and done anew: one address is given, and it is the container's.
    assert called()[:2] == ["ADD", "DEL"]
    assert given(cluster, "node1") == [task["addresses"]["lan"]]
    assert len(on_record(cluster, "node1")) == 1
    cluster.orc("service", "rm", "-d", "web")
    eventually(lambda: not on_record(cluster, "node1"))
    assert given(cluster, "node1") == []


def test_a_power_loss_leaves_no_address_behind(tidy: Cluster, hello: str, tmp_path: Path) -> None:
    cluster = tidy
    chain = conflist(tmp_path, bridge(cluster))
    cluster.orc("network", "create", "--driver", "cni", "--opt", chain)
    start(cluster, "kept", hello, "--network", "lan", "--node", "node2", "--restart", "always")
    start(cluster, "gone", hello, "--network", "lan", "--node", "node2")
    assert len(given(cluster, "node2")) == 2
    cluster.power_off("node2")
    cluster.start("node2")
    cluster.await_ready("node2")
    # Its node may not have told yet that it does not run any more.
    eventually(lambda: "eth0" in inside(cluster, "kept", "ip", "link"))

    def back() -> bool:
        row = shown(cluster, "kept")
        assert row["state"] == "running", row
        assert given(cluster, "node2") == [row["addresses"]["lan"]]
        return True

    eventually(back)


def test_refusals_and_reasons_for_waiting(tidy: Cluster, hello: str, tmp_path: Path) -> None:
    cluster = tidy
    create = ("network", "create", "--driver", "cni")
    broken = tmp_path / "broken.conflist"
    broken.write_text('{"cniVersion": "1.0.0",\n "plugins" [] }')
    words = cluster.refused(*create, "--opt", f"conflist={broken}")
    assert words == f"orc: conflist {broken}: line 2, column 12: expecting ':' delimiter"
    chain = conflist(tmp_path, {"type": "bridge", "ipam": {"subnet": "10.0.0.0/8"}})
    assert "plugins[0].ipam.type: it is missing" in cluster.refused(*create, "--opt", chain)
    assert "cannot be read: No such file" in cluster.refused(*create, "--opt", "conflist=/nowhere")
    assert "needs --opt conflist=FILE" in cluster.refused(*create, "lan")
    words = cluster.refused("network", "create", "--driver", "brigde", "lan")
    assert words == "orc: network driver 'brigde' is unknown; did you mean 'bridge'?"

    cluster.orc(*create, "--opt", conflist(tmp_path, {"type": "nonesuch"}, name="odd"))
    words = cluster.refused(*create, "--opt", conflist(tmp_path, {"type": "x"}, name="odd"), "two")
    assert "'odd' is what the plugins call network 'odd'; choose another" in words
    words = cluster.refused("network", "policy", "deny", "odd", "--to", "web")
    assert "no service or container 'web'" in words
    cluster.orc("service", "create", "--detach", "--name", "web", "--network", "odd", hello)

    def waits() -> bool:
        task = cluster.task("web")
        assert task["error"].startswith(
            "unschedulable: no node meets its requirements (3 nodes: no CNI plugin nonesuch, for "
            "network odd, in /opt/cni/bin or /usr/lib/cni on node1, node2, node3)"
        ), task
        return True

    eventually(waits)
    words = cluster.refused("network", "policy", "deny", "odd", "--to", "web")
    assert "has driver cni, which does not support policies" in words
    # What a plugin itself says is the task's error, in one line.
    chain = conflist(tmp_path, bridge(cluster, hairpinMode=True, promiscMode=True), name="bad")
    cluster.orc(*create, "--opt", chain)
    flags = ("--network", "bad", "--restart-condition", "none")
    cluster.orc("service", "create", "--detach", "--name", "no", *flags, hello)

    def failed() -> bool:
        task = cluster.task("no")
        assert task["state"] == "rejected", task
        assert task["error"].startswith("network bad: CNI plugin bridge (ADD): "), task
        assert "cannot set hairpin mode and promiscuous mode at the same time" in task["error"]
        return True

    eventually(failed)


@contextmanager
def plugin(cluster: Cluster, host: str, log: Path) -> Iterator[None]:
    """A network and ipam plugin on a host, until the end of the block."""
    script = Path(__file__).with_name("networkplugin.py")
    command = [ORC, "dev", "exec", "--name", cluster.name, host, sys.executable, str(script)]
    process = subprocess.Popen([*command, SOCKET, str(log)], env=cluster.env)
    try:
        yield
    finally:
        cluster.exec(host, "sh", "-c", f"kill $(cat {SOCKET.replace('sock', 'pid')})")
        process.wait(PATIENCE)
        cluster.exec(host, "rm", SOCKET)


@pytest.mark.parametrize("ipam", ["", "toy"])
def test_a_plugin_of_dockers_makes_networks(
    tidy: Cluster, hello: str, tmp_path: Path, ipam: str
) -> None:
    cluster, logs = tidy, {host: tmp_path / host for host in ("node1", "node2")}
    with ExitStack() as running:
        for host, log in logs.items():
            running.enter_context(plugin(cluster, host, log))
        flags = ("--driver", "toy", "--attachable", "--opt", "colour=red")
        flags += ("--ipam-driver", ipam) if ipam else ()

        def created() -> bool:
            return cluster.orc("network", "create", *flags, "toys", ok=False).returncode == 0

        eventually(created)
        (network,) = cluster.json("network", "inspect", "toys")
        one = start(cluster, "one", hello, "--network", "toys", "--node", "node1")
        two = start(cluster, "two", hello, "--network", "toys", "--node", "node1")
        addresses = [each["addresses"]["toys"] for each in (one, two)]
        if ipam:
            assert addresses == ["10.99.0.2", "10.99.0.3"]
        else:
            (part,) = [e["subnet"] for e in network["nodes"] if e["hostname"] == "node1"]
            assert all(each.rpartition(".")[0] == part.rpartition(".")[0] for each in addresses)
        assert inside(cluster, "one", "ping", "-c", "1", "-W", "2", addresses[1])
        eventually(lambda: addresses[1] in inside(cluster, "one", "nslookup", "two"))
        # Not where there is no plugin.
        cluster.orc(
            "service", "create", "--detach", "--name", "web", "--network", "toys",
            "--constraint", "node.hostname==node3", hello,
        )  # fmt: skip

        def waits() -> bool:
            task = cluster.task("web")
            assert "no network plugin toy, for network toys, on node3" in task["error"], task
            return True

        eventually(waits)
        cluster.kill9("node1", "daemon")
        command = ("ping", "-c", "1", "-W", "2", addresses[1])
        eventually(lambda: inside(cluster, "one", *command, ok=False))
        cluster.orc("rm", "-f", "one", "two")
        cluster.orc("service", "rm", "-d", "web")
        eventually(lambda: not on_record(cluster, "node1", "docker"))
        cluster.orc("network", "rm", "toys")

        def told() -> bool:
            assert "NetworkDriver.DeleteNetwork" in logs["node1"].read_text()
            return True

        eventually(told)

        # It writes down what it is told before it does it.
        def gone() -> bool:
            links = cluster.exec("node1", "ip", "-brief", "link").stdout.splitlines()
            return not [line for line in links if line.startswith(("pl", "vh", "vc"))]

        eventually(gone)
