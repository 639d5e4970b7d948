# SPDX-License-Identifier: Apache-2.0
"""Names: what a container is told when it asks."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from devcluster import SERVES, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

SMALL = ("--reserve-cpu", "0.05", "--reserve-memory", "16m")


def looked_up(cluster: Cluster, task: dict[str, Any], name: str, kind: str = "a") -> list[str]:
    """What `nslookup` in a container finds under a name, sorted; nothing if there is no such."""
    (addresses,) = all_looked_up(cluster, task, name, kind=kind).values()
    return addresses


def all_looked_up(
    cluster: Cluster, task: dict[str, Any], *names: str, kind: str = "a"
) -> dict[str, list[str]]:
    """The same for several names."""
    loop = 'for name; do /bin/busybox nslookup -type="$0" "$name"; echo @; done'
    asked = cluster.in_task(task, "/bin/busybox", "sh", "-c", loop, kind, *names)
    answers = asked.stdout.split("@\n")
    return dict(zip(names, map(found, answers), strict=False))


def found(said: str) -> list[str]:
    """The addresses in what `nslookup` says, sorted."""
    answer = said.partition("\n\n")[2]
    return sorted(
        line.partition("Address:")[2].strip()
        for line in answer.splitlines()
        if line.startswith("Address:")
    )


def addresses(tasks: list[dict[str, Any]]) -> list[str]:
    return sorted(task["addresses"]["default"] for task in tasks)


def test_a_service_is_known_by_its_name_and_by_its_tasks(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", "--replicas", "3", *SERVES, *SMALL, hello)
    tasks = cluster.running("web")
    (client,) = cluster.script("client", hello, "sleep 1000", *SMALL)
    eventually(lambda: looked_up(cluster, client, "tasks.web") == addresses(tasks))
    (vip,) = looked_up(cluster, client, "web")
    assert vip not in addresses(tasks)
    for task in tasks:
        own = [task["addresses"]["default"]]
        names = (f"{task['slot']}.web", task["name"], task["id"], f"WEB.{task['slot']}")
        assert all_looked_up(cluster, client, *names) == dict.fromkeys(names, own)
    page = cluster.in_task(
        client, "/bin/busybox", "wget", "-q", "-T", "5", "-O", "-", "http://web/"
    )
    assert "Hello" in page.stdout


GRACEFUL = r"""
trap 'sleep 0.3; kill $server; sleep 0.3; exit 0' TERM
mkdir -p /tmp/www && echo Hello >/tmp/www/index.html
httpd -f -p 80 -h /tmp/www & server=$!
wait
"""
"""A web server that, told to stop, takes what has knocked before, and finishes what it has begun:
one that closes its door at once resets those who wait there."""

LOAD = r"""
import asyncio, pathlib, sys

address, until = sys.argv[1], pathlib.Path(sys.argv[2])
answers, failures = 0, []


async def ask():
    reader, writer = await asyncio.open_connection(address, 80)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        if b"Hello" not in await reader.read():
            raise OSError("the answer is cut short")
    finally:
        writer.close()


async def client():
    global answers
    while not until.exists():
        try:
            async with asyncio.timeout(60):
                await ask()
            answers += 1
        except (OSError, TimeoutError) as error:
            failures.append(repr(error))


async def main():
    await asyncio.gather(*(client() for _ in range(4)))


asyncio.run(main())
print(answers, failures[:5])
"""
"""Four clients that open a connection for each request, until a file is there."""


def test_a_rolling_update_loses_no_request(cluster: Cluster, hello: str, tmp_path: Path) -> None:
    cluster.script(
        "web", hello, GRACEFUL, "--replicas", "3", "--health-tcp", "80",
        "--stop-grace-period", "5s", *SMALL,
    )  # fmt: skip
    before = {task["id"] for task in cluster.running("web")}
    (client,) = cluster.script("client", hello, "sleep 1000", *SMALL)
    (vip,) = eventually(lambda: looked_up(cluster, client, "web"))
    done = tmp_path / "done"
    load = (sys.executable, "-I", "-c", LOAD, vip, str(done))
    with ThreadPoolExecutor() as pool:
        loaded = pool.submit(cluster.in_network, client, *load)
        try:
            cluster.orc("service", "update", "web", "--env-add", "A=1")
            cluster.orc("service", "scale", "web=5")
            cluster.orc("service", "scale", "web=1")
        finally:
            done.touch()
        said = loaded.result().stdout
    answers, _, failures = said.strip().partition(" ")
    assert failures == "[]"
    assert int(answers) > 10
    assert not before & {task["id"] for task in cluster.running("web")}


def name_server(cluster: Cluster, node: str) -> str:
    """Its process id, as the node numbers it."""
    return cluster.exec(node, "cat", "/run/orc/names.lock").stdout.strip()


def test_names_survive_the_agent_and_the_name_server_is_replaced(
    cluster: Cluster, hello: str
) -> None:
    cluster.orc("service", "create", "--name", "web", *SMALL, hello)
    (client,) = cluster.script("client", hello, "sleep 1000", *SMALL)
    node = client["node"]
    gateway = cluster.in_task(client, "/bin/busybox", "cat", "/etc/resolv.conf").stdout.split()[1]
    known = eventually(lambda: looked_up(cluster, client, "web"))

    def names() -> list[str]:
        """What the node's name server says; also when this test is so slow that what ran on the
        node is moved to others while its agent is away."""
        nslookup = ("/bin/busybox", "nslookup", "-type=a", "web", gateway)
        return found(cluster.exec(node, *nslookup, ok=False).stdout)

    server = name_server(cluster, node)
    # The agent ends and is away: there are names all the same, from the same server.
    cluster.kill9(node, "daemon")
    assert names() == known
    cluster.start(node)
    cluster.await_ready(node)
    assert (names(), name_server(cluster, node)) == (known, server)
    # The server is killed, and another one is there at once.
    cluster.exec(node, "kill", "-9", server)
    eventually(lambda: names() == known)
    assert name_server(cluster, node) != server


def named_everywhere(cluster: Cluster, clients: list[dict[str, Any]], service: str) -> bool:
    """Whether all clients are told exactly the tasks of a service that run now."""
    wanted = addresses(cluster.running(service))
    for client in clients:
        assert looked_up(cluster, client, f"tasks.{service}") == wanted, client["node"]
    return True


def test_names_follow_over_a_leaders_loss_and_a_partition(cluster: Cluster, hello: str) -> None:
    one_a_node = ("--mode", "global", *SMALL)
    clients = cluster.script("client", hello, "sleep 1000", *one_a_node)
    cluster.orc("service", "create", "--name", "web", "--replicas", "2", *SMALL, hello)
    eventually(lambda: named_everywhere(cluster, clients, "web"))
    # A leader that is killed, and all that it held in memory with it.
    cluster.kill9("manager1", "daemon")
    cluster.start("manager1")
    eventually(lambda: cluster.orc("service", "scale", "web=4", ok=False).returncode == 0)
    eventually(lambda: named_everywhere(cluster, clients, "web"))
    # A node that is cut off knows what it knew, and what is, once it is back.
    cut = clients[-1]["node"]
    known = addresses(cluster.running("web"))
    cluster.partition(cut)
    assert looked_up(cluster, clients[-1], "tasks.web") == known
    eventually(lambda: cluster.nodes()[cut]["state"] == "down")
    cluster.await_running("web", 4)
    eventually(lambda: named_everywhere(cluster, clients[:-1], "web"))
    cluster.heal()
    cluster.await_ready(cut)
    clients = cluster.await_running("client", len(clients))
    eventually(lambda: named_everywhere(cluster, clients, "web"))


def test_names_resolve_in_the_containers_own_networks_only(cluster: Cluster, hello: str) -> None:
    cluster.orc("network", "create", "--internal", "--ipv6", "back")
    try:
        cluster.orc(
            "service", "create", "--name", "db", "--network", "name=back,alias=store",
            "--replicas", "2", "--endpoint-mode", "dnsrr", "-p", "15432:80", *SMALL, hello,
        )  # fmt: skip
        tasks = cluster.running("db")
        both = ("--network", "default", "--network", "back")
        (inside,) = cluster.script("inside", hello, "sleep 1000", *both, *SMALL)
        (outside,) = cluster.script("outside", hello, "sleep 1000", *SMALL)
        own = sorted(task["addresses"]["back"] for task in tasks)
        names = ("db", "store", "tasks.db")
        wanted = dict.fromkeys(names, own)
        eventually(lambda: all_looked_up(cluster, inside, *names) == wanted)
        assert looked_up(cluster, outside, "db") == []
        assert len(looked_up(cluster, inside, "db", "aaaa")) == 2
        # Of the networks that it is on with itself it is told the first one's address.
        mine = [inside["addresses"]["default"]]
        eventually(lambda: looked_up(cluster, inside, "inside.1") == mine)
        asked = cluster.in_task(inside, "/bin/busybox", "nslookup", "-type=srv", "_80._tcp.db")
        targets = {line.split()[-1] for line in asked.stdout.splitlines() if "service =" in line}
        assert targets == {task["name"] for task in tasks}
        for task in tasks:
            asked = cluster.in_task(inside, "/bin/busybox", "nslookup", task["addresses"]["back"])
            assert f"name = {task['name']}" in asked.stdout
    finally:
        cluster.orc("service", "rm", "-d", "db", "inside", "outside", ok=False)
        eventually(lambda: cluster.orc("network", "rm", "back", ok=False).returncode == 0)


QUESTIONS = r"""
import socket, sys

question = b"\0\1\1\0\0\1\0\0\0\0\0\0\3web\0\0\1\0\1"
for _ in range(300):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(5)
        asking.sendto(question, (sys.argv[1], 53))
        asking.recv(512)
"""
"""Asks as a resolver does: each question from a port of its own."""


def test_questions_do_not_fill_the_table_of_connections(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "web", *SMALL, hello)
    (task,) = cluster.running("web")
    gateway = cluster.in_task(task, "/bin/busybox", "cat", "/etc/resolv.conf").stdout.split()[1]

    def tracked() -> int:
        count = "/proc/sys/net/netfilter/nf_conntrack_count"
        return int(cluster.exec(task["node"], "cat", count).stdout)

    before = tracked()
    cluster.in_network(task, sys.executable, "-I", "-c", QUESTIONS, gateway)
    assert tracked() < before + 150, "questions are not among what the host tracks"
