# SPDX-License-Identifier: Apache-2.0
"""Networks as a user has them: made, joined, left, fixed, refused; real packets between hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

BOX = "/bin/busybox"


@pytest.fixture
def tidy(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, afterwards without containers of their own and without further networks."""
    yield cluster
    for service in cluster.json("service", "ls"):
        cluster.orc("service", "rm", "-d", service["name"])
    containers = cluster.json("ps", "-a")
    if own := [row["id"] for row in containers if not row["service"]]:
        cluster.orc("rm", "-f", *own)

    def pruned() -> bool:
        cluster.orc("network", "prune", "--force")
        names = [row["name"] for row in cluster.json("network", "ls")]
        assert names == ["bridge", "default"], names
        return True

    eventually(pruned)


def start(cluster: Cluster, name: str, image: str, *flags: str) -> None:
    """A container of its own that does nothing."""
    cluster.orc("run", "-d", "--name", name, *flags, "--entrypoint", BOX, image, "sleep", "10000")


def inside(cluster: Cluster, name: str, *command: str, ok: bool = True) -> str:
    """What a program prints in a container."""
    return cluster.orc("exec", name, BOX, *command, ok=ok).stdout


def page(cluster: Cluster, name: str, host: str) -> str:
    """A web page as a container gets it; empty if it does not."""
    url = f"http://[{host}]/" if ":" in host else f"http://{host}/"
    return inside(cluster, name, "wget", "-q", "-T", "1", "-O", "-", url, ok=False)


def answers(cluster: Cluster, name: str, host: str, text: str) -> None:
    """Wait until a container gets a page that says this."""

    def ask() -> bool:
        said = page(cluster, name, host)
        assert text in said, said
        return True

    eventually(ask)


def addresses(cluster: Cluster, network: str) -> dict[str, dict[str, Any]]:
    """The containers on a network, by name."""
    (found,) = cluster.json("network", "inspect", network)
    return {each["name"]: each for each in found["containers"]}


def test_networks_reach_over_nodes_and_not_into_each_other(tidy: Cluster, hello: str) -> None:
    cluster = tidy
    cluster.orc("network", "create", "--attachable", "--ipv6", "front")
    cluster.orc("network", "create", "--attachable", "--internal", "--opt", "mtu=1300", "back")
    three = ("--replicas", "3", hello)
    cluster.orc("service", "create", "--name", "web", "--network", "front", *three)
    cluster.orc("service", "create", "--name", "db", "--network", "back", *three)
    start(cluster, "both", hello, "--network", "front", "--network", "back")
    start(cluster, "front-only", hello, "--network", "front", "--node", "node1")
    start(cluster, "back-only", hello, "--network", "back", "--node", "node1")

    web, db = addresses(cluster, "front"), addresses(cluster, "back")
    for slot in (1, 2, 3):
        one, other = web[f"web.{slot}"], db[f"db.{slot}"]
        for host in (one["address"], one["address6"]):
            answers(cluster, "both", host, f"Hello from web.{slot}")
            answers(cluster, "front-only", host, f"Hello from web.{slot}")
        answers(cluster, "both", other["address"], f"Hello from db.{slot}")
        # On its own node, and on others.
        assert page(cluster, "back-only", one["address"]) == ""
        assert page(cluster, "front-only", other["address"]) == ""
    # By name, as far as it is on the network.
    answers(cluster, "both", "db", "Hello from db")
    assert page(cluster, "front-only", "db") == ""
    # Internal: no way out, and the MTU that was said.
    assert "default" not in inside(cluster, "back-only", "ip", "route")
    assert "default" in inside(cluster, "both", "ip", "route")
    assert "mtu 1300" in inside(cluster, "back-only", "ip", "link", "show", "eth0")


def test_a_container_joins_and_leaves_networks_while_it_runs(tidy: Cluster, hello: str) -> None:
    cluster = tidy
    cluster.orc("network", "create", "--attachable", "back")
    start(cluster, "one", hello)
    cluster.orc("run", "-d", "--name", "db", "--network", "back", hello)
    assert page(cluster, "one", "db") == ""
    cluster.orc("network", "connect", "--alias", "first", "back", "one")
    answers(cluster, "one", "db", "Hello from db")
    (row,) = cluster.json("ps", "--filter", "name=one")
    assert set(row["addresses"]) == {"default", "back"}
    assert cluster.refused("network", "connect", "back", "one") == (
        "orc: container 'one' is already on network 'back'"
    )
    assert "in use by container db and container one" in cluster.refused("network", "rm", "back")
    # After a restart all is as before.
    cluster.orc("restart", "-t", "0", "one")
    assert "Hello from db" in eventually(lambda: page(cluster, "one", "db"))
    cluster.orc("network", "disconnect", "default", "one")
    assert "eth0" not in inside(cluster, "one", "ip", "link")
    answers(cluster, "one", "db", "Hello from db")
    cluster.orc("network", "disconnect", "back", "one")
    assert inside(cluster, "one", "ip", "link").count("mtu") == 1
    cluster.orc("network", "connect", "default", "one")
    assert "default via" in inside(cluster, "one", "ip", "route")


def test_an_address_is_whose_it_was_fixed_for_and_reached_from_everywhere(
    tidy: Cluster, hello: str
) -> None:
    cluster = tidy
    cluster.orc(
        "network", "create", "--attachable", "--subnet", "10.77.0.0/16",
        "--subnet", "fd00:77::/48", "--gateway", "10.77.0.254", "back",
    )  # fmt: skip
    cluster.orc(
        "service", "create", "--name", "db", "--replicas", "3",
        "--network", "name=back,ip=10.77.0.11,ip=10.77.0.12,ip=10.77.0.13", hello,
    )  # fmt: skip
    start(
        cluster, "fixed", hello, "--network", "back", "--ip", "10.77.0.5", "--ip6", "fd00:77::5",
        "--mac-address", "02:00:00:00:00:77",
    )  # fmt: skip
    assert "02:00:00:00:00:77" in inside(cluster, "fixed", "ip", "link", "show", "eth0")
    assert "via 10.77." in inside(cluster, "fixed", "ip", "route", "show", "default")
    for slot in (1, 2, 3):
        answers(cluster, "fixed", f"10.77.0.1{slot}", f"Hello from db.{slot}")
    node = cluster.json("ps", "--filter", "name=fixed")[0]["node"]
    other = next(each for each in cluster.nodes() if each != node)
    start(cluster, "asker", hello, "--network", "back", "--node", other)
    inside(cluster, "asker", "ping", "-c", "1", "-W", "5", "10.77.0.5")
    inside(cluster, "asker", "ping", "-c", "1", "-W", "5", "fd00:77::5")

    box = ("--network", "back", "--entrypoint", BOX, hello, "true")
    assert cluster.refused("run", "--ip", "10.77.0.12", *box) == (
        "orc: address 10.77.0.12 of network 'back' belongs to service db; choose another"
    )
    assert "gives out; choose one in 10.77.0.0/24" in cluster.refused(
        "run", "--ip", "10.77.1.9", *box
    )
    assert "belongs to gateway" in cluster.refused("run", "--ip", "10.77.0.254", *box)
    assert cluster.refused("service", "scale", "db=4").startswith(
        "orc: service 'db' has 4 replicas and 3 fixed addresses in network 'back'"
    )
    # A replacement has its slot's address, wherever it is.
    cluster.orc("service", "update", "--force", "db")
    for slot in (1, 2, 3):
        host = f"10.77.0.1{slot}"
        hosts = eventually(lambda host=host: page(cluster, "asker", host))
        assert f"Hello from db.{slot}" in hosts


def test_an_address_is_fixed_on_a_bridge_network_too(tidy: Cluster, hello: str) -> None:
    cluster = tidy
    cluster.orc("network", "create", "--driver", "bridge", "--attachable",
                "--subnet", "10.78.0.0/24", "back")  # fmt: skip
    cluster.orc("run", "-d", "--name", "fixed", "--network", "back", "--ip", "10.78.0.5",
                "--node", "node1", hello)  # fmt: skip
    start(cluster, "asker", hello, "--network", "back", "--node", "node1")
    eventually(lambda: "Hello from fixed" in page(cluster, "asker", "10.78.0.5"))
    assert cluster.refused("run", "--network", "back", "--ip", "10.78.0.5", hello) == (
        "orc: address 10.78.0.5 of network 'back' belongs to container fixed; choose another"
    )
    cluster.orc("restart", "fixed")
    eventually(lambda: "Hello from fixed" in page(cluster, "asker", "10.78.0.5"))


def test_network_modes_none_host_and_container(tidy: Cluster, hello: str) -> None:
    cluster = tidy
    start(cluster, "alone", hello, "--network", "none")
    assert inside(cluster, "alone", "ip", "link").count("mtu") == 1
    cluster.orc("run", "-d", "--name", "web", "--node", "node2", hello)
    start(cluster, "sidecar", hello, "--network", "container:web")
    assert cluster.json("ps", "--filter", "name=sidecar")[0]["node"] == "node2"
    answers(cluster, "sidecar", "127.0.0.1", "Hello from web")
    shared = ("--pid", "container:web", "--network", "container:web")
    start(cluster, "debugger", hello, *shared)
    assert cluster.json("ps", "--filter", "name=debugger")[0]["node"] == "node2"
    assert "ORC_TASK_NAME=web\0" in inside(cluster, "debugger", "cat", "/proc/1/environ")
    assert cluster.refused("run", "--ipc", "container:web", hello) == (
        "orc: container web does not share its ipc namespace; run it with --ipc shareable"
    )
    assert "is not supported for a service" in cluster.refused(
        "service", "create", "--name", "s", "--pid", "container:web", hello
    )
    start(cluster, "host", hello, "--network", "host", "--node", "node3")
    assert cluster.nodes()["node3"]["address"] in inside(cluster, "host", "ip", "address")
    assert inside(cluster, "host", "hostname") == "node3\n"


def test_a_bridge_is_each_nodes_own_with_a_way_out(tidy: Cluster, hello: str) -> None:
    cluster = tidy
    for node in ("node1", "node2"):
        cluster.orc(
            "run", "-d", "--name", f"web-{node}", "--network", "bridge", "--node", node,
            "-p", "18081:80", hello,
        )  # fmt: skip
    start(cluster, "asker", hello, "--network", "bridge", "--node", "node1")
    found = addresses(cluster, "bridge")
    answers(cluster, "asker", "web-node1", "Hello from web-node1")
    assert page(cluster, "asker", found["web-node2"]["address"]) == ""
    # Out by the node's address, and in by its port.
    for node in ("node1", "node2"):
        url = f"http://{cluster.nodes()[node]['address']}:18081/"
        assert f"Hello from web-{node}" in inside(cluster, "asker", "wget", "-qO-", "-T5", url)


def test_invalid_networks_are_refused_in_one_line(tidy: Cluster, hello: str) -> None:
    cluster = tidy
    cluster.orc("network", "create", "--driver", "overlay", "services")
    underlay = cluster.nodes()["node1"]["address"]
    refusals = {
        ("--subnet", "10.128.5.0/24", "x"): "overlaps network 'default'",
        ("--subnet", f"{underlay}/32", "x"): "/27 is the smallest",
        ("--subnet", f"{underlay.rpartition('.')[0]}.0/24", "x"): "overlaps the address",
        ("--opt", "mtu=100", "x"): "is not in 576-65485",
        ("--driver", "overly", "x"): "did you mean 'overlay'?",
        ("services",): "network 'services' already exists",
        ("host",): "in every cluster",
    }
    for flags, words in refusals.items():
        assert words in cluster.refused("network", "create", *flags)
    assert "takes services only; make it with 'orc network create --attachable'" in (
        cluster.refused("run", "--network", "services", hello)
    )
    assert "did you mean 'services'?" in cluster.refused("run", "--network", "service", hello)
    assert "is part of every cluster" in cluster.refused("network", "rm", "default")


def test_a_network_leaves_the_nodes_with_its_last_container(tidy: Cluster, hello: str) -> None:
    cluster = tidy

    def kinds() -> list[str]:
        links = json.loads(cluster.exec("node1", "ip", "-j", "-d", "link").stdout)
        return [link.get("linkinfo", {}).get("info_kind") for link in links]

    eventually(lambda: kinds().count("vxlan") == 1)
    cluster.orc("network", "create", "--attachable", "back")
    start(cluster, "one", hello, "--network", "back", "--node", "node1")
    assert kinds().count("vxlan") == 2
    cluster.orc("rm", "-f", "one")
    eventually(lambda: kinds().count("vxlan") == 1)
    cluster.orc("network", "rm", "back")
