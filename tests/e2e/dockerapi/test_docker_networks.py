# SPDX-License-Identifier: Apache-2.0
"""Networks and volumes by the docker CLI."""

from __future__ import annotations

import pytest
from devcluster import Cluster, eventually
from dockerclient import Docker, Run

pytestmark = [pytest.mark.root, pytest.mark.e2e]

NODE = "orc.constraint=node.hostname=={}"


def _node(docker: Docker, name: str) -> str:
    word: str = docker.inspect(name)["Node"]["Name"]
    return word


def test_containers_on_different_nodes_find_each_other_by_name(
    docker: Docker, cluster: Cluster, run: Run, hello: str
) -> None:
    docker("network", "create", "--label", "of=me", "back")
    words = ("run", "-d", "--name", "web", "--network", "back", "--network-alias", "site")
    docker(*words, "-l", NODE.format("node1"), hello)
    run("client", "sleep 1000", "--network", "back", "-l", NODE.format("node2"))
    assert (_node(docker, "web"), _node(docker, "client")) == ("node1", "node2")
    for name in ("web", "site"):
        url = f"http://{name}/cgi-bin/index.cgi"
        assert "node: node1" in eventually(
            lambda url=url: docker("exec", "client", "wget", "-qO-", url)  # type: ignore[misc]
        )
    attached = docker.inspect("back", "network")["Containers"]
    assert {each["Name"] for each in attached.values()} == {"web", "client"}
    assert "has active endpoints" in docker.refused("network", "rm", "back")


def test_container_is_connected_and_disconnected_while_it_runs(docker: Docker, run: Run) -> None:
    docker("network", "create", "back")
    run("web", "sleep 1000", "--network", "back")
    run("client", "sleep 1000")
    assert docker.run("exec", "client", "nslookup", "web", ok=False).returncode != 0
    docker("network", "connect", "--alias", "me", "back", "client")
    names = set(docker.inspect("client")["NetworkSettings"]["Networks"])
    assert names == {"default", "back"}
    eventually(lambda: docker("exec", "client", "ping", "-c1", "web"))
    assert "already exists in network back" in docker.refused(
        "network", "connect", "back", "client"
    )
    docker("network", "disconnect", "back", "client")
    assert set(docker.inspect("client")["NetworkSettings"]["Networks"]) == {"default"}


def test_network_is_created_as_its_options_say(docker: Docker, run: Run) -> None:
    id = docker(
        *("network", "create", "--subnet", "10.77.0.0/16", "--internal", "--label", "a=b"),
        *("-d", "overlay", "--attachable", "back"),
    )
    found = docker.inspect("back", "network")
    assert (found["Id"], found["Internal"], found["Labels"]) == (id, True, {"a": "b"})
    assert found["IPAM"]["Config"][0]["Subnet"] == "10.77.0.0/16"
    run("main", "sleep 1000", "--network", "back")
    address = docker.inspect("main")["NetworkSettings"]["Networks"]["back"]["IPAddress"]
    assert address.startswith("10.77.")
    assert docker("network", "ls", "-q", "--no-trunc", "--filter", "label=a=b") == id
    assert "already exists" in docker.refused("network", "create", "back")
    docker("rm", "-f", "main")
    assert docker("network", "rm", "back") == "back"
    assert "network back not found" in docker.refused("network", "inspect", "back")
    assert "pre-defined network" in docker.refused("network", "rm", "bridge")


def test_networks_of_other_containers_and_of_the_host(docker: Docker, run: Run, box: str) -> None:
    run("web", "nc -lp 8000 -e echo shared", "-l", NODE.format("node1"))
    words = ("run", "--rm", "--network", "container:web", box, "nc", "127.0.0.1", "8000")
    assert docker(*words) == "shared"
    interfaces = docker("run", "--rm", "--network", "none", box, "ls", "/sys/class/net")
    assert interfaces == "lo"
    interfaces = docker("run", "--rm", "--network", "host", box, "ls", "/sys/class/net")
    assert len(interfaces.split()) > 1


def test_volume_keeps_files_for_the_next_container(docker: Docker, box: str) -> None:
    assert docker("volume", "create", "--label", "of=me", "data") == "data"
    docker("run", "--rm", "-v", "data:/data", box, "sh", "-c", "echo kept > /data/file")
    assert docker("run", "--rm", "-v", "data:/data:ro", box, "cat", "/data/file") == "kept"
    found = docker.inspect("data", "volume")
    assert (found["Name"], found["Driver"], found["Labels"]) == ("data", "local", {"of": "me"})
    assert docker("volume", "ls", "-q", "--filter", "label=of") == "data"
    docker("run", "-d", "--name", "user", "-v", "data:/data", box, "sleep", "1000")
    assert "volume is in use" in docker.refused("volume", "rm", "data")
    docker("rm", "-f", "user")
    assert docker("volume", "rm", "data") == "data"
    assert "no such volume" in docker.refused("volume", "inspect", "data").lower()


def test_anonymous_volume_goes_with_its_container(docker: Docker, box: str) -> None:
    docker("run", "--rm", "-v", "/data", box, "touch", "/data/file")
    assert docker("volume", "ls", "-q") == ""
    docker("create", "--name", "main", "-v", "/data", box)
    assert len(docker.lines("volume", "ls", "-q")) == 1
    docker("rm", "-v", "main")
    assert docker("volume", "ls", "-q") == ""


def test_bind_mount_is_of_the_node(docker: Docker, cluster: Cluster, box: str) -> None:
    words = ("run", "--rm", "-l", NODE.format("node1"), "-v", "/etc/hostname:/there:ro", box)
    assert (
        docker(*words, "cat", "/there")
        == cluster.exec("node1", "cat", "/etc/hostname").stdout.strip()
    )
    words = ("run", "--rm", "--mount", "type=bind,source=/no/such/path,target=/there", box, "true")
    line = docker.refused(*words, status=125)
    assert "/no/such/path" in line


def test_bad_options_are_refused(docker: Docker, box: str) -> None:
    for flags, words in {
        ("-v", "data:relative"): "invalid",
        ("-p", "127.0.0.1:8080:80"): "cannot be published on the address 127.0.0.1",
        ("--network", "nosuch"): "no network 'nosuch'",
        ("--blkio-weight", "100"): "block I/O",
        ("--security-opt", "nosuch=1"): "security-opt",
    }.items():
        assert words in docker.refused("run", "--rm", *flags, box, "true", status=125), flags
    assert docker("ps", "-aq") == ""


def test_container_is_published_on_every_node(docker: Docker, cluster: Cluster, hello: str) -> None:
    docker("run", "-d", "--name", "web", "-p", "18091:80", hello)
    for row in cluster.nodes().values():
        words = ("wget", "-qO-", f"http://{row['address']}:18091/cgi-bin/index.cgi")
        assert "Hello from" in eventually(
            lambda words=words: cluster.exec("manager1", "busybox", *words).stdout  # type: ignore[misc]
        )
