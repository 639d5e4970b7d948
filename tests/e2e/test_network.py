# SPDX-License-Identifier: Apache-2.0
"""The network: real packets between containers, hosts and the outside."""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest
from devcluster import SERVES, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

NODES = ("node1", "node2", "node3")
HTTP = "http://{}/"

WHO = r"""
mkdir -p /tmp/www/cgi-bin
printf '#!/bin/busybox sh\necho\necho "$REMOTE_ADDR"\n' >/tmp/www/cgi-bin/index.cgi
chmod +x /tmp/www/cgi-bin/index.cgi
exec httpd -f -p 80 -h /tmp/www
"""
"""A web page that says which address asked for it."""

PING = r"""
import errno, os, socket, struct, sys

IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
address, size = sys.argv[1], int(sys.argv[2])


def packet(checksum):
    return struct.pack("!BBHHH", 8, 0, checksum, os.getpid() & 0xFFFF, 1) + bytes(size)


words = sum(struct.unpack(f"!{(size + 8) // 2}H", packet(0)[: (size + 8) // 2 * 2]))
words = (words >> 16) + (words & 0xFFFF)
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping:
    ping.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    ping.settimeout(10)
    try:
        ping.sendto(packet(~(words + (words >> 16)) & 0xFFFF), (address, 0))
    except OSError as error:
        sys.exit(errno.errorcode[error.errno])
    while (answer := ping.recv(65535))[20] != 0:
        pass
    print(len(answer))
"""
"""`ping -M do -s SIZE -c 1 ADDRESS`, which prints how many bytes the answer's packet has."""


def address(task: dict[str, Any]) -> str:
    return str(task["addresses"]["default"])


def fetch(url: str, seconds: int = 5) -> tuple[str, ...]:
    """The command that fetches a page, in a host or in a container."""
    return ("/bin/busybox", "wget", "-q", "-T", str(seconds), "-O", "-", url)


def fetch_all(urls: list[str]) -> tuple[str, ...]:
    """The command that fetches pages one after the other and stops at a failure."""
    loop = 'for url; do /bin/busybox wget -q -T 10 -O - "$url" || exit 1; done'
    return ("/bin/busybox", "sh", "-c", loop, "-", *urls)


def get(host: str, port: int) -> str:
    """Fetch a page from this machine."""
    with closing(http.client.HTTPConnection(host, port, timeout=5)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()


def asker(page: str) -> str:
    """The address on WHO's page, which is written as IPv6."""
    return page.strip().removeprefix("[::ffff:").removesuffix("]")


def two_apart(cluster: Cluster, image: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two containers of the web image, on different hosts: the first on node1."""
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", *SERVES, image)
    here, there, _ = sorted(cluster.running("web"), key=lambda task: str(task["node"]))
    assert here["node"] == "node1"
    return here, there


def test_every_container_is_reached_from_every_host_and_container(
    cluster: Cluster, hello: str
) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "6", *SERVES, hello)
    tasks = cluster.running("web")
    expected = [f"address: {address(task)}" for task in tasks]
    urls = [HTTP.format(address(task)) for task in tasks]
    for node in NODES:
        pages = cluster.exec(node, *fetch_all(urls)).stdout
        assert [line for line in pages.splitlines() if "address" in line] == expected, node
    one_a_node = {task["node"]: task for task in tasks}
    assert set(one_a_node) == set(NODES)
    for task in one_a_node.values():
        pages = cluster.in_task(task, *fetch_all(urls)).stdout
        assert [line for line in pages.splitlines() if "address" in line] == expected, task
    # Each node has a subnet of its own, as `network inspect` says.
    (network,) = cluster.json("network", "inspect", "default")
    subnets = {row["hostname"]: row["subnet"].rpartition(".")[0] for row in network["nodes"]}
    assert len(set(subnets.values())) == 3
    for task in tasks:
        assert address(task).rpartition(".")[0] == subnets[task["node"]]


def test_containers_see_each_others_own_addresses(cluster: Cluster, hello: str) -> None:
    tasks = cluster.script("who", hello, WHO, "--replicas", "3", *SERVES)
    urls = [HTTP.format(address(task)) for task in tasks]
    for task in tasks:
        pages = cluster.in_task(task, *fetch_all(urls)).stdout.split()
        assert set(map(asker, pages)) == {address(task)}


def test_full_size_packets_pass_and_larger_ones_are_refused(cluster: Cluster, hello: str) -> None:
    here, there = two_apart(cluster, hello)
    for task in (here, there):
        links = json.loads(cluster.exec(task["node"], "ip", "-j", "link").stdout)
        names = ("orcv", "orcbr4")  # not the bridge of builds, which has no tunnel
        mtus = {link["ifname"]: link["mtu"] for link in links if link["ifname"].startswith(names)}
        assert len(mtus) >= 3, mtus  # the bridge, the tunnel, a veth
        assert set(mtus.values()) == {1450}, mtus
        (inside,) = json.loads(cluster.in_network(task, "ip", "-j", "link", "show", "eth0").stdout)
        assert inside["mtu"] == 1450
    fragments = _fragments(cluster)
    # 20 bytes of IP and 8 of ICMP: a packet of 1450.
    ping = (sys.executable, "-I", "-c", PING, address(there))
    assert cluster.in_network(here, *ping, "1422").stdout.strip() == "1450"
    larger = cluster.in_network(here, *ping, "1423", ok=False)
    assert larger.stderr.strip() == "EMSGSIZE"
    # The tunnel's own packets fit the underlay: nothing was sent in pieces.
    assert _fragments(cluster) == fragments


def _fragments(cluster: Cluster) -> str:
    """How many packets node1 has sent in pieces (`Ip: FragCreates`)."""
    header, values = [
        line.split()
        for line in cluster.exec("node1", "cat", "/proc/net/snmp").stdout.splitlines()
        if line.startswith("Ip:")
    ]
    return values[header.index("FragCreates")]


def test_a_big_transfer_between_hosts_arrives_whole(cluster: Cluster, hello: str) -> None:
    here, there = two_apart(cluster, hello)
    made = cluster.in_task(
        here, "/bin/busybox", "sh", "-c",
        "dd if=/dev/urandom of=/www/big bs=1M count=24 2>/dev/null; md5sum </www/big",
    )  # fmt: skip
    got = cluster.in_task(
        there, "/bin/busybox", "sh", "-c",
        f"/bin/busybox wget -q -T 20 -O - http://{address(here)}/big | md5sum",
    )  # fmt: skip
    assert got.stdout == made.stdout


@contextmanager
def listener(host: str) -> Iterator[tuple[int, list[str]]]:
    """A server on this machine; its port, and the addresses of those who have connected."""
    seen: list[str] = []
    with socket.create_server((host, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, (client, _) = server.accept()
                except OSError:
                    return  # it was shut down
                with connection:
                    seen.append(client)
                    connection.sendall(b"welcome\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], seen
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def machine(cluster: Cluster) -> str:
    """This machine's address on the underlay: the hosts' default gateway."""
    routes = json.loads(cluster.exec("node1", "ip", "-j", "route", "show", "default").stdout)
    return str(routes[0]["gateway"])


def test_containers_reach_the_outside_with_their_nodes_address(
    cluster: Cluster, hello: str
) -> None:
    tasks = cluster.script("idle", hello, "sleep 1000", "--replicas", "3")
    nodes = cluster.nodes()
    outside = machine(cluster)
    with listener(outside) as (port, seen):
        for task in tasks:
            said = cluster.in_task(task, "/bin/busybox", "nc", "-w", "5", outside, str(port))
            assert said.stdout == "welcome\n"
            assert seen[-1] == nodes[task["node"]]["address"]
    # Another node is outside, too: the container has no route of its own to it.
    (first, second, _) = tasks
    address_of_second = nodes[second["node"]]["address"]
    route = cluster.in_network(first, "ip", "-j", "route", "get", address_of_second).stdout
    assert json.loads(route)[0]["gateway"].startswith(address(first).rpartition(".")[0])


OWN_PORT = "mode=host,published=18080,target=80"


def test_a_port_is_published_on_the_node_of_its_task_and_nowhere_else(
    cluster: Cluster, hello: str
) -> None:
    (task,) = cluster.script("who", hello, WHO, "-p", OWN_PORT, *SERVES, "--constraint",
                             "node.hostname==node2")  # fmt: skip
    nodes = cluster.nodes()
    home = nodes["node2"]["address"]
    url = f"http://{home}:18080/"
    # The client's own address is kept, from the machine and from another node.
    assert asker(get(home, 18080)) == machine(cluster)
    assert asker(cluster.exec("node1", *fetch(url)).stdout) == nodes["node1"]["address"]
    # On the node itself: by its address, by loopback, by localhost.
    for name in (home, "127.0.0.1"):
        assert cluster.exec("node2", *fetch(f"http://{name}:18080/")).stdout.strip()
    # From a container elsewhere, and from the one that is published.
    (other,) = cluster.script("idle", hello, "sleep 1000", "--constraint", "node.hostname==node1")
    for client in (other, task):
        assert cluster.in_task(client, *fetch(url)).stdout.strip()
    for name in ("node1", "node3"):
        with pytest.raises(ConnectionRefusedError):
            get(nodes[name]["address"], 18080)
    # It goes with the service.
    cluster.orc("service", "rm", "-d", "who")

    def closed() -> bool:
        try:
            get(home, 18080)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False

    eventually(closed)


def test_a_published_port_follows_its_task(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "-p", "18080:80", *SERVES, hello)
    (task,) = cluster.running("web")
    host = cluster.nodes()[task["node"]]["address"]
    eventually(lambda: f"address: {address(task)}" in get(host, 18080))
    cluster.orc(
        "service", "update", "web", "--env-add", "A=1",
        "--constraint-add", f"node.hostname=={task['node']}",
    )  # fmt: skip
    (after,) = cluster.running("web")
    assert (after["node"], after["id"] != task["id"]) == (task["node"], True)
    eventually(lambda: f"address: {address(after)}" in get(host, 18080))


def broken(cluster: Cluster, damage: str, task: dict[str, Any], other: dict[str, Any]) -> bool:
    """Do damage on a task's host; whether the other one is then out of its reach.

    In one go, since the agent repairs it within seconds.
    """
    page = " ".join(fetch(HTTP.format(address(other)), seconds=1))
    enter = f"nsenter -t {task['pid']} -n"
    done = cluster.exec(
        task["node"], "sh", "-c", f"{damage} && ! {enter} {page} >/dev/null", ok=False
    )
    return done.returncode == 0


def reaches(cluster: Cluster, task: dict[str, Any], other: dict[str, Any]) -> bool:
    page = fetch(HTTP.format(address(other)), seconds=1)
    return "Hello" in cluster.in_task(task, *page, ok=False).stdout


def damaged_and_mended(
    cluster: Cluster, damages: list[tuple[str, dict[str, Any], dict[str, Any]]]
) -> None:
    for _, here, there in damages:
        eventually(partial(reaches, cluster, here, there))
    for damage, here, there in damages:
        # Again, if the agent was by just then.
        eventually(partial(broken, cluster, damage, here, there))
    for _, here, there in damages:
        eventually(partial(reaches, cluster, here, there))


def devices(cluster: Cluster) -> tuple[str, str]:
    """The tunnel and the bridge of the default network."""
    links = json.loads(cluster.exec("node1", "ip", "-j", "link", "show", "type", "vxlan").stdout)
    (device,) = (link["ifname"] for link in links)
    return device, device.replace("orcvx", "orcbr")


def test_entries_that_a_hand_removes_come_back(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", hello)
    tasks = {task["node"]: task for task in cluster.running("web")}
    (network,) = cluster.json("network", "inspect", "default")
    subnets = {row["hostname"]: row["subnet"] for row in network["nodes"]}
    nodes = cluster.nodes()
    (tunnel,) = json.loads(
        cluster.exec("node1", "ip", "-j", "link", "show", "type", "vxlan").stdout
    )
    device = tunnel["ifname"]

    def vtep(node: str) -> str:
        """The tunnel's address on that node, the first of its subnet, as others have it."""
        return str(subnets[node].partition("/")[0])

    neighbours = json.loads(
        cluster.exec("node2", "ip", "-j", "neigh", "show", vtep("node3")).stdout
    )
    mac, host = neighbours[0]["lladdr"], nodes["node3"]["address"]
    damages = [
        ("node1", "node2", f"ip route del {subnets['node2']}"),
        ("node2", "node3", f"bridge fdb del {mac} dev {device} dst {host}"),
        ("node3", "node1", f"ip neigh del {vtep('node1')} dev {device}"),
    ]
    damaged_and_mended(cluster, [(d, tasks[here], tasks[there]) for here, there, d in damages])


def test_links_removed_or_downed_manually_are_restored(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", hello)
    tasks = {task["node"]: task for task in cluster.running("web")}
    device, bridge = devices(cluster)
    damages = [
        ("node1", "node2", f"ip link del {device}"),
        ("node2", "node3", f"ip link set {bridge} down"),
        ("node3", "node2", f"ip link set {device} down"),
    ]
    damaged_and_mended(cluster, [(d, tasks[here], tasks[there]) for here, there, d in damages])


def test_removed_bridge_and_wrong_neighbour_are_repaired(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", hello)
    tasks = {task["node"]: task for task in cluster.running("web")}
    device, bridge = devices(cluster)
    vtep = f"{address(tasks['node3']).rpartition('.')[0]}.0"
    wrong = f"{vtep} lladdr 02:00:00:00:00:01 dev {device} nud permanent"
    damages = [
        ("node2", "node3", f"ip neigh replace {wrong}"),
        # The containers that run are in it again.
        ("node1", "node2", f"ip link del {bridge}"),
    ]
    damaged_and_mended(cluster, [(d, tasks[here], tasks[there]) for here, there, d in damages])


def test_published_ports_come_back_and_foreign_rules_are_left_alone(
    cluster: Cluster, hello: str
) -> None:
    foreign = (
        "table inet foreign { chain c { type filter hook forward priority 5; policy accept; "
        "ip saddr 192.0.2.1 counter packets 7 bytes 77 drop; }; }"
    )
    cluster.exec("node1", "nft", foreign)
    try:
        before = cluster.exec("node1", "nft", "list", "table", "inet", "foreign").stdout
        assert "192.0.2.1" in before
        cluster.orc(
            "service", "create", "--name", "web", "-p", OWN_PORT,
            "--constraint", "node.hostname==node1", hello,
        )  # fmt: skip
        host = cluster.nodes()["node1"]["address"]
        cluster.exec("node1", "nft", "delete", "table", "inet", "orc")

        def published() -> bool:
            try:
                return "Hello" in get(host, 18080)
            except OSError:
                return False

        eventually(published)
        cluster.kill9("node1", "daemon")
        cluster.orc("service", "rm", "-d", "web")
        eventually(lambda: not published())
        assert cluster.exec("node1", "nft", "list", "table", "inet", "foreign").stdout == before
    finally:
        cluster.exec("node1", "nft", "delete", "table", "inet", "foreign")


def leases(cluster: Cluster, node: str) -> list[tuple[str]]:
    """Containers that hold an address on a node, by its own records."""
    path = cluster.data(node) / "network" / "ipam.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as records:
        return records.execute("SELECT container FROM lease").fetchall()


def test_sixty_addresses_are_unique_and_none_leaks(cluster: Cluster, hello: str) -> None:
    small = ("--reserve-cpu", "0.05", "--reserve-memory", "16m")
    cluster.orc("service", "create", "--name", "web", "--replicas", "60", *small, *SERVES, hello)
    tasks = cluster.running("web")
    assert len(tasks) == 60
    assert len({address(task) for task in tasks}) == 60
    assert sum(len(leases(cluster, node)) for node in NODES) == 60
    for node in NODES:
        urls = [HTTP.format(address(task)) for task in tasks]
        assert cluster.exec(node, *fetch_all(urls)).stdout.count("address: ") == 60
    cluster.orc("service", "rm", "-d", "web")

    def nothing_left() -> bool:
        for node in NODES:
            left = cluster.exec(
                node, "sh", "-c", "ls /run/orc/netns; ip -br link show type veth | grep ^orc",
                ok=False,
            )  # fmt: skip
            assert left.stdout == "", left.stdout
            assert leases(cluster, node) == []
        return True

    eventually(nothing_left)


def test_an_address_is_not_given_out_again_at_once(cluster: Cluster, hello: str) -> None:
    given = []
    for _ in range(3):
        cluster.orc(
            "service", "create", "--name", "web", "--constraint", "node.hostname==node3", hello
        )
        given.append(address(*cluster.running("web")))
        cluster.orc("service", "rm", "-d", "web")
        eventually(lambda: leases(cluster, "node3") == [])
    assert len(set(given)) == 3
