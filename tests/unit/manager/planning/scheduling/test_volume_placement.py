# SPDX-License-Identifier: Apache-2.0
"""Tasks and their volumes: placement on the pinned node, and what a placement writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from builders import World, node, service, task, task_spec

from orchestrator.manager.planning.scheduling.scheduler import Placement, Unplaced, schedule
from orchestrator.manager.planning.scheduling.volume_placement import (
    volume_changes,
    volume_consumers,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.compatibility.agent_features import (
    ANNOTATIONS,
    CDI_DEVICES,
    HOOKS,
    SHARED_NAMESPACES,
)
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.objects import Object, Volume
from orchestrator.model.objects import VolumeScope as Scope
from orchestrator.model.specs import Hook, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

NODES = (node("n1"), node("n2"), node("n3"))


def using(*names: str, driver: str = "", volumes_from: Iterable[str] = ()) -> TaskSpec:
    mounts = tuple(
        MountSpec(source=name, target=f"/{index}", driver=driver)
        for index, name in enumerate(names)
    )
    spec = task_spec()
    container = replace(spec.container, mounts=mounts, volumes_from=tuple(volumes_from))
    return replace(spec, container=container)


def with_features(host: Node, *features: str) -> Node:
    return replace(host, description=replace(host.description, features=features))


def waiting(id: str, spec: TaskSpec, slot: int = 1, **fields: Any) -> Task:
    return task(id, TaskState.PENDING, slot=slot, spec=spec, **fields)


def decide(*objects: Object) -> dict[str, str]:
    """Task → the node that it gets, or why it gets none."""
    view = ClusterView.of(objects)
    return {
        decision.task.id: decision.node.id if isinstance(decision, Placement) else decision.reason
        for decision in schedule(view, view.pending.values(), 0.0)
    }


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (Volume(id="data", node_id="n2"), "n2"),
        (Volume(id="data", removing=True), "volume data is being removed"),
        (
            Volume(id="data", node_id="n9"),
            "volume data was on a node that has left the cluster; "
            "'orc volume rm --force data' forgets it",
        ),
        (Volume(id="data", driver="nfs"), "no suitable node (3 nodes: no volume driver nfs)"),
        (Volume(id="other", node_id="n2"), "n1"),
    ],
)
def test_a_task_goes_where_its_volume_is(volume: Volume, expected: str) -> None:
    assert decide(*NODES, volume, waiting("t", using("data"))) == {"t": expected}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": NodeState.DOWN}, "down"),
        ({"availability": Availability.DRAIN}, "drained"),
    ],
)
def test_a_task_waits_for_its_volumes_node(change: dict[str, Any], words: str) -> None:
    nodes = (NODES[0], replace(NODES[1], **change), NODES[2])
    decided = decide(*nodes, Volume(id="data", node_id="n2"), waiting("t", using("data")))
    assert "2 nodes: volume data is on host-n2" in decided["t"]
    assert f"1 node: {words}" in decided["t"]


def test_volumes_on_different_nodes_are_unschedulable() -> None:
    volumes = Volume(id="a1", node_id="n1"), Volume(id="b1", node_id="n2")
    reason = decide(*NODES, *volumes, waiting("t", using("a1", "b1")))["t"]
    assert "volume a1 is on host-n1" in reason
    assert "volume b1 is on host-n2" in reason


def test_all_replicas_follow_the_first_to_a_new_volume() -> None:
    tasks = [waiting(f"t{slot}", using("data"), slot) for slot in (1, 2, 3)]
    assert set(decide(*NODES, *tasks).values()) == {"n1"}


def test_another_service_follows_within_the_same_pass() -> None:
    other = service("api")
    tasks = waiting("t1", using("data")), waiting("t2", using("data"), of=other)
    busy = task("busy", node_id="n1")
    assert len(set(decide(*NODES, busy, *tasks).values())) == 1


def test_slots_with_volumes_of_their_own_are_spread_and_stay() -> None:
    spec = using("data-{{.Task.Slot}}")
    world = World(*NODES, service(replicas=3, spec=spec))
    world.obey()
    homes = {slot: id for id, (slot,) in world.slots_on().items()}
    assert {f"data-{slot}": id for slot, id in homes.items()} == {
        name: volume.node_id for name, volume in world.view.volumes.items()
    }
    world.put(service(replicas=3, spec=replace(spec, force=1), spec_version=2))
    for _ in range(3):
        world.obey()
        world.pass_time(1.0)
    world.obey()
    assert {slot: id for id, (slot,) in world.slots_on().items()} == homes


def test_a_name_with_the_node_in_it_is_another_volume_on_each() -> None:
    spec = using("cache-{{.Node.Hostname}}")
    tasks = [waiting(f"t{slot}", spec, slot) for slot in (1, 2, 3)]
    assert sorted(decide(*NODES, *tasks).values()) == ["n1", "n2", "n3"]


def with_driver(item: Node, **scopes: str) -> Node:
    return replace(item, description=replace(item.description, volume_drivers=scopes))


def test_a_global_volume_is_wherever_its_driver_is() -> None:
    nodes = (NODES[0], *(with_driver(item, nfs="global") for item in NODES[1:]))
    tasks = [waiting(f"t{slot}", using("data", driver="nfs"), slot) for slot in (1, 2)]
    assert sorted(decide(*nodes, *tasks).values()) == ["n2", "n3"]
    (change,), _ = volume_changes(ClusterView.of(nodes), tasks[0], nodes[1], 5.0)
    assert change.after == Volume(id="data", created_at=5.0, driver="nfs", scope=Scope.GLOBAL)


def test_a_placement_creates_settles_or_reads_a_volume() -> None:
    item = waiting("t", using("new", "unsettled", "there"))
    unsettled, there = Volume(id="unsettled", revision=3), Volume(id="there", node_id="n1")
    view = ClusterView.of([*NODES, unsettled, there])
    changes, read = volume_changes(view, item, NODES[0], 5.0)
    assert [change.after for change in changes] == [
        Volume(id="new", created_at=5.0, node_id="n1"),
        replace(unsettled, node_id="n1"),
    ]
    assert read == (there,)


def test_the_volume_is_written_with_the_placement() -> None:
    world = World(*NODES, service(spec=using("data")))
    plans = world.plan()
    written = [change.after for made in plans for change in made.changes]
    assert [type(item).__name__ for item in written] == ["Volume", "Task"]
    assert world.view.volumes["data"].node_id == world.task().node_id


@pytest.mark.parametrize(
    ("holder", "expected"),
    [
        (task("h", node_id="n3", container_name="store"), "n3"),
        (None, "no container store, whose volumes it mounts"),
        (
            waiting("h", task_spec(), container_name="store", not_before=9.0),
            "container store, whose volumes it mounts, has no node yet",
        ),
    ],
)
def test_volumes_from_places_together(holder: Task | None, expected: str) -> None:
    item = waiting("t", using(volumes_from=("store:ro",)))
    assert decide(*NODES, *([holder] if holder else []), item)["t"] == expected


@pytest.mark.parametrize(
    ("holder", "expected"),
    [
        (task("web", TaskState.RUNNING, node_id="n2"), "n2"),
        (
            task("web", TaskState.SHUTDOWN, node_id="n2"),
            "container web, whose namespaces it shares, is not running",
        ),
        (None, "no container web, whose namespaces it shares"),
    ],
)
@pytest.mark.parametrize("kind", ["pid", "ipc"])
def test_task_that_shares_namespaces_is_on_their_node(
    holder: Task | None, expected: str, kind: str
) -> None:
    spec = task_spec()
    spec = replace(spec, container=replace(spec.container, **{kind: "container:web"}))
    item = waiting("t", spec)
    nodes = [with_features(each, SHARED_NAMESPACES) for each in NODES]
    assert decide(*nodes, *([holder] if holder else []), item)["t"] == expected


@pytest.mark.parametrize(
    ("container", "feature"),
    [
        ({"pid": "container:web"}, SHARED_NAMESPACES),
        ({"ipc": "container:web"}, SHARED_NAMESPACES),
        ({"post_start": (Hook(("a",)),)}, HOOKS),
        ({"pre_stop": (Hook(("a",)),)}, HOOKS),
        ({"annotations": {"a": "b"}}, ANNOTATIONS),
        ({"devices": ("vendor.com/gpu=0",)}, CDI_DEVICES),
    ],
)
def test_an_agent_that_is_too_old_gets_none(container: dict[str, Any], feature: str) -> None:
    spec = task_spec()
    item = waiting("t", replace(spec, container=replace(spec.container, **container)))
    old = decide(node("n1"), task("web", node_id="n1", slot=2), item)["t"]
    assert f"its agent is too old for {feature}" in old
    new = with_features(node("n1"), feature)
    assert decide(new, task("web", node_id="n1", slot=2), item)["t"] == "n1"


def test_users_of_a_volume() -> None:
    view = ClusterView.of(
        [
            *NODES,
            task("runs", node_id="n1", spec=using("data")),
            task("ended", TaskState.FAILED, node_id="n1", slot=2, spec=using("data")),
            task("next", TaskState.PENDING, slot=3, spec=using("data")),
            Task(
                id="stopped",
                container_name="store",
                spec=using("data", "own"),
                node_id="n1",
                status=replace(task("x").status, state=TaskState.SHUTDOWN),
            ),
            task("guest", node_id="n1", slot=4, spec=using(volumes_from=("store",))),
        ]
    )
    assert {
        name: [item.id for item in tasks] for name, tasks in volume_consumers(view).items()
    } == {
        "data": ["stopped", "runs", "next", "guest"],
        "own": ["stopped", "guest"],
    }


def test_binds_and_tmpfs_tie_a_task_to_nothing() -> None:
    spec = task_spec()
    mounts = (
        MountSpec(type=MountType.BIND, source="/srv", target="/a"),
        MountSpec(type=MountType.TMPFS, target="/b"),
        MountSpec(target="/c"),
    )
    spec = replace(spec, container=replace(spec.container, mounts=mounts))
    tasks = [waiting(f"t{slot}", spec, slot) for slot in (1, 2, 3)]
    assert sorted(decide(*NODES, *tasks).values()) == ["n1", "n2", "n3"]


def test_a_reason_is_given_by_the_scheduler() -> None:
    view = ClusterView.of([*NODES, Volume(id="data", removing=True)])
    (decision,) = schedule(view, [waiting("t", using("data"))], 0.0)
    assert isinstance(decision, Unplaced)
