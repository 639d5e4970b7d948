# SPDX-License-Identifier: Apache-2.0
"""Hard and soft affinities and anti-affinities to nodes and services."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from builders import World, node, service, task
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.scheduling.scheduler import Placement, schedule
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node
from orchestrator.model.scheduling.affinities import Affinity, check_affinities, parse_affinity
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, ServiceMode, TaskSpec
from orchestrator.model.states import TaskState

NODES = [
    node("n1", labels={"zone": "a", "disk": "ssd"}),
    node("n2", labels={"zone": "a"}),
    node("n3", labels={"zone": "b"}),
]


def liking(of: Service, *texts: str, labels: dict[str, str] | None = None) -> Service:
    """The service with affinities; a text that begins with `!` is an anti-affinity."""
    made = tuple(parse_affinity(text.lstrip("!"), anti=text[0] == "!") for text in texts)
    return replace(of, spec=replace(of.spec, affinities=made, labels=labels or {}))


def where(world: World, name: str) -> str:
    """The nodes of a service's tasks by slot; a task that waits is a dash."""
    return " ".join(t.node_id or "-" for t in world.tasks() if t.service_name == name)


def settled(*objects: Node | Service) -> World:
    world = World(*NODES, *objects)
    world.settle()
    return world


def reason(world: World, name: str) -> str:
    [told] = {t.status.message for t in world.view.pending.values() if t.service_name == name}
    return told


@pytest.mark.parametrize(
    ("texts", "places"),
    [
        (["node.labels.disk==ssd"], "n1 n1 n1"),
        (["!node.labels.disk==ssd"], "n2 n3 n2"),
        (["node.labels.disk!=ssd"], "n2 n3 n2"),
        (["node.labels.zone in b,c"], "n3 n3 n3"),
        (["node.labels.disk==ssd,weight=1"], "n1 n2 n3"),
        (["node.labels.disk==ssd,weight=2"], "n1 n1 n2"),
        (["node.labels.disk==ssd,weight=100"], "n1 n1 n1"),
        (["!node.labels.disk==ssd,weight=1"], "n2 n3 n1"),
        (["!node.labels.zone==a,weight=2"], "n3 n3 n1"),
        (["node.labels.zone==a,weight=3", "node.labels.disk==ssd,weight=3"], "n1 n1 n1"),
        (["!service==web"], "n1 n2 n3"),
        (["!service==web,within=node.labels.zone"], "n1 n3 -"),
        (["service==web"], "n1 n1 n1"),
        (["service==web,within=node.labels.zone"], "n1 n2 n1"),
    ],
)
def test_placement_of_three_tasks(texts: list[str], places: str) -> None:
    assert where(settled(liking(service("web", 3), *texts)), "web") == places


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("service==db", "n1 n1"),
        ("service.labels.tier==data", "n1 n1"),
        ("service in cache,db", "n1 n1"),
        ("service==db,within=node.labels.zone", "n2 n1"),
        ("!service==db", "n2 n3"),
        ("!service.labels.tier==data,within=node.labels.zone", "n3 n3"),
        ("service==db,weight=5", "n1 n1"),
        ("!service==db,weight=1", "n2 n3"),
        ("service==nobody,weight=5", "n2 n3"),
    ],
)
def test_placement_of_two_tasks_beside_another_service(text: str, places: str) -> None:
    world = settled(liking(service("db"), "node.id==n1", labels={"tier": "data"}))
    world.put(liking(service("web", 2), text))
    world.settle()
    assert (where(world, "db"), where(world, "web")) == ("n1", places)


def test_anti_affinity_is_symmetric() -> None:
    world = settled(liking(service("quiet"), "!service.labels.loud==yes"))
    assert where(world, "quiet") == "n1"
    world.put(liking(service("drum", 3), "node.labels.zone==a", labels={"loud": "yes"}))
    world.put(liking(service("each", mode=ServiceMode.GLOBAL), labels={"loud": "yes"}))
    world.settle()
    assert where(world, "drum") == "n2 n2 n2"
    assert "1 node: service quiet has an anti-affinity to it" in reason(world, "each")


def test_an_affinity_to_an_absent_service_waits_for_it() -> None:
    world = settled(liking(service("web"), "service==db"))
    assert reason(world, "web") == (
        "no suitable node (3 nodes: affinity: no task with service==db is there)"
    )
    world.put(liking(service("db"), "node.id==n3"))
    world.settle()
    assert where(world, "web") == "n3"


def test_refusal_counts_nodes_per_rule_as_the_user_wrote_it() -> None:
    world = settled(liking(service("db"), "node.id==n1"))
    world.put(
        liking(
            service("web"),
            "!service==db",
            "!node.labels.zone==b",
            "node.labels.disk in ssd,nvme",
        )
    )
    world.settle()
    assert reason(world, "web") == (
        "no suitable node (1 node: anti-affinity: a task with service==db is there;"
        " 1 node: anti-affinity node.labels.zone==b;"
        " 1 node: affinity node.labels.disk in ssd,nvme not met)"
    )


def test_a_node_that_is_liked_no_more_is_left_as_for_a_constraint() -> None:
    world = World(*NODES, liking(service("web"), "node.labels.disk==ssd"))
    world.obey()
    world.put(replace(NODES[0], labels={}))
    world.put(replace(NODES[1], labels={"disk": "ssd"}))
    world.obey()
    assert [t.node_id for t in world.tasks(TaskState.RUNNING)] == ["n2"]


def test_pending_tasks_are_retried_when_an_anti_affinity_is_removed() -> None:
    world = settled(liking(service("quiet"), "!service==drum"))
    world.put(liking(service("drum"), "node.id==n1"))
    world.settle()
    assert where(world, "drum") == "-"
    world.put(liking(world.view.services["quiet-id"]))
    world.settle()
    assert where(world, "drum") == "n1"


def test_a_container_has_affinities_too() -> None:
    world = settled(liking(service("db"), "node.id==n2"))
    item = replace(
        task("c", TaskState.PENDING, spec=TaskSpec(container=ContainerSpec(image="x:1"))),
        service_id="",
        container_name="c",
        affinities=(Affinity("service==db"),),
    )
    [decision] = schedule(ClusterView.of([*world.view.objects(), item]), [item], 0.0)
    assert isinstance(decision, Placement)
    assert decision.node.id == "n2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("zone==a", "affinity 'zone==a' asks for 'zone'; known are node.id"),
        ("service!=db", "with services only == and in; --anti-affinity is the opposite"),
        ("service==db,weight=0", "weight '0' is not a number from 1 to 100"),
        ("service==db,weight=101", "from 1 to 100"),
        ("service==db,weight=x", "from 1 to 100"),
        ("node.id==a,within=node.labels.zone", "leave it out for nodes"),
        ("service==db,within=zone", "asks for 'zone'"),
        ("service", "is not of the form"),
    ],
)
def test_malformed_affinities_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_affinity(text)


def test_too_many_affinities_are_refused() -> None:
    with pytest.raises(ValueError, match="33 affinities are more than 32"):
        check_affinities([Affinity("service==db")] * 33)


soft_affinities = st.lists(
    st.sampled_from(
        [
            "!service==a",
            "!service==b",
            "!service.labels.tier==x,within=node.labels.zone",
            "!node.labels.disk==ssd",
            "service==a,weight=2",
            "!service==b,weight=1",
            "node.labels.zone==a",
        ]
    ),
    max_size=3,
    unique=True,
)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), soft_affinities, st.sampled_from(["x", "y"])),
        min_size=2,
        max_size=3,
    )
)
@settings(max_examples=150)
def test_hard_affinities_hold_for_all_placed_tasks(
    made: list[tuple[int, list[str], str]],
) -> None:
    named = zip("abc", made, strict=False)
    services = [
        liking(service(name, count), *texts, labels={"tier": tier})
        for name, (count, texts, tier) in named
    ]
    world = settled(*services)
    on = Counter((t.service_name, t.node_id) for t in world.tasks() if t.node_id)
    homes = {each.id: each for each in NODES}
    for of in services:
        mine = [home for (name, home) in on.elements() if name == of.spec.name]
        for each in of.spec.affinities:
            rule = each.parsed
            if not each.hard:
                continue
            for home in mine:
                if not rule.of_services:
                    label = homes[home].labels.get(rule.attribute.split(".")[-1])
                    assert rule.accepts(label) is not each.anti
                    continue
                for (name, place), count in on.items():
                    [other] = [item for item in services if item.spec.name == name]
                    value = name if rule.attribute == "service" else other.spec.labels["tier"]
                    zone = {key: item.labels["zone"] for key, item in homes.items()}
                    near = zone[place] == zone[home] if each.within else place == home
                    itself = other is of and place == home
                    assert not (rule.accepts(value) and near) or (itself and count == 1)
