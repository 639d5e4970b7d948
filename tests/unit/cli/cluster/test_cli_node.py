# SPDX-License-Identifier: Apache-2.0
"""`orc node`, `orc network`, `orc cluster`, `orc images`: tables, JSON keys, filters, requests."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from click.testing import Result
from scripted_manager import Refusal

from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import Node
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import control_pb2 as pb
from orchestrator.pb import networks_pb2, types_pb2

Run = Callable[..., Result]
Refused = Callable[..., str]
MIB = 1 << 20


def node_row(number: int, **node: Any) -> Any:
    return {
        "node": {
            "id": f"abcdefghijkl{number}",
            "role": "worker",
            "labels": {"zone": f"z{number}"},
            "state": "NODE_READY",
            "description": {
                "hostname": f"node{number}",
                "address": f"10.0.0.{number}",
                "resources": {"shares": 2048, "memory": 1024 * MIB},
                "version": "0.1.0",
                "labels": {"disk": "ssd", "zone": "overridden"},
                "cgroup": "v2",
            },
            **node,
        },
        "reserved": {"shares": 512, "memory": 64 * MIB},
        "tasks": 3,
    }


NODES = pb.ListNodesReply(
    nodes=[
        node_row(2, state="NODE_DOWN", availability="AVAILABILITY_DRAIN", message="silent"),
        node_row(1, role="manager"),
    ]
)


@pytest.fixture
def nodes(manager: Any) -> Any:
    manager.script.answers["ListNodes"] = NODES
    return manager.script


def test_node_table(nodes: Any, run: Run) -> None:
    result = run("node", "ls")
    assert (result.exit_code, result.stderr) == (0, "")
    heading, first, second = result.stdout.splitlines()
    columns = "ID HOSTNAME STATUS AVAILABILITY ROLE ADDRESS TASKS CPUS MEMORY VERSION"
    assert heading.split() == columns.split()
    assert first.split("   ")[0] == "abcdefghijkl"
    for text in ("node1", "Ready", "Active", "10.0.0.1", "0.5 / 2", "64MiB / 1GiB", "0.1.0"):
        assert text in first
    assert "Down" in second
    assert "Drain" in second
    assert "abcdefghijkl2" in run("node", "ls", "--no-trunc").stdout


def test_node_json_keys(nodes: Any, run: Run) -> None:
    rows = json.loads(run("node", "ls", "--format", "json").stdout)
    promised = {
        "id": "abcdefghijkl1",
        "hostname": "node1",
        "role": "manager",
        "availability": "active",
        "state": "ready",
        "address": "10.0.0.1",
        "shares_total": 2048,
        "shares_reserved": 512,
        "memory_total": 1024 * MIB,
        "memory_reserved": 64 * MIB,
        "tasks": 3,
        "version": "0.1.0",
        "labels": {"zone": "z1"},
        "engine_labels": {"disk": "ssd", "zone": "overridden"},
    }
    assert rows[0].items() >= promised.items()
    assert not any(key.startswith("_") for key in rows[0])


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], ["abcdefghijkl1", "abcdefghijkl2"]),
        (["role=worker"], ["abcdefghijkl2"]),
        (["state=Ready"], ["abcdefghijkl1"]),
        (["availability=drain"], ["abcdefghijkl2"]),
        (["name=node"], ["abcdefghijkl1", "abcdefghijkl2"]),
        (["name=node1", "name=node2"], ["abcdefghijkl1", "abcdefghijkl2"]),
        (["name=node1", "role=worker"], []),
        (["label=zone"], ["abcdefghijkl1", "abcdefghijkl2"]),
        (["label=zone=z2"], ["abcdefghijkl2"]),
        (["id=abcdefghijkl1"], ["abcdefghijkl1"]),
    ],
)
def test_node_filters(nodes: Any, run: Run, filters: list[str], ids: list[str]) -> None:
    words = [word for each in filters for word in ("--filter", each)]
    assert run("node", "ls", "-q", *words).stdout.split() == ids


def test_node_inspect(nodes: Any, run: Run, refused: Refused) -> None:
    (document,) = json.loads(run("node", "inspect", "node2").stdout)
    assert document["message"] == "silent"
    assert document["cgroup"] == "v2"
    assert json.loads(run("node", "inspect", "abcdefghijkl1").stdout)[0]["hostname"] == "node1"
    pretty = run("node", "inspect", "--pretty", "node2", "node1").stdout
    assert "Allowed:       privileged, devices, host-network" in pretty
    assert "Why:           silent" in pretty
    assert "Resources:     2 cores, 1GiB" in pretty
    assert refused("node", "inspect", "nod1") == "no node 'nod1'; did you mean 'node1'?"
    assert "is ambiguous" in refused("node", "inspect", "abc")
    assert "see 'orc node ls'" in refused("node", "inspect", "zzz")


def test_node_update(manager: Any, run: Run, refused: Refused) -> None:
    manager.script.answers["UpdateNode"] = pb.ListNodesReply().nodes.add().node
    manager.script.answers["ListTasks"] = pb.ListTasksReply()
    words = ["--availability", "drain", "--label-add", "zone=a", "--label-rm", "disk"]
    assert run("node", "update", *words, "node1").stdout == "node1\n"
    request = manager.script.request("UpdateNode")
    assert request == pb.UpdateNodeRequest(
        node="node1",
        availability="AVAILABILITY_DRAIN",
        label_add={"zone": "a"},
        label_rm=["disk"],
    )
    run("node", "update", "--allow", "privileged,devices", "--disallow", "host-network", "node1")
    assert manager.script.request("UpdateNode") == pb.UpdateNodeRequest(
        node="node1", allow=["privileged", "devices"], disallow=["host-network"]
    )
    line = refused("node", "update", "--allow", "gpus", "node1", status=2)
    assert "--allow: 'gpus' is unknown; known are privileged" in line
    run("node", "update", "--label-add", "x", "node1")
    assert not manager.script.request("UpdateNode").HasField("availability")
    run("node", "update", "--availability", "active", "node1")
    assert manager.script.request("UpdateNode").HasField("availability")
    run("node", "update", "--rotate-key", "node1")
    wanted = pb.UpdateNodeRequest(node="node1", rotate_key=True)
    assert manager.script.request("UpdateNode") == wanted
    run("node", "update", "--address", "10.0.0.9", "node1")
    wanted = pb.UpdateNodeRequest(node="node1", address="10.0.0.9")
    assert manager.script.request("UpdateNode") == wanted
    assert "nothing to change" in refused("node", "update", "node1", status=2)


def _tasks(*found: Task) -> Any:
    return pb.ListTasksReply(tasks=map(to_proto, found))


def test_a_drain_waits_until_the_node_is_empty(
    manager: Any, run: Run, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(slot: int, state: TaskState, **fields: Any) -> Task:
        name = {"service_id": "s", "service_name": "web"} if slot else {"container_name": "box"}
        return Task(id=f"t{slot}", slot=slot, status=TaskStatus(state, **fields), **name)

    box = task(0, TaskState.RUNNING)
    two, one = task(1, TaskState.RUNNING), task(2, TaskState.RUNNING)
    gone = [task(slot, TaskState.SHUTDOWN) for slot in (1, 2)]
    monkeypatch.setattr("orchestrator.cli.cluster.node_commands._PROGRESS_INTERVAL", 0.0)
    manager.script.answers["UpdateNode"] = to_proto(Node(id="n2"))
    looks = iter([_tasks(box, one, two), _tasks(box, one), _tasks(box, *gone), _tasks(box, *gone)])

    def listed(request: Any) -> Any:
        assert request.node == "n2"
        return next(looks)

    manager.script.answers["ListTasks"] = listed
    drain = ("node", "update", "--availability", "drain")
    assert run(*drain, "--detach", "node2").stderr == ""
    done = run(*drain, "node2")
    assert (done.exit_code, done.stdout) == (0, "node2\n")
    assert done.stderr.splitlines() == [
        "node2: 2 tasks of web left",
        "node2: 1 task of web left",
        "node2: box stays: a drain moves the tasks of services, not containers of 'orc run'",
    ]

    waiting = task(3, TaskState.PENDING, message="no suitable node")
    manager.script.answers["ListTasks"] = lambda request: (
        _tasks(one) if request.node else _tasks(one, waiting)
    )
    done = run(*drain, "--timeout", "0s", "node2")
    assert (done.exit_code, done.stderr) == (
        3,
        "orc: node node2 still has 1 task of web after 0s: no suitable node; the drain continues, "
        "see 'orc node ps node2' and 'orc why web'\n",
    )
    assert "--timeout go with" in refused("node", "update", "--timeout", "1m", "node2", status=2)


def test_node_rm(manager: Any, run: Run) -> None:
    manager.script.answers["RemoveNode"] = pb.RemoveNodeReply()
    assert run("node", "rm", "--force", "node1", "node2").stdout == "node1\nnode2\n"
    assert manager.script.request("RemoveNode") == pb.RemoveNodeRequest(node="node2", force=True)


def test_node_ps(manager: Any, run: Run) -> None:
    manager.script.answers["ListTasks"] = pb.ListTasksReply(
        tasks=[{"id": "t1", "service_name": "web", "slot": 1, "node_id": "n1"}],
        hostnames={"n1": "node1"},
    )
    (row,) = json.loads(run("node", "ps", "node1", "--format", "json").stdout)
    assert (row["name"], row["node"]) == ("web.1", "node1")
    assert manager.script.request("ListTasks").node == "node1"


def test_node_ps_of_a_long_list(manager: Any, run: Run) -> None:
    """A manager sends tasks in pages; each but the first is asked for by the token before it."""

    def page(request: Any) -> Any:
        assert request.page_size > 0
        number = int(request.page_token or 0)
        task = {"id": f"t{number}", "service_name": "web", "slot": number, "node_id": "n1"}
        token = str(number + 1) if number < 2 else ""
        return pb.ListTasksReply(tasks=[task], hostnames={"n1": "node1"}, next_page_token=token)

    manager.script.answers["ListTasks"] = page
    rows = json.loads(run("node", "ps", "node1", "--format", "json").stdout)
    assert [(row["name"], row["node"]) for row in rows] == [
        ("web.0", "node1"),
        ("web.1", "node1"),
        ("web.2", "node1"),
    ]


# --- networks


@pytest.fixture
def networks(manager: Any) -> Any:
    manager.script.answers["ListNetworks"] = pb.ListNetworksReply(
        networks=[
            {
                "id": "net1",
                "name": "default",
                "driver": "overlay",
                "subnet": "10.128.0.0/14",
                "vni": 4097,
                "attachable": True,
                "slices": {"abcdefghijkl2": "10.128.2.0/24", "abcdefghijkl1": "10.128.1.0/24"},
            },
            {"id": "net2", "name": "back", "driver": "bridge", "subnet": "10.99.0.0/16"},
        ]
    )
    manager.script.answers["ListNodes"] = NODES
    manager.script.answers["ListServices"] = pb.ListServicesReply(
        services=[
            {"service": {"spec": {"name": "web"}, "vips": {"net1": "10.128.0.7"}}},
            {"service": {"spec": {"name": "db", "task": {"networks": [{"network": "back"}]}}}},
        ]
    )
    manager.script.answers["ListTasks"] = pb.ListTasksReply(
        tasks=[
            {
                "id": "t1",
                "service_id": "s1",
                "service_name": "web",
                "slot": 1,
                "node_id": "abcdefghijkl1",
                "status": {"state": "TASK_RUNNING", "addresses": {"default": "10.128.1.2"}},
            },
            {
                "id": "t2",
                "status": {"state": "TASK_FAILED", "addresses": {"default": "10.128.1.3"}},
            },
        ]
    )
    return manager.script


def test_network_ls(networks: Any, run: Run) -> None:
    assert run("network", "ls").stdout.splitlines()[2].split() == [
        "net1",
        "default",
        "overlay",
        "10.128.0.0/14",
        "4097",
        "cluster",
        "attachable",
    ]
    rows = json.loads(run("network", "ls", "--format", "json", "--filter", "name=def").stdout)
    promised = {
        "id": "net1",
        "name": "default",
        "driver": "overlay",
        "subnet": "10.128.0.0/14",
        "vni": 4097,
        "internal": False,
        "encrypted": False,
    }
    assert [row.items() >= promised.items() for row in rows] == [True]
    assert run("network", "ls", "-q").stdout.split() == ["net2", "net1"]


def test_network_inspect(networks: Any, run: Run, refused: Refused) -> None:
    default, back = json.loads(run("network", "inspect", "default", "back").stdout)
    assert default["services"] == [{"name": "web", "vip": "10.128.0.7", "vip6": None}]
    assert back["services"] == [{"name": "db", "vip": None, "vip6": None}]
    assert back["vni"] is None
    assert default["containers"] == [
        {
            "id": "t1",
            "name": "web.1",
            "node": "node1",
            "address": "10.128.1.2",
            "address6": None,
        }
    ]
    assert default["nodes"] == [
        {"id": "abcdefghijkl1", "hostname": "node1", "subnet": "10.128.1.0/24"},
        {"id": "abcdefghijkl2", "hostname": "node2", "subnet": "10.128.2.0/24"},
    ]
    pretty = run("network", "inspect", "--pretty", "net1").stdout
    assert re.search(r"^Node node2: +10\.128\.2\.0/24$", pretty, re.MULTILINE)
    assert refused("network", "inspect", "defalt") == (
        "no network 'defalt'; did you mean 'default'?"
    )


def test_network_create(manager: Any, run: Run) -> None:
    manager.script.answers["CreateNetwork"] = types_pb2.Network(id="net3")
    flags = shlex.split(
        "--driver overlay --subnet 10.5.0.0/16 --subnet fd00:5::/48 --gateway 10.5.0.9 "
        "--ip-range 10.5.128.0/17 --internal --attachable --opt mtu=1400 --opt encrypted "
        "--label team=a --label old"
    )
    assert run("network", "create", *flags, "back").stdout == "net3\n"
    assert manager.script.request("CreateNetwork") == networks_pb2.CreateNetworkRequest(
        name="back",
        driver="overlay",
        subnets=["10.5.0.0/16", "fd00:5::/48"],
        gateway="10.5.0.9",
        ip_range="10.5.128.0/17",
        internal=True,
        attachable=True,
        encrypted=True,
        options={"mtu": "1400"},
        labels={"team": "a", "old": ""},
    )


@pytest.mark.parametrize(
    ("option", "encrypted"),
    [
        *(
            ("encrypted" + value, True)
            for value in ("", "=", "=true", "=TRUE", "=True", "=t", "=1")
        ),
        *(("encrypted" + value, False) for value in ("=false", "=FALSE", "=F", "=0")),
        ("mtu=1400", False),
    ],
)
def test_encryption_option(manager: Any, run: Run, option: str, encrypted: bool) -> None:
    manager.script.answers["CreateNetwork"] = types_pb2.Network(id="net3")
    run("network", "create", "--opt", option, "back")
    assert manager.script.request("CreateNetwork").encrypted is encrypted


@pytest.mark.parametrize("value", ["yes", "maybe", "on", "2", "tru", " true"])
def test_invalid_encryption_option(manager: Any, run: Run, value: str) -> None:
    result = run("network", "create", "--opt", f"encrypted={value}", "back")
    assert result.exit_code == 2
    assert f"network option encrypted={value} is not a boolean (true or false)" in result.stderr
    assert not manager.script.requests


@pytest.mark.parametrize(
    ("flags", "attachable"),
    [("", True), ("--driver overlay", False), ("--driver overlay --attachable", True)],
)
def test_network_is_attachable_unless_driver_is_overlay(
    manager: Any, run: Run, flags: str, attachable: bool
) -> None:
    manager.script.answers["CreateNetwork"] = types_pb2.Network(id="net3")
    run("network", "create", *flags.split(), "back")
    assert manager.script.request("CreateNetwork").attachable is attachable


def test_networks_by_a_template(manager: Any, run: Run) -> None:
    network = types_pb2.Network(id="net3", name="back", driver="overlay")
    manager.script.answers["ListNetworks"] = pb.ListNetworksReply(networks=[network])
    assert run("network", "ls", "--format", "{{.Name}} {{.Driver}}").stdout == "back overlay\n"


def test_network_rm_continues_after_a_refusal(manager: Any, run: Run) -> None:
    def answer(request: networks_pb2.RemoveNetworkRequest) -> Any:
        if request.network == "busy":
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "network 'busy' is in use")
        return networks_pb2.RemoveNetworkReply(name=request.network)

    manager.script.answers["RemoveNetwork"] = answer
    done = run("network", "rm", "a", "busy", "b")
    assert done.stdout.split() == ["a", "b"]
    assert done.exit_code == 1
    assert "network 'busy' is in use" in done.stderr


def test_network_prune(manager: Any, run: Run) -> None:
    manager.script.answers["PruneNetworks"] = networks_pb2.PruneNetworksReply(
        names=["old"], notices=["network 'busy' is in use"]
    )
    done = run("network", "prune", "--force", "--filter", "label=a=b", "--filter", "label!=c")
    assert done.stdout.split() == ["old"]
    assert "busy" in done.stderr
    assert manager.script.request("PruneNetworks") == networks_pb2.PruneNetworksRequest(
        labels={"a": "b"}, without=["c"]
    )


# --- cluster


def test_cluster_info_and_tokens(manager: Any, run: Run, refused: Refused) -> None:
    manager.script.answers["GetCluster"] = pb.ClusterInfo(
        id="c1",
        created_at=60,
        version="0.1.0",
        node_timeout=5,
        managers=[{"id": "m1", "address": "10.0.0.1:7420", "leader": True}],
        nodes=3,
        nodes_ready=2,
        worker_token="ORC-w",
        manager_token="ORC-m",
        join_address="10.0.0.1:7421",
        undecodable=[{"key": "/orc/tasks/t", "reason": "garbage", "held_services": ["web"]}],
    )
    manager.script.answers["RotateToken"] = pb.TokenReply(token="ORC-new")
    text = run("cluster", "info").stdout
    assert "10.0.0.1:7420 (m1), leader" in text
    assert "3 (2 ready)" in text
    assert "/orc/tasks/t: garbage; not planned: web" in text
    document = json.loads(run("cluster", "info", "--format", "json").stdout)
    assert document["created_at"] == "1970-01-01T00:01:00.000Z"
    assert document["managers"][0]["leader"] is True
    assert not {"worker_token", "manager_token"} & document.keys()
    line = "orc cluster join --token ORC-w 10.0.0.1:7421\n"
    assert run("cluster", "token", "worker").stdout == line
    assert run("cluster", "token", "--rotate", "-q", "worker").stdout == "ORC-new\n"
    assert manager.script.request("RotateToken").role == "worker"
    assert "is not one of 'worker', 'manager'" in refused("cluster", "token", "x", status=2)


@pytest.mark.parametrize(
    ("text", "access"),
    [
        ("metrics", ["metrics"]),
        ("metadata,control-plane", ["control-plane", "metadata"]),
        ("all", ["control-plane", "metrics", "metadata"]),
        ("none", []),
        ("", []),
    ],
)
def test_container_access(manager: Any, run: Run, text: str, access: list[str]) -> None:
    manager.script.answers["UpdateCluster"] = pb.ClusterInfo(id="c1")
    assert run("cluster", "update", "--container-access", text).stdout == "c1\n"
    assert list(manager.script.request("UpdateCluster").container_access.open) == access
    manager.script.answers["GetCluster"] = pb.ClusterInfo(id="c1", container_access=access)
    shown = json.loads(run("cluster", "info", "--format", "json").stdout)
    assert shown["container_access"] == access
    assert f"Open to containers: {', '.join(access) or 'none'}" in run("cluster", "info").stdout


def test_invalid_container_access(refused: Refused) -> None:
    said = refused("cluster", "update", "--container-access", "metric", status=2)
    assert "'metric' is nothing that containers can be given access to" in said
    assert "did you mean 'metrics'?" in said


def test_the_command_that_joins_a_manager(manager: Any, run: Run) -> None:
    manager.script.answers["GetCluster"] = pb.ClusterInfo(
        manager_token="ORC-m", join_address="10.0.0.1:7421"
    )
    command = run("cluster", "token", "manager").stdout
    assert command == "orc cluster join --token ORC-m 10.0.0.1:7421\n"


# --- images


def test_images(manager: Any, run: Run) -> None:
    digest, config = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
    manager.script.answers["ListImages"] = pb.ListImagesReply(
        images=[
            {
                "id": digest,
                "names": ["hello:1", "reg:5000/hello:2"],
                "config_digest": config,
                "size": 4_070_000,
                "layers": [config],
                "created_at": 5,
                "nodes": ["n1", "n9"],
            },
            {"id": config, "size": 5, "created_at": 4},
        ],
        hostnames={"n1": "node1"},
    )
    lines = run("images").stdout.splitlines()
    assert lines[0].split() == [
        "REPOSITORY",
        "TAG",
        "IMAGE",
        "ID",
        "CREATED",
        *("CONTENT", "SIZE"),
        "NODES",
    ]
    assert lines[1].startswith("hello ")
    assert lines[1].endswith("4.07MB         n9, node1")
    assert "abababababab" in lines[1]
    assert lines[2].startswith("reg:5000/hello   2 ")
    assert lines[3].startswith("<none>           <none> ")
    rows = json.loads(run("images", "--format", "json").stdout)
    promised = {
        "id": digest,
        "repository": "hello",
        "tag": "1",
        "digest": digest,
        "size": 4_070_000,
        "nodes": ["n9", "node1"],
        "layers": [config],
    }
    assert rows[0].items() >= promised.items()
    assert run("images", "-q").stdout.split() == [digest, config]
    assert run("images", "-q", "--filter", "reference=hello:1").stdout.split() == [digest]
    assert "DIGEST" in run("images", "--digests").stdout

    def left(*filters: str) -> list[str]:
        words = [word for each in filters for word in ("--filter", each)]
        return run("images", "--format", "{{.Repository}}:{{.Tag}}", *words).stdout.split()

    # No `*` stands for a slash; several of one key are alternatives.
    assert left("reference=hel*") == ["hello:1"]
    assert left("reference=*") == ["hello:1", "<none>:<none>"]
    assert left("reference=*/hello:2") == ["reg:5000/hello:2"]
    assert left("reference=hello:1", "reference=*/*") == ["hello:1", "reg:5000/hello:2"]
    assert left("dangling=true") == ["<none>:<none>"]
    assert left("dangling=false", "reference=hello") == ["hello:1"]
    assert left("before=hello:1") == ["<none>:<none>"]
    assert left(f"since={config}") == ["hello:1", "reg:5000/hello:2"]
    assert run("images", "-q", "*/hello").stdout.split() == [digest]
    assert run("images", "-q", "hello:2").stdout == ""
