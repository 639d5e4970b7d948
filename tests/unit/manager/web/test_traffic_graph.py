# SPDX-License-Identifier: Apache-2.0
"""Traffic between services, from the reports of nodes."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.web.traffic_graph import MOST_EDGES, traffic_graph
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Network
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import flows_pb2


def task(name: str, node: str, address: str, service: str = "", **fields: Any) -> Task:
    return Task(
        id=name, service_id=service, node_id=node,
        status=TaskStatus(TaskState.RUNNING, addresses={"net": address}), **fields,
    )  # fmt: skip


VIEW = ClusterView.of(
    [
        Node(id="n1", state=NodeState.READY),
        Node(id="n2", state=NodeState.READY),
        Network(id="w", name="net", subnet="10.0.0.0/16"),
        task("web1", "n1", "10.0.1.2", "web"),
        task("web2", "n2", "10.0.2.2", "web"),
        task("db1", "n2", "10.0.2.3", "db"),
        task("alone", "n1", "10.0.1.9"),
    ]
)


def flow(client: str, server: str, port: int = 80, **fields: Any) -> flows_pb2.Flow:
    given = {"open": 1, "begun": 2, "sent": 200, "received": 400} | fields
    ends = ip_address(client).packed, ip_address(server).packed
    return flows_pb2.Flow(client=ends[0], server=ends[1], port=port, protocol=6, **given)


def edges(**told: list[flows_pb2.Flow]) -> list[tuple[Any, ...]]:
    found = traffic_graph(
        VIEW, {node: flows_pb2.NodeFlows(seconds=2.0, flows=flows) for node, flows in told.items()}
    )
    return [(e["from"], e["to"], e["port"], e["open"], e["sent"]) for e in found["edges"]]


def test_a_connection_between_nodes_is_counted_once() -> None:
    between = flow("10.0.1.2", "10.0.2.3")
    assert edges(n1=[between], n2=[between]) == [("web", "db", 80, 1, 100)]
    assert edges(n2=[between]) == []


def test_tasks_of_a_service_are_one_vertex() -> None:
    found = edges(n1=[flow("10.0.1.2", "10.0.2.3")], n2=[flow("10.0.2.2", "10.0.2.3")])
    assert found == [("web", "db", 80, 2, 200)]


def test_a_standalone_container_is_a_vertex() -> None:
    assert edges(n1=[flow("10.0.1.9", "10.0.1.2")]) == [("alone", "web", 80, 1, 100)]


def test_an_external_client_is_counted_at_its_server() -> None:
    ask = flow("203.0.113.5", "10.0.2.2")
    assert edges(n1=[ask], n2=[ask]) == [("", "web", 80, 1, 100)]


def test_an_external_server_is_counted_at_its_client() -> None:
    assert edges(n1=[flow("10.0.1.2", "203.0.113.5", 443)]) == [("web", "", 443, 1, 100)]


def test_traffic_of_nodes_is_left_out() -> None:
    probe, question = flow("10.0.1.1", "10.0.1.2"), flow("10.0.1.2", "10.0.1.1", 53)
    assert edges(n1=[probe, question]) == []


def test_the_busiest_edges_come_first_and_the_rest_is_counted() -> None:
    many = [flow("10.0.1.2", "10.0.2.3", port, sent=port) for port in range(1, MOST_EDGES + 4)]
    told = {"n1": flows_pb2.NodeFlows(seconds=1.0, flows=many, left_out=2)}
    found = traffic_graph(VIEW, told)
    assert (len(found["edges"]), found["left_out"]) == (MOST_EDGES, 5)
    assert found["edges"][0]["port"] == MOST_EDGES + 3
    assert (found["nodes"], found["telling"]) == (2, 1)


def test_a_single_sample_has_no_rates() -> None:
    told = {"n1": flows_pb2.NodeFlows(flows=[flow("10.0.1.2", "10.0.2.3", begun=0, sent=0)])}
    found = traffic_graph(VIEW, told)
    assert [(e["open"], e["sent"], e["begun"]) for e in found["edges"]] == [(1, 0, 0.0)]
    assert found["telling"] == 0


def test_addresses_of_node_local_networks_are_per_node() -> None:
    view = ClusterView.of(
        [
            task("here", "n1", "172.17.0.2"),
            task("there", "n2", "172.17.0.2"),
            task("asks", "n2", "172.17.0.3"),
        ]
    )
    asks = flows_pb2.NodeFlows(seconds=1.0, flows=[flow("172.17.0.3", "172.17.0.2")])
    assert [e["to"] for e in traffic_graph(view, {"n2": asks})["edges"]] == ["there"]
