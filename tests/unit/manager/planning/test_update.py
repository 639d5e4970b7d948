"""Rolling updates."""

from __future__ import annotations

from dataclasses import replace

from builders import NONE, World, node, service, task_spec

from orchestrator.manager.planning.progress import progress
from orchestrator.model.objects import Availability, Health, Service
from orchestrator.model.specs import Resources, RestartPolicy, TaskSpec, UpdatePolicy
from orchestrator.model.states import TaskState

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
    assert stopping(world) == [], "it runs, and nobody knows whether it works"
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


def test_what_waits_for_room_is_updated_at_once_and_blocks_nothing() -> None:
    web = service(replicas=3, spec=task_spec(shares=4096))
    world = World(node("a"), node("b", availability=Availability.PAUSE), web)
    world.obey()
    assert len(world.tasks(PENDING)) == 2
    world.put(updated(web, replace(web.spec.task, reservation=Resources(shares=1024))))
    world.obey()
    assert [item.spec.reservation.shares for item in world.tasks(RUNNING)] == [1024] * 3


def test_what_waits_for_room_does_not_hold_up_those_that_run() -> None:
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


def test_what_needs_no_new_tasks() -> None:
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


def test_what_needs_new_tasks() -> None:
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
