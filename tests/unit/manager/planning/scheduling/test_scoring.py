# SPDX-License-Identifier: Apache-2.0
"""Which of the nodes that can take a task gets it: strategies, images, and nodes to avoid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import GIB, MIB, NOW, World, node, service, task, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.scheduling.affinity import affinity_scores
from orchestrator.manager.planning.scheduling.node_table import Demand, NodeTable
from orchestrator.manager.planning.scheduling.scheduler import UNSCHEDULABLE, Unplaced, schedule
from orchestrator.manager.planning.scheduling.scoring import (
    FAILURE_WINDOW,
    Ranking,
    failing_nodes,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Cluster, Image
from orchestrator.model.placement import Strategy
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus


def packing(of: Service, strategy: Strategy = Strategy.BINPACK, **spec: Any) -> Service:
    return replace(of, spec=replace(of.spec, strategy=strategy, **spec))


def places(world: World, name: str = "web") -> str:
    world.settle()
    return " ".join(t.node_id or "-" for t in world.tasks() if t.service_name == name)


QUARTER = task_spec(memory=2 * GIB)


@pytest.mark.parametrize(
    ("cluster", "own", "where"),
    [
        (Strategy.DEFAULT, Strategy.DEFAULT, "a b c a b"),
        (Strategy.DEFAULT, Strategy.BINPACK, "a a a a b"),
        (Strategy.BINPACK, Strategy.DEFAULT, "a a a a b"),
        (Strategy.BINPACK, Strategy.SPREAD, "a b c a b"),
    ],
)
def test_the_services_strategy_or_else_the_clusters(
    cluster: Strategy, own: Strategy, where: str
) -> None:
    world = World(
        node("a"),
        node("b"),
        node("c"),
        Cluster(id="cluster", strategy=cluster),
        packing(service("web", 5, spec=QUARTER), own),
    )
    assert places(world) == where


def test_the_fullest_node_with_room_is_packed() -> None:
    busy = task("t", node_id="b", of=service("x", spec=task_spec(memory=5 * GIB)))
    world = World(node("a"), node("b"), busy, packing(service("web", 2, spec=QUARTER)))
    assert places(world) == "b a"


def test_packing_respects_zones_affinities_and_the_maximum_per_node() -> None:
    zoned = [node("a", labels={"zone": "x"}), node("b", labels={"zone": "y"})]
    spread = packing(service("web", 4), spread=("node.labels.zone",))
    assert places(World(*zoned, spread)) == "a b a b"
    assert places(World(*zoned, packing(service("web", 3), max_per_node=2))) == "a a b"


def test_a_node_that_has_the_image_is_a_little_better() -> None:
    image = Image(id="sha256:1", names=("web:1",), nodes=("c",))
    web = replace(service("web", 2), image_digest="sha256:1")
    nodes = [node("a"), node("b"), node("c")]
    assert places(World(*nodes, web, image)) == "c a"
    by_index = replace(image, id="sha256:2", indexes=("sha256:1",))
    assert places(World(*nodes, web, by_index)) == "c a"
    assert places(World(*nodes, replace(web, image_digest=""), image)) == "c a"
    busy = task("t", node_id="c", of=service("x", spec=task_spec(memory=1 * GIB)))
    assert places(World(*nodes, busy, web, image)) == "a b", "it is worth a 32nd of a node, no more"
    assert places(World(*nodes, image, packing(replace(web, spec=packing(web).spec)))) == "c c"


def failed(
    id: str, of: Service, node_id: str, ago: float, state: TaskState = TaskState.FAILED
) -> Task:
    item = task(id, state, node_id=node_id, of=of, created_at=NOW - ago, spec_version=1)
    return replace(item, status=TaskStatus(state, at=NOW - ago))


@pytest.mark.parametrize(
    ("failures", "ids"),
    [
        ([("a", 10)], set()),
        ([("a", 10), ("a", 5)], {"a"}),
        ([("a", 10), ("b", 5)], set()),
        ([("a", FAILURE_WINDOW + 1), ("a", 5)], set()),
        ([("a", 10), ("a", 5), ("b", 10), ("b", 1)], {"a", "b"}),
    ],
)
def test_a_node_is_avoided_after_two_failures_for_a_while(
    failures: list[tuple[str, float]], ids: set[str]
) -> None:
    web = service()
    tasks = [failed(f"t{n}", web, where, ago) for n, (where, ago) in enumerate(failures)]
    assert failing_nodes(ClusterView.of([web, *tasks]), web.id, NOW) == ids


def test_stopped_lost_outdated_and_settled_tasks_are_no_failures() -> None:
    web = service()
    two = [failed("t1", web, "a", 50), failed("t2", web, "a", 45)]
    ok = task("t3", node_id="a", of=web, spec_version=1)
    ok = replace(ok, status=TaskStatus(TaskState.RUNNING, started_at=NOW - 40))
    assert failing_nodes(ClusterView.of([web, *two, ok]), web.id, NOW) == set()
    new = replace(web, spec_version=2)
    assert failing_nodes(ClusterView.of([new, *two]), web.id, NOW) == set()
    told = [replace(t, desired_state=TaskState.SHUTDOWN) for t in two]
    assert failing_nodes(ClusterView.of([web, *told]), web.id, NOW) == set()
    lost = [replace(t, status=replace(t.status, lost=True)) for t in two]
    assert failing_nodes(ClusterView.of([web, *lost]), web.id, NOW) == set()


def test_a_service_that_keeps_failing_on_a_node_is_tried_elsewhere_and_everywhere() -> None:
    world = World(node("a"), node("b"), service(spec=task_spec(shares=64)))
    tried = []
    for _ in range(5):
        world.settle()
        item = world.task()
        tried.append(item.node_id)
        world.report(item, TaskState.FAILED)
        world.settle()
        world.pass_time(100.0 if len(tried) == 4 else 40.0)
    assert tried[:4] == ["a", "a", "b", "b"]
    assert tried[4] in ("a", "b"), "what fails everywhere is still tried"


def test_a_zone_does_not_make_it_go_where_it_fails() -> None:
    zoned = [node("a", labels={"zone": "x"}), node("b", labels={"zone": "y"})]
    web = service("web", 1)
    web = replace(web, spec=replace(web.spec, spread=("node.labels.zone",)))
    other = task("r", node_id="b", of=web, slot=2, spec_version=1)
    pending = task("p", TaskState.PENDING, of=web, slot=3)
    view = ClusterView.of(
        [*zoned, web, other, pending, failed("t1", web, "a", 5), failed("t2", web, "a", 3)]
    )
    [decision] = schedule(view, [pending], NOW)
    assert getattr(decision, "node", None) == zoned[1]


@pytest.mark.parametrize(
    ("nodes", "spec", "never"),
    [
        ([node("a")], {"constraints": ("node.labels.zone==b",)}, True),
        ([node("a", labels={"zone": "b"})], {"constraints": ("node.labels.zone==b",)}, False),
        ([node("a")], {"task": task_spec(memory=9 * GIB)}, True),
        ([node("a", memory=0), node("b", shares=1)], {}, True),
        ([node("a")], {"task": task_spec(memory=8 * GIB)}, False),
        ([node("a")], {"max_per_node": 0}, False),
    ],
)
def test_reason_says_when_no_node_can_ever_fit(
    nodes: list[Node], spec: dict[str, Any], never: bool
) -> None:
    web = service()
    web = replace(web, spec=replace(web.spec, **spec))
    busy = [
        task(f"t{home.id}", node_id=home.id, of=service("x", spec=task_spec(memory=7 * GIB)))
        for home in nodes
        if home.description.resources.memory > MIB
    ]
    wanted = task_spec(memory=max(web.spec.task.counted.memory, 2 * GIB))
    pending = task("p", TaskState.PENDING, of=web, spec=wanted)
    [decision] = schedule(ClusterView.of([*nodes, *busy, web, pending]), [pending], NOW)
    assert isinstance(decision, Unplaced)
    assert decision.reason.startswith(UNSCHEDULABLE) is never


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 12 * GIB)), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_rank_of_one_node_is_its_rank_among_all(
    nodes: list[tuple[int, int]], is_packed: bool, has_affinity: bool
) -> None:
    items = [
        node(f"n{row}", shares=shares, memory=memory) for row, (shares, memory) in enumerate(nodes)
    ]
    web = service("web", replicas=2)
    if is_packed:
        web = packing(web)
    if has_affinity:
        web = replace(web, spec=replace(web.spec, affinities=(Affinity("node.id==n0", weight=3),)))
    placed = task("a", TaskState.RUNNING, of=web, node_id="n0")
    view = ClusterView.of([*items, web, placed])
    table, demand = NodeTable(view), Demand.of(view, task("b", TaskState.PENDING, of=web))
    ranking = Ranking(view, table, demand, affinity_scores(view, table, demand))
    assert [ranking.rank(row) for row in range(len(items))] == ranking.ranks().tolist()
