# SPDX-License-Identifier: Apache-2.0
"""Outcomes of updates: completed, paused, rolled back, waiting at canaries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import World, node, service, task_spec

from orchestrator.manager.planning.pipeline import EVERYTHING
from orchestrator.manager.planning.reconcile.convergence import progress
from orchestrator.manager.planning.reconcile.spec_history import REMEMBERED, rolled_back, with_spec
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import FailureAction, RestartPolicy, UpdateOrder, UpdatePolicy
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health

S = TaskState
ROLLBACK = UpdatePolicy(failure_action=FailureAction.ROLLBACK, monitor=5.0)


def begin(replicas: int, update: UpdatePolicy | None = None) -> World:
    """A service that runs, and an update of its image, planned."""
    web = service(
        replicas=replicas, update=update, spec=task_spec(restart=RestartPolicy(delay=1.0))
    )
    world = World(node("a"), node("b"), web)
    world.obey()
    give(world, "web:2")
    return world


def web(world: World) -> Service:
    return world.view.services["web-id"]


def give(world: World, image: str) -> None:
    """A user's update of the image."""
    now = web(world)
    task = replace(now.spec.task, container=replace(now.spec.task.container, image=image))
    world.put(with_spec(now, replace(now.spec, task=task), "", world.now))
    world.settle()


def stop_old(world: World) -> None:
    for item in world.tasks(S.RUNNING):
        if item.desired_state is S.SHUTDOWN:
            world.report(item, S.SHUTDOWN)
    world.settle()


def end_new(world: World, state: TaskState = S.FAILED, **fields: object) -> None:
    """The tasks that an update has just started end so."""
    stop_old(world)
    for item in world.tasks(S.ASSIGNED):
        world.report(item, state, **fields)
    world.settle()


def images(world: World) -> list[str]:
    return [item.spec.container.image for item in world.tasks(S.RUNNING)]


def test_an_update_that_works_is_completed() -> None:
    world = begin(2)
    assert web(world).update.state is UpdateState.UPDATING
    assert not progress(world.view, "web-id").converged
    world.obey()
    assert web(world).update.state is UpdateState.UPDATING, "it has to stay up"
    assert world.requeue_at == world.now + 5.0
    world.pass_time(5.0)
    assert web(world).update.state is UpdateState.COMPLETED
    assert web(world).update.finished_at == world.now
    assert progress(world.view, "web-id").converged


def test_a_task_lost_with_its_agent_is_no_failure_of_an_update() -> None:
    world = begin(3)
    end_new(world, lost=True)
    assert web(world).update.state is UpdateState.UPDATING
    world.stay_up()
    assert web(world).update.state is UpdateState.COMPLETED
    assert images(world) == ["web:2"] * 3


def test_a_failure_pauses_an_update_and_the_rest_runs_on() -> None:
    world = begin(3)
    end_new(world)
    assert web(world).update.state is UpdateState.PAUSED
    assert web(world).update.message == "1 of 3 failed: web.1: exit status 0"
    world.pass_time(1.0)
    world.obey()
    assert images(world) == ["web:2", "web:1", "web:1"], "the failed one is tried again, no other"
    give(world, "web:3")
    world.obey()
    assert images(world) == ["web:3"] * 3


def test_with_continue_failures_are_tried_again_and_the_update_goes_on() -> None:
    world = begin(2, UpdatePolicy(failure_action=FailureAction.CONTINUE))
    end_new(world)
    world.pass_time(1.0)
    world.stay_up()
    assert images(world) == ["web:2"] * 2
    assert web(world).update.state is UpdateState.COMPLETED


def test_failure_rolls_back_to_the_former_image_digest() -> None:
    before = replace(service(replicas=3, update=ROLLBACK), image_digest="sha256:1")
    world = World(node("a"), before)
    world.obey()
    spec = replace(before.spec, task=task_spec(image="web:2"))
    world.put(with_spec(web(world), spec, "sha256:2", world.now))
    world.settle()
    end_new(world, S.REJECTED, message="no such program")
    now = web(world)
    assert now.update.state is UpdateState.ROLLING_BACK
    assert now.update.message == "1 of 3 failed: web.1: no such program"
    assert (now.spec, now.image_digest, now.spec_version) == (before.spec, "sha256:1", 3)
    assert now.history == (), "a failed spec is not remembered for rollback"
    world.obey()
    world.pass_time(60.0)
    world.obey()
    assert images(world) == ["web:1"] * 3
    assert web(world).update.state is UpdateState.ROLLED_BACK
    assert progress(world.view, "web-id").converged


def test_task_that_ends_in_its_monitor_period_rolls_the_update_back() -> None:
    world = begin(1, ROLLBACK)
    world.obey()
    assert web(world).update.state is UpdateState.UPDATING, "it has to run for a while"
    assert world.requeue_at == world.now + 5.0
    world.now += 3.0
    world.report(world.task(), S.FAILED)
    world.settle()
    assert web(world).update.state is UpdateState.ROLLING_BACK


def test_a_task_that_ends_later_is_no_failure_of_the_update() -> None:
    world = begin(1, ROLLBACK)
    world.obey()
    world.pass_time(5.0)
    assert web(world).update.state is UpdateState.COMPLETED
    world.report(world.task(), S.FAILED)
    world.settle()
    assert web(world).update.state is UpdateState.COMPLETED


def test_bad_health_is_a_failure_however_long_it_took() -> None:
    world = begin(1)
    stop_old(world)
    world.report(world.task(), S.RUNNING, health=Health.STARTING)
    world.now += 90.0
    world.report(world.task(), S.FAILED, health=Health.UNHEALTHY, message="unhealthy: no")
    world.settle()
    assert web(world).update.state is UpdateState.PAUSED


@pytest.mark.parametrize(("ratio", "failures"), [(0.0, 1), (0.25, 2), (0.5, 3), (1.0, None)])
def test_the_ratio_of_slots_that_may_fail(ratio: float, failures: int | None) -> None:
    world = begin(4, UpdatePolicy(parallelism=1, max_failure_ratio=ratio))
    for failed in range(1, 5):
        world.pass_time(0.0)
        end_new(world)
        if web(world).update.state is UpdateState.PAUSED:
            assert failed == failures
            return
        world.pass_time(4.0)  # the failed one works at the second try
        for item in world.tasks(S.ASSIGNED):
            world.report(item, S.RUNNING)
        world.settle()
    assert failures is None


def test_a_new_leader_counts_the_same_failures() -> None:
    world = begin(4, UpdatePolicy(max_failure_ratio=0.25))
    end_new(world)
    other = World(*world.view.objects())
    other.now = world.now
    for _ in world.tasks():  # ids are never given twice
        other.new_id()
    other.pass_time(1.0)
    for item in other.tasks(S.ASSIGNED):
        other.report(item, S.RUNNING)
    other.settle()
    end_new(other)
    assert web(other).update.state is UpdateState.PAUSED


def test_failures_of_an_earlier_spec_do_not_count() -> None:
    world = begin(2)
    end_new(world)
    give(world, "web:3")
    assert web(world).update.state is UpdateState.UPDATING
    world.stay_up()
    assert web(world).update.state is UpdateState.COMPLETED


def test_a_rollback_that_fails_is_paused() -> None:
    world = begin(2, ROLLBACK)
    end_new(world)
    assert web(world).update.state is UpdateState.ROLLING_BACK
    world.settle()
    end_new(world)
    assert web(world).update.state is UpdateState.ROLLBACK_PAUSED


@pytest.mark.parametrize("order", UpdateOrder)
def test_canaries_wait_to_be_promoted(order: UpdateOrder) -> None:
    world = begin(4, UpdatePolicy(parallelism=3, canary=2, order=order))
    world.stay_up()
    assert sorted(images(world)) == ["web:1", "web:1", "web:2", "web:2"]
    assert web(world).update.state is UpdateState.CANARY
    assert web(world).update.message == "2 of 4 replicas are updated"
    assert progress(world.view, "web-id").converged
    now = web(world)
    update = replace(now.update, state=UpdateState.UPDATING, promoted=True)
    world.put(replace(now, update=update))
    world.stay_up()
    assert images(world) == ["web:2"] * 4
    assert web(world).update.state is UpdateState.COMPLETED


def test_a_canary_that_fails_is_rolled_back_alone() -> None:
    world = begin(3, replace(ROLLBACK, canary=1))
    kept = {item.id for item in world.tasks(S.RUNNING) if item.desired_state is S.RUNNING}
    end_new(world)
    world.obey()
    assert images(world) == ["web:1"] * 3
    assert kept < {item.id for item in world.tasks(S.RUNNING)}


def test_tasks_added_during_a_rollback_have_the_former_spec() -> None:
    world = begin(2, ROLLBACK)
    stop_old(world)
    [new] = world.tasks(S.ASSIGNED)
    world.report(new, S.FAILED)
    now = web(world)
    world.put(replace(now, spec=replace(now.spec, replicas=4)))
    world.settle()  # one pass sees both
    world.stay_up()
    assert images(world) == ["web:1"] * 4
    assert web(world).update.state is UpdateState.ROLLED_BACK


def test_a_rollback_keeps_the_number_of_replicas() -> None:
    now = with_spec(service(replicas=2), service(replicas=5).spec, "", 1.0)
    assert (now.history, now.update.state) == ((), UpdateState.NONE), "it was only scaled"
    now = with_spec(now, replace(now.spec, task=task_spec(image="web:2")), "", 2.0)
    back = rolled_back(now, now.history[0], 3.0, "by hand")
    assert (back.spec.replicas, back.spec.task.container.image) == (5, "web:1")
    assert [past.spec.task.container.image for past in back.history] == ["web:2"]


def test_spec_history_is_limited() -> None:
    now = service()
    for number in range(2, 20):
        now = with_spec(now, replace(now.spec, task=task_spec(image=f"web:{number}")), "", 1.0)
    assert [past.version for past in now.history] == list(range(18, 18 - REMEMBERED, -1))


@pytest.mark.parametrize(
    ("action", "state"),
    [
        (FailureAction.PAUSE, UpdateState.PAUSED),
        (FailureAction.CONTINUE, UpdateState.UPDATING),
        (FailureAction.ROLLBACK, UpdateState.ROLLING_BACK),
    ],
)
def test_a_task_that_crashes_after_it_has_run_for_a_while(
    action: FailureAction, state: UpdateState
) -> None:
    world = begin(1, UpdatePolicy(failure_action=action))
    world.obey()
    world.pass_time(3.0)
    world.report(world.task(), S.FAILED, exit_code=7)
    world.settle()
    assert web(world).update.state is state


def test_each_replacement_has_its_own_monitor_period() -> None:
    world = begin(1, UpdatePolicy(failure_action=FailureAction.CONTINUE))
    for _ in range(3):
        world.obey()
        world.pass_time(4.0)
        world.report(world.task(), S.FAILED)
        world.settle()
        world.pass_time(60.0)
        assert web(world).update.state is UpdateState.UPDATING
    world.stay_up()
    assert web(world).update.state is UpdateState.COMPLETED


def test_no_monitor_period() -> None:
    world = begin(2, UpdatePolicy(monitor=0.0))
    world.obey()
    assert web(world).update.state is UpdateState.COMPLETED


def test_a_healthy_task_completes_an_update_at_once() -> None:
    world = begin(1)
    stop_old(world)
    world.report(world.task(), S.RUNNING, health=Health.STARTING)
    world.settle()
    assert web(world).update.state is UpdateState.UPDATING
    world.report(world.task(), S.RUNNING, health=Health.HEALTHY)
    world.settle()
    assert web(world).update.state is UpdateState.COMPLETED


def test_work_that_would_be_done_again_at_once_fails_an_update() -> None:
    world = begin(2)
    end_new(world, S.COMPLETE)
    assert web(world).update.state is UpdateState.PAUSED


@pytest.mark.parametrize("step", [-86400.0, -60.0, -3.0])
def test_an_update_ends_though_the_clock_is_set_back(step: float) -> None:
    world = begin(1)
    world.obey()
    world.now += step
    world.pass_time(0.0)
    world.dirty = EVERYTHING
    world.settle()
    world.stay_up(8.0)
    assert web(world).update.state is UpdateState.COMPLETED
