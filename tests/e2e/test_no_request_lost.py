# SPDX-License-Identifier: Apache-2.0
"""Nodes are drained, versions replaced, agents killed, while clients ask: none of them fails.

Clients that keep their connection and such as open one for each request ask the VIP from a
container, and every node's published port from one host. The server is what a web server
should be: told to stop, it answers what it is asked once more on each connection, and closes it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually
from test_network import get

pytestmark = [pytest.mark.root, pytest.mark.e2e]

PORT = 18090
NODES = ("node1", "node2", "node3")
PYTHON = "/usr/bin/python3"
ON_NODE2 = ("--constraint", "node.hostname==node2")

SERVER = r"""
import asyncio, signal

leaving = asyncio.Event()
connections = set()


async def serve(reader, writer):
    connections.add(asyncio.current_task())
    try:
        close = False
        while not close:
            asked = await reader.readuntil(b"\r\n\r\n")
            close = leaving.is_set() or b"connection: close" in asked.lower()
            kept = b"close" if close else b"keep-alive"
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: %s\r\nContent-Length: 2\r\n\r\nok" % kept)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
        connections.discard(asyncio.current_task())


async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leaving.set)
    async with await asyncio.start_server(serve, "0.0.0.0", 80):
        await leaving.wait()
        # Who closes the door at once resets those who have knocked before.
        await asyncio.sleep(0.3)
        if connections:
            await asyncio.wait(connections, timeout=5)


asyncio.run(main())
"""

LOAD = r"""
import http.client, json, sys, threading

host, port, keep = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "keep"
over, answered, failures = threading.Event(), [0, 0], []


def ask(place):
    connection = http.client.HTTPConnection(host, port, timeout=60)
    while not over.is_set():
        try:
            connection.request("GET", "/", headers={} if keep else {"Connection": "close"})
            assert connection.getresponse().read() == b"ok"
            answered[place] += 1
        except Exception as error:
            failures.append(repr(error))
            connection.close()


threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(answered))]
for thread in threads:
    thread.start()
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
print(json.dumps({"answered": sum(answered), "failures": failures}))
"""


@contextmanager
def load(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Clients that ask until they are told to `stop`."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the clients saw."""
    said, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, complaint
    found: dict[str, Any] = json.loads(said)
    return found


def vip(cluster: Cluster) -> str:
    """The service's own address."""
    [network] = cluster.json("network", "inspect", "default")
    [found] = [one["vip"] for one in network["services"] if one["name"] == "web"]
    return str(found)


def ways(cluster: Cluster, client: dict[str, Any]) -> Iterator[tuple[str, Sequence[str]]]:
    """From where is asked, and the command to which only the kind of connection is missing."""
    enter = (ORC, "dev", "exec", "--name", cluster.name, client["node"])
    enter = (*enter, "nsenter", "-t", str(client["pid"]), "-n")
    yield "the VIP", (*enter, sys.executable, "-c", LOAD, vip(cluster), "80")
    # From one host, whose ports so are used towards several nodes at a time.
    for name in NODES:
        address = cluster.nodes()[name]["address"]
        yield f"port of {name}", (sys.executable, "-c", LOAD, address, str(PORT))


def serve(cluster: Cluster, image: str, *flags: str) -> None:
    """The service `web`."""
    cluster.orc(
        "service", "create", "--name", "web", "-p", f"{PORT}:80",
        "-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro", "-v", "/usr/lib64:/lib64:ro",
        "--health-tcp", "80", "--health-interval", "1s", "--update-order", "start-first",
        "--entrypoint", PYTHON, *flags, image, "-c", SERVER,
    )  # fmt: skip


@contextmanager
def asked(cluster: Cluster, client: dict[str, Any]) -> Iterator[None]:
    """All the time in every way, without a failure. It begins when each way leads there."""
    for address in [node["address"] for node in cluster.nodes().values()]:
        eventually(lambda address=address: get(address, PORT) == "ok")  # type: ignore[misc]
    page = ("/bin/busybox", "wget", "-q", "-O", "-", f"http://{vip(cluster)}/")
    eventually(lambda: cluster.in_network(client, *page).stdout == "ok")
    with ExitStack() as stack:
        asking = {
            f"{where}, {kind}": stack.enter_context(load(*command, kind))
            for where, command in ways(cluster, client)
            for kind in ("keep", "short")
        }
        yield
        seen = {name: stop(process) for name, process in asking.items()}
    assert {name: found["failures"] for name, found in seen.items() if found["failures"]} == {}
    assert all(found["answered"] > 10 for found in seen.values()), seen


def test_no_request_fails_while_a_node_is_drained_and_a_version_replaced(
    cluster: Cluster, hello: str
) -> None:
    [client] = cluster.script("client", hello, "sleep 86400", *ON_NODE2)
    serve(cluster, hello, "--replicas", "3")
    assert {task["node"] for task in cluster.running("web")} == set(NODES)

    def drained() -> bool:
        tasks = cluster.running("web")
        return len(tasks) == 3 and all(task["node"] != "node1" for task in tasks)

    with asked(cluster, client):
        cluster.orc("node", "update", "--availability", "drain", "node1")
        try:
            eventually(drained)
        finally:
            cluster.orc("node", "update", "--availability", "active", "node1")
        cluster.orc("service", "update", "web", "--env-add", "VERSION=2")


@pytest.fixture
def patient(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with a manager that calls no node down whose agent takes long to restart."""
    cluster.stop("manager1")
    cluster.dev("start", "manager1", "--", "--node-timeout", "60")
    eventually(lambda: cluster.json("cluster", "info")["node_timeout"] == 60)
    cluster.await_ready(*NODES)
    yield cluster
    cluster.stop("manager1")
    cluster.dev("start", "manager1")
    cluster.await_ready(*NODES)


def test_agents_that_are_killed_change_no_packets_way(patient: Cluster, hello: str) -> None:
    """Not where it is asked, not where it is served, not while they are away and not when they
    come back."""
    cluster = patient
    [client] = cluster.script("client", hello, "sleep 86400", *ON_NODE2)
    serve(cluster, hello, "--constraint", "node.hostname==node3")
    before = {node: cluster.status()[node]["restarts"] for node in ("node2", "node3")}
    with asked(cluster, client):
        for node in before:
            cluster.kill9(node, "daemon")
        for node, count in before.items():
            eventually(lambda n=node, c=count: cluster.status()[n]["restarts"] > c)  # type: ignore[misc]
        cluster.await_ready(*before)
        # Their helpers have taken the network over, and applied all of it once more.
        cluster.orc("service", "scale", "client=2")
