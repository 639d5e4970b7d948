# SPDX-License-Identifier: Apache-2.0
"""Which node a task gets, and the pending reason when it gets none."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from builders import GIB, MIB, NOW, node, service, task, task_spec

from orchestrator.manager.planning.scheduling.scheduler import (
    UNSCHEDULABLE,
    Placement,
    Unplaced,
    schedule,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.objects import Image, Network, Object
from orchestrator.model.services import Service
from orchestrator.model.specs import NetworkAttachment
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

PENDING, RUNNING = TaskState.PENDING, TaskState.RUNNING
REPORTING = replace(node("a"), description=replace(node("a").description, labels={"zone": "a"}))
DOWN, UNKNOWN = NodeState.DOWN, NodeState.UNKNOWN


def decide(*objects: Object, now: float = NOW) -> list[Placement | Unplaced]:
    view = ClusterView.of(objects)
    return schedule(view, view.pending.values(), now)


def chosen(*objects: Object) -> list[str]:
    """The nodes of the pending tasks, in the order of the decisions."""
    return [item.node.id if isinstance(item, Placement) else "-" for item in decide(*objects)]


def waiting(count: int, of: Service, **fields: object) -> list[Task]:
    return [task(f"p{slot}", PENDING, slot=slot, of=of, **fields) for slot in range(1, count + 1)]


def test_spreads_a_service_over_the_nodes() -> None:
    web = service(replicas=6)
    assert chosen(node("a"), node("b"), node("c"), web, *waiting(6, web)) == list("abcabc")


def test_tasks_of_the_service_count_before_load() -> None:
    web, db = service("web"), service("db", spec=task_spec(shares=2000))
    busy = task("t", node_id="a", of=db)
    mine = task("m", node_id="b", of=web)
    assert chosen(node("a"), node("b"), web, db, busy, mine, *waiting(1, web)) == ["a"]


def spread_over(*attributes: str, most: int = 0) -> Service:
    web = service()
    return replace(web, spec=replace(web.spec, spread=attributes, max_per_node=most))


def zoned(id: str, zone: str, rack: str = "") -> Node:
    return node(id, labels={"zone": zone, "rack": rack} if rack else {"zone": zone})


def test_spreads_over_zones_before_nodes() -> None:
    web = spread_over("node.labels.zone")
    nodes = [zoned("a1", "a"), zoned("a2", "a"), zoned("a3", "a"), zoned("b1", "b"), node("none")]
    assert chosen(*nodes, web, *waiting(6, web)) == ["a1", "b1", "none", "a2", "b1", "none"]


def test_spreads_over_several_levels() -> None:
    web = spread_over("node.labels.zone", "node.labels.rack")
    nodes = [
        zoned("a1", "a", "1"),
        zoned("a2", "a", "1"),
        zoned("a3", "a", "2"),
        zoned("b", "b", "1"),
    ]
    assert chosen(*nodes, web, *waiting(6, web)) == ["a1", "b", "a3", "b", "a2", "b"]


def test_a_full_zone_is_passed_over() -> None:
    web = replace(spread_over("node.labels.zone"), id="web-id")
    small = node("b", shares=128, labels={"zone": "b"})
    assert chosen(zoned("a", "a"), small, web, *waiting(4, web)) == ["a", "b", "a", "a"]


def test_maximum_tasks_per_node() -> None:
    web = spread_over(most=2)
    *placed, last = decide(node("a"), node("b"), web, *waiting(5, web))
    assert [item.node.id for item in placed if isinstance(item, Placement)] == list("abab")
    assert isinstance(last, Unplaced)
    assert (
        last.reason == "no suitable node (2 nodes: already has 2 tasks of the service, the maximum)"
    )


def test_load_is_the_larger_of_shares_and_memory() -> None:
    web = service("web")
    shares = task("t1", node_id="a", of=service("x", spec=task_spec(shares=2048, memory=1 * MIB)))
    memory = task("t2", node_id="b", of=service("y", spec=task_spec(shares=1, memory=6 * GIB)))
    assert chosen(node("a"), node("b"), web, shares, memory, *waiting(1, web)) == ["a"]


def test_a_larger_node_takes_more() -> None:
    web = service("web", spec=task_spec(shares=512, memory=64 * MIB))
    db = service("db", spec=task_spec(shares=512, memory=64 * MIB))
    assert chosen(node("a"), node("b", shares=8192), web, *waiting(1, web)) == ["b"]
    both = [task("x", node_id="a", of=db), task("y", node_id="b", of=db)]
    assert chosen(node("a"), node("b", shares=8192), web, *both, *waiting(1, web)) == ["b"]


def test_a_task_being_stopped_keeps_its_room_but_does_not_count_for_spread() -> None:
    web = service(spec=task_spec(shares=1024))
    leaving = task("t", node_id="a", of=web, desired_state=TaskState.SHUTDOWN)
    assert chosen(node("a"), web, leaving, *waiting(4, web)) == ["a", "a", "a", "-"]
    ended = task("t", TaskState.SHUTDOWN, node_id="a", of=web, desired_state=TaskState.SHUTDOWN)
    assert chosen(node("a"), web, ended, *waiting(4, web)) == ["a"] * 4


def test_older_tasks_are_placed_first_and_an_unplaceable_one_blocks_none() -> None:
    web = service(spec=task_spec(shares=3000))
    small = service("small", spec=task_spec(shares=1000))
    tasks = [
        task("p1", PENDING, of=web, created_at=1.0),
        task("p2", PENDING, of=web, slot=2, created_at=2.0),
        task("p3", PENDING, of=small, created_at=3.0),
    ]
    assert chosen(node("a"), web, small, *tasks) == ["a", "-", "a"]


def test_a_task_held_back_is_left_out_until_it_is_due() -> None:
    web = service()
    held = task("p", PENDING, of=web, not_before=NOW + 5)
    assert decide(node("a"), web, held) == []
    assert len(decide(node("a"), web, held, now=NOW + 5)) == 1


def test_a_port_is_given_once_a_node() -> None:
    web = service(spec=task_spec(ports=[8080]))
    assert chosen(node("a"), node("b"), web, *waiting(3, web)) == ["a", "b", "-"]


SMALL = Network(id="n", name="default", subnet="10.0.0.0/24", node_prefix=29)


@pytest.mark.parametrize(
    ("nodes", "extra", "spec", "constraints", "reason"),
    [
        ([], [], {}, (), "the cluster has no nodes; join one with orc cluster join"),
        ([node("a", state=DOWN)], [], {}, (), "1 node: down"),
        ([node("a", state=UNKNOWN)], [], {}, (), "1 node: no report received yet"),
        ([node("a", availability=Availability.PAUSE)], [], {}, (), "1 node: paused"),
        ([node("a", availability=Availability.DRAIN)], [], {}, (), "1 node: drained"),
        ([node("a")], [], {"shares": 5000}, (), "1 node: insufficient shares"),
        (
            [node("a"), node("b"), node("c", state=DOWN)],
            [],
            {"memory": 9 * GIB},
            (),
            "2 nodes: insufficient memory; 1 node: down",
        ),
        (
            [node("a"), node("b", labels={"zone": "b"})],
            [],
            {},
            ["node.labels.zone==a"],
            "2 nodes: constraint node.labels.zone==a not met",
        ),
        (
            [REPORTING],
            [],
            {},
            ["node.labels.zone==a"],
            "1 node: constraint node.labels.zone==a not met, though an agent reports "
            "engine.labels.zone",
        ),
        (
            [node("a"), node("b")],
            [],
            {"shares": 5000},
            ["node.id==a"],
            "1 node: not host-a; 1 node: insufficient shares",
        ),
        (
            [node("a"), node("b")],
            [],
            {},
            ["node.id==c"],
            "2 nodes: constraint node.id==c not met",
        ),
        (
            [node("a"), node("b")],
            [task("t", node_id="a", of=service("x", spec=task_spec(ports=[8080])))],
            {"ports": [8080], "shares": 4096},
            ["node.id==a"],
            "1 node: not host-a; 1 node: port 8080/tcp in use",
        ),
        (
            [node("a")],
            [Network(id="n", name="default", subnet="10.0.0.0/16")],
            {},
            (),
            "1 node: no subnet of network default left for it",
        ),
        (
            [node("a")],
            [
                replace(SMALL, slices={"a": "10.0.0.8/29"}),
                *(task(f"t{number}", node_id="a", of=service("x")) for number in range(5)),
            ],
            {},
            (),
            "1 node: no address of network default left on it",
        ),
        (
            [replace(node("a"), description=replace(node().description, routes=("10.0.0.0/8",)))],
            [replace(SMALL, slices={"a": "10.0.0.8/29"})],
            {},
            (),
            "1 node: a route of it overlaps network default",
        ),
        (
            [node("a")],
            [replace(SMALL, slices={"a": "10.0.0.8/29"}, encrypted=True)],
            {},
            (),
            "1 node: its kernel has no WireGuard, for encrypted network default",
        ),
    ],
)
def test_the_reason_counts_each_node_once(
    nodes: list[Node],
    extra: list[Object],
    spec: dict[str, object],
    constraints: list[str],
    reason: str,
) -> None:
    web = service(spec=task_spec(**spec), constraints=constraints)
    [decision] = decide(*nodes, *extra, web, *waiting(1, web))
    assert isinstance(decision, Unplaced)
    summary, bracket, rest = decision.reason.partition(" (")
    assert summary == "no suitable node" or summary.startswith(UNSCHEDULABLE)
    assert bracket + rest == f" ({reason})"


def test_a_network_that_does_not_exist_is_named() -> None:
    web = service(spec=task_spec(networks=(NetworkAttachment("back"),)))
    [decision] = decide(node(), web, *waiting(1, web))
    assert isinstance(decision, Unplaced)
    assert decision.reason == "network back does not exist"


def test_an_image_must_be_on_a_node_that_is_up() -> None:
    web = service(image_digest="sha256:1")
    pending = task("p", PENDING, of=web, image_digest="sha256:1")
    away = Image(id="sha256:1", names=("web:1",), nodes=("b",))
    [decision] = decide(node("a"), node("b", state=DOWN), web, pending, away)
    assert isinstance(decision, Unplaced)
    assert decision.reason == "no node that is up has image web:1"
    assert chosen(node("a"), node("b", availability=Availability.DRAIN), web, pending, away) == [
        "a"
    ]


def test_an_unreadable_constraint_is_a_reason_not_a_crash() -> None:
    web = service(constraints=["zone"])
    [decision] = decide(node(), web, *waiting(1, web))
    assert isinstance(decision, Unplaced)
    assert "is not of the form KEY==VALUE" in decision.reason


@pytest.mark.parametrize("count", [1, 20, 500], ids=lambda count: f"{count} services")
def test_500_tasks_on_100_nodes_are_spread_evenly(count: int) -> None:
    services = [service(f"s{number}") for number in range(count)]
    tasks = [
        task(f"p{number:03}", PENDING, slot=number, of=services[number % count])
        for number in range(500)
    ]
    view = ClusterView.of([*(node(f"n{number:03}") for number in range(100)), *services, *tasks])
    decided = schedule(view, view.pending.values(), NOW)
    tasks_of = Counter(item.node.id for item in decided if isinstance(item, Placement))
    assert tasks_of == dict.fromkeys(view.nodes, 5)
