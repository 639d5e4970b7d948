# SPDX-License-Identifier: Apache-2.0
"""Rolling updates."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from builders import NONE, World, node, service, task_spec

from orchestrator.manager.planning.reconcile.convergence import progress
from orchestrator.model.nodes import Availability
from orchestrator.model.services import Service
from orchestrator.model.specs import (
    Resources,
    RestartPolicy,
    ServiceMode,
    TaskSpec,
    UpdateOrder,
    UpdatePolicy,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health

PENDING, RUNNING, FAILED = TaskState.PENDING, TaskState.RUNNING, TaskState.FAILED
SHUTDOWN, COMPLETE = TaskState.SHUTDOWN, TaskState.COMPLETE


def updated(web: Service, spec: TaskSpec) -> Service:
    return replace(web, spec=replace(web.spec, task=spec), spec_version=web.spec_version + 1)


def begin(replicas: int, update: UpdatePolicy | None = None, **spec: object) -> World:
    """A service that runs, and a changed image for it, not yet planned."""
    web = service(replicas=replicas, update=update, spec=task_spec(**spec))
    world = World(node("a"), node("b"), web)
    world.obey()
    world.put(updated(web, replace(web.spec.task, container=task_spec(image="web:2").container)))
    world.settle()
    return world


def stopping(world: World) -> list[int]:
    return [
        item.slot
        for item in world.tasks()
        if item.desired_state is SHUTDOWN and item.status.state is RUNNING
    ]


def step(world: World) -> None:
    """What is being stopped stops, and what is new runs."""
    for item in world.tasks(RUNNING):
        if item.desired_state is SHUTDOWN:
            world.report(item, SHUTDOWN)
    world.settle()
    for item in world.tasks(TaskState.ASSIGNED):
        world.report(item, RUNNING)
    world.settle()


def images(world: World) -> list[str]:
    return [item.spec.container.image for item in world.tasks(RUNNING)]


def test_one_at_a_time_and_each_waits_for_the_one_before() -> None:
    world = begin(3)
    assert stopping(world) == [1]
    world.report(world.task(1), SHUTDOWN)
    world.settle()
    assert world.task(1).spec.container.image == "web:2"
    assert stopping(world) == [], "the next waits until the new task runs"
    world.report(world.task(1), RUNNING)
    world.settle()
    assert stopping(world) == [2]
    world.obey()
    assert images(world) == ["web:2"] * 3
    assert progress(world.view, "web-id").converged


def test_a_probed_task_has_arrived_when_it_is_healthy() -> None:
    world = begin(2)
    world.report(world.task(1), SHUTDOWN)
    world.settle()
    world.report(world.task(1), RUNNING, health=Health.STARTING)
    world.settle()
    assert stopping(world) == [], "it runs, but is not known to work yet"
    assert not progress(world.view, "web-id").converged
    world.report(world.task(1), RUNNING, health=Health.HEALTHY)
    world.settle()
    assert stopping(world) == [2]


def test_parallelism() -> None:
    world = begin(5, UpdatePolicy(parallelism=2))
    assert stopping(world) == [1, 2]
    step(world)
    assert stopping(world) == [3, 4]
    assert stopping(begin(3, UpdatePolicy(parallelism=0))) == [1, 2, 3]


def test_the_delay_between_batches_counts_from_the_last_start() -> None:
    world = begin(4, UpdatePolicy(parallelism=2, delay=10.0))
    assert stopping(world) == [1, 2], "the first batch waits for nothing"
    world.now += 3.0
    step(world)
    assert stopping(world) == []
    assert world.requeue_at == world.now + 10.0
    world.pass_time(10.0)
    assert stopping(world) == [3, 4]


def test_a_new_task_that_fails_holds_the_update_and_restarts_with_backoff() -> None:
    world = begin(3, restart=RestartPolicy(delay=1.0))
    world.report(world.task(1), SHUTDOWN)
    world.settle()
    for expected in (1.0, 2.0, 4.0):
        world.report(world.task(1), FAILED)
        world.settle()
        assert world.task(1).not_before - world.now == expected
        assert stopping(world) == []
        world.pass_time(expected)
    world.obey()
    assert images(world) == ["web:2"] * 3


def test_a_repaired_spec_replaces_the_broken_one_at_once() -> None:
    world = begin(3)
    world.report(world.task(1), SHUTDOWN)
    world.settle()
    world.report(world.task(1), FAILED)
    world.settle()
    assert world.task(1).not_before > world.now
    web = world.view.services["web-id"]
    world.put(updated(web, task_spec(image="web:3")))
    world.settle()
    assert world.task(1).status.state is TaskState.ASSIGNED
    world.obey()
    assert images(world) == ["web:3"] * 3


def test_tasks_waiting_for_capacity_are_updated_at_once() -> None:
    web = service(replicas=3, spec=task_spec(shares=4096))
    world = World(node("a"), node("b", availability=Availability.PAUSE), web)
    world.obey()
    assert len(world.tasks(PENDING)) == 2
    world.put(updated(web, replace(web.spec.task, reservation=Resources(shares=1024))))
    world.obey()
    assert [item.spec.reservation.shares for item in world.tasks(RUNNING)] == [1024] * 3


def test_tasks_waiting_for_capacity_do_not_block_running_ones() -> None:
    web = service(replicas=3, spec=task_spec(shares=4096))
    world = World(node("a"), node("b"), web)
    world.obey()
    world.put(updated(web, replace(web.spec.task, reservation=Resources(shares=4000))))
    world.obey()
    assert [item.spec.reservation.shares for item in world.tasks(RUNNING)] == [4000] * 2
    assert len(world.tasks(PENDING)) == 1


def test_an_update_that_no_longer_fits_takes_down_only_one() -> None:
    web = service(replicas=2, spec=task_spec(shares=2048))
    world = World(node("a"), web)
    world.obey()
    world.put(updated(web, replace(web.spec.task, reservation=Resources(shares=4096))))
    world.obey()
    assert len(world.tasks(RUNNING)) == 1
    assert world.task(1).status.message == "no suitable node (1 node: insufficient shares)"


def test_tasks_that_do_not_run_go_first() -> None:
    web = service(replicas=2)
    world = World(node("a"), web)
    world.settle()
    world.report(world.task(1), RUNNING)
    world.settle()
    world.put(updated(web, task_spec(image="web:2")))
    world.settle()
    assert [item.slot for item in world.tasks() if item.desired_state is SHUTDOWN] == [2]


def test_changes_that_need_no_new_tasks() -> None:
    web = service(replicas=2)
    world = World(node("a"), web)
    world.obey()
    labels = replace(web, spec=replace(web.spec, labels={"team": "x"}))
    for changed in (
        labels,
        updated(web, web.spec.task),
        updated(web, replace(web.spec.task, restart=RestartPolicy(NONE))),
    ):
        world.put(changed)
        assert world.plan() == []
        assert progress(world.view, "web-id").converged


def test_changes_that_need_new_tasks() -> None:
    web = service(replicas=1)
    for changed in (
        updated(web, replace(web.spec.task, force=1)),
        replace(web, image_digest="sha256:2"),
    ):
        world = World(node("a"), web)
        world.obey()
        world.put(changed)
        world.settle()
        assert stopping(world) == [1]
        assert not progress(world.view, "web-id").converged


def test_a_slot_that_has_done_its_work_does_it_again_with_the_new_spec() -> None:
    web = service(spec=task_spec(restart=RestartPolicy(NONE)))
    world = World(node("a"), web)
    world.obey()
    world.report(world.task(), COMPLETE)
    world.settle()
    assert progress(world.view, "web-id").converged
    world.put(updated(web, replace(web.spec.task, force=1)))
    world.obey()
    assert [item.status.state for item in world.tasks()] == [COMPLETE, RUNNING]


START_FIRST = UpdatePolicy(order=UpdateOrder.START_FIRST)


def of_slot(world: World, slot: int) -> list[tuple[str, TaskState, TaskState]]:
    """Image, state and desired state of a slot's tasks that have not ended, oldest first."""
    return [
        (item.spec.container.image, item.status.state, item.desired_state)
        for item in world.tasks()
        if item.slot == slot and item.status.state <= RUNNING
    ]


def test_start_first_makes_the_new_task_beside_the_old_one() -> None:
    world = begin(2, START_FIRST)
    assert of_slot(world, 1) == [
        ("web:1", RUNNING, RUNNING),
        ("web:2", TaskState.ASSIGNED, RUNNING),
    ]
    assert len(of_slot(world, 2)) == 1, "one slot at a time"
    world.report(world.task(1), RUNNING)
    world.settle()
    assert of_slot(world, 1) == [("web:1", RUNNING, SHUTDOWN), ("web:2", RUNNING, RUNNING)]
    assert len(of_slot(world, 2)) == 1, "the old one still stops, and takes room"
    assert not progress(world.view, "web-id").converged
    world.obey()
    assert images(world) == ["web:2"] * 2
    assert progress(world.view, "web-id").converged


def test_start_first_keeps_the_old_task_for_as_long_as_the_new_one_fails() -> None:
    world = begin(1, START_FIRST, restart=RestartPolicy(delay=1.0))
    for delay in (1.0, 2.0):
        world.report(world.task(1), FAILED)
        world.settle()
        assert of_slot(world, 1)[0] == ("web:1", RUNNING, RUNNING)
        assert world.task(1).not_before == world.now + delay
        world.pass_time(delay)
    world.obey()
    assert images(world) == ["web:2"]


def test_start_first_waits_for_room_beside_the_old_task() -> None:
    web = service(update=START_FIRST, spec=task_spec(shares=600))
    world = World(node("a", shares=1024), web)
    world.obey()
    world.put(updated(web, replace(web.spec.task, force=1)))
    world.settle()
    assert [state for _, state, _ in of_slot(world, 1)] == [RUNNING, PENDING]
    assert world.task(1).status.message


def test_a_spec_that_changes_again_meanwhile_leaves_the_task_that_works() -> None:
    world = begin(1, START_FIRST)
    web = world.view.services["web-id"]
    world.put(updated(web, replace(web.spec.task, force=1)))
    world.settle()
    assert [desired for _, _, desired in of_slot(world, 1)] == [RUNNING, SHUTDOWN]
    world.obey()
    assert [item.spec.force for item in world.tasks(RUNNING)] == [1]


def test_an_update_that_is_taken_back_stops_the_new_task() -> None:
    world = begin(1, START_FIRST)
    web = world.view.services["web-id"]
    world.put(updated(web, task_spec()))
    world.settle()
    world.obey()
    [left] = world.tasks(RUNNING)
    assert (left.spec.container.image, left.id) == ("web:1", world.tasks()[0].id)


def test_start_first_that_turns_into_stop_first_goes_on() -> None:
    world = begin(1, START_FIRST, restart=RestartPolicy(delay=1.0))
    world.report(world.task(1), FAILED)
    world.settle()
    web = world.view.services["web-id"]
    world.put(replace(web, spec=replace(web.spec, update=UpdatePolicy())))
    world.settle()
    world.pass_time(1.0)
    world.obey()
    assert images(world) == ["web:2"]


def test_a_drained_node_is_left_start_first() -> None:
    web = service(replicas=2, update=START_FIRST)
    world = World(node("a"), web)
    world.obey()
    world.put(node("b"))
    world.put(node("a", availability=Availability.DRAIN))
    while world.slots_on().keys() - {"b"}:
        world.settle()
        working = [t for t in world.tasks(RUNNING) if t.desired_state is RUNNING]
        assert len(working) == 2, "never fewer than there were"
        starting = [t for t in world.tasks() if t.status.state is TaskState.ASSIGNED]
        stopping = [t for t in world.tasks(RUNNING) if t.desired_state is SHUTDOWN]
        for item in starting:
            world.report(item, RUNNING)
        for item in stopping:
            world.report(item, SHUTDOWN)
    assert world.slots_on() == {"b": [1, 2]}


def test_undrained_node_keeps_working_tasks() -> None:
    web = service(update=START_FIRST, spec=task_spec(shares=600))
    world = World(node("a", shares=1000), web)
    world.obey()
    world.put(node("a", shares=1000, availability=Availability.DRAIN))
    world.settle()
    old, new = world.tasks()
    assert (old.status.state, new.status.state) == (RUNNING, PENDING), "there is room nowhere else"
    world.put(node("a", shares=1000, availability=Availability.PAUSE))
    world.obey()
    [left] = world.tasks(RUNNING)
    assert (left.id, left.desired_state) == (old.id, RUNNING)


def test_drain_cancelled_during_an_update_does_not_block_it() -> None:
    world = begin(3, replace(START_FIRST, delay=10.0))
    step(world)
    step(world)
    [arrived] = [t for t in world.tasks(RUNNING) if t.spec.container.image == "web:2"]
    home = world.view.nodes[arrived.node_id]
    world.put(replace(home, availability=Availability.DRAIN))
    world.pass_time(10.0)
    world.settle()
    assert [t.slot for t in world.tasks() if t.status.state is TaskState.ASSIGNED] == [1]
    world.put(replace(home, availability=Availability.ACTIVE))
    world.settle()
    for _ in range(4):
        step(world)
        world.pass_time(10.0)
    assert images(world) == ["web:2"] * 3
    assert progress(world.view, "web-id").converged


def test_a_global_service_starts_first_on_its_own_nodes() -> None:
    web = service(mode=ServiceMode.GLOBAL, update=START_FIRST)
    world = World(node("a"), node("b"), web)
    world.obey()
    world.put(updated(web, replace(web.spec.task, force=1)))
    world.settle()
    [new] = [item for item in world.tasks() if item.spec.force]
    old = [item for item in world.tasks() if item.slot == new.slot and not item.spec.force]
    assert [item.node_id for item in old] == [new.node_id]
    world.obey()
    assert [item.spec.force for item in world.tasks(RUNNING)] == [1, 1]


@pytest.mark.parametrize("order", UpdateOrder)
@pytest.mark.parametrize("parallelism", [1, 2, 0])
@pytest.mark.parametrize("kept", [("a",), ("a", "b"), ("a", "b", "c")])
def test_forced_update_spreads_a_service_again(
    order: UpdateOrder, parallelism: int, kept: tuple[str, ...]
) -> None:
    web = service(replicas=6, update=UpdatePolicy(parallelism=parallelism, order=order))
    world = World(*map(node, kept), web)
    world.obey()
    for name in "abc":
        if name not in kept:
            world.put(node(name))
    world.obey()
    (web,) = world.view.services.values()
    world.put(updated(web, replace(web.spec.task, force=1)))
    world.obey()
    assert Counter(item.node_id for item in world.tasks(RUNNING)) == dict.fromkeys("abc", 2)
