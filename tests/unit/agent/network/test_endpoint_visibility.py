# SPDX-License-Identifier: Apache-2.0
"""What a node sees of the endpoint table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.agent.network.endpoint_table import Change, EndpointTable
from orchestrator.agent.statedb import StateDb
from orchestrator.pb import dispatch_pb2


class Follower:
    name = "follower"

    async def follow(self, change: Change, whole: Callable[[], Change]) -> None:
        """It is asked what the whole is."""


def table() -> dispatch_pb2.EndpointTable:
    endpoints = [
        dispatch_pb2.Endpoint(task_id=f"t{node}", node_id=node, ready=True) for node in ("a", "b")
    ]
    return dispatch_pb2.EndpointTable(
        full=True,
        revision=1,
        changed=[
            dispatch_pb2.ServiceEndpoints(id="web", network_id=network, endpoints=endpoints)
            for network in ("n1", "n2")
        ],
    )


def networks(*drivers: str) -> list[dispatch_pb2.AssignedNetwork]:
    return [
        dispatch_pb2.AssignedNetwork(id=f"n{number}", driver=driver)
        for number, driver in enumerate(drivers, 1)
    ]


def nodes(change: Change) -> dict[str, list[str]]:
    return {each.network_id: [one.node_id for one in each.endpoints] for each in change.entries}


def test_in_a_node_local_network_tasks_of_other_nodes_are_hidden(
    tmp_path: Path,
) -> None:
    with StateDb(tmp_path / "state.db") as db:
        endpoints = EndpointTable(db, [Follower()], lambda: None, "b")
        endpoints.apply(table())
        endpoints.order(networks("overlay", "bridge"))
        assert nodes(endpoints._whole()) == {"n1": ["a", "b"], "n2": ["b"]}
        endpoints.order(networks("bridge", "overlay"))
        assert nodes(endpoints._whole()) == {"n1": ["b"], "n2": ["a", "b"]}
