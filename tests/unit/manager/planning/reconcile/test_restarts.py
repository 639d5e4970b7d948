# SPDX-License-Identifier: Apache-2.0
"""When a slot is refilled after its task has ended."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import ANY, NONE, NOW, ON_FAILURE, World, node, service, task_spec

from orchestrator.manager.planning.reconcile.restarts import backoff
from orchestrator.model.nodes import NodeState
from orchestrator.model.specs import RestartCondition, RestartPolicy
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health

PENDING, ASSIGNED, RUNNING = TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING
COMPLETE, FAILED, REJECTED = TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED


def world_with(**policy: object) -> World:
    """One node that runs one task under this restart policy."""
    restart = RestartPolicy(**{"delay": 5.0, **policy})
    world = World(node("a"), service(spec=task_spec(restart=restart)))
    world.obey()
    return world


def end(world: World, state: TaskState = FAILED, after: float = 0.0) -> None:
    """The slot's present task runs for a while and then ends."""
    world.now += after
    world.report(world.task(), state)
    world.settle()


@pytest.mark.parametrize(
    ("condition", "state", "restarts"),
    [
        (ANY, COMPLETE, True),
        (ANY, FAILED, True),
        (ANY, REJECTED, True),
        (ON_FAILURE, COMPLETE, False),
        (ON_FAILURE, FAILED, True),
        (ON_FAILURE, REJECTED, True),
        (NONE, COMPLETE, False),
        (NONE, FAILED, False),
    ],
)
def test_conditions(condition: RestartCondition, state: TaskState, restarts: bool) -> None:
    world = world_with(condition=condition)
    end(world, state)
    assert bool(world.tasks(PENDING)) is restarts


@pytest.mark.parametrize("condition", [ANY, ON_FAILURE])
def test_a_task_lost_with_its_agent_restarts_at_once_without_an_attempt(
    condition: RestartCondition,
) -> None:
    world = world_with(condition=condition, max_attempts=1)
    for _ in range(3):
        world.report(world.task(), FAILED, lost=True)
        world.settle()
        assert world.task().status.state is ASSIGNED


def test_a_task_lost_with_its_agent_is_not_restarted_with_condition_none() -> None:
    world = world_with(condition=NONE)
    world.report(world.task(), FAILED, lost=True)
    world.settle()
    assert world.task().status.state is FAILED


def test_restart_waits_for_its_delay_with_a_reason() -> None:
    world = world_with(delay=5.0)
    end(world, after=60.0)
    waiting = world.task()
    assert waiting.status.state is PENDING
    assert waiting.status.message == "restarting in 5 s (attempt 2)"
    assert waiting.not_before == world.requeue_at == world.now + 5.0
    world.pass_time(4.9)
    assert world.task() == waiting, "nothing is written while it waits"
    world.pass_time(0.1)
    assert world.task().id == waiting.id
    assert world.task().status.state is ASSIGNED


def test_without_a_delay_the_replacement_is_assigned_in_the_same_write() -> None:
    world = world_with(delay=0.0)
    world.now += 60.0
    failed = world.task()
    world.report(failed, FAILED)
    [plan] = world.plan()
    [change] = plan.changes
    assert change.before is None
    assert world.task().id != failed.id
    assert world.task().status.state is ASSIGNED


def test_a_crash_loop_backs_off_and_a_task_that_settles_ends_it() -> None:
    world = world_with(delay=1.0)
    delays = []
    for _ in range(4):
        end(world)
        delays.append(world.task().not_before - world.now)
        world.pass_time(delays[-1])
        world.obey()
    assert delays == [1.0, 2.0, 4.0, 8.0]
    assert world.task().attempt == 4
    end(world, after=10.0)
    assert world.task().not_before - world.now == 1.0
    assert world.task().attempt == 1


@pytest.mark.parametrize(
    ("delay", "attempt", "seconds"),
    [
        (5.0, 1, 5.0),
        (5.0, 2, 10.0),
        (5.0, 7, 300.0),
        (5.0, 10_000, 300.0),
        (0.0, 1, 0.0),
        (0.0, 2, 1.0),
        (0.0, 3, 2.0),
        (600.0, 3, 600.0),
    ],
)
def test_backoff(delay: float, attempt: int, seconds: float) -> None:
    assert backoff(RestartPolicy(delay=delay), attempt) == seconds


def test_max_attempts_ends_the_restarts() -> None:
    world = world_with(delay=0.0, max_attempts=7)
    for _ in range(20):
        if world.task().status.state is FAILED:
            break
        end(world)
        world.pass_time(300.0)
        world.obey()
    assert world.task().status.state is FAILED
    assert world.task().attempt == 7
    assert len(world.tasks()) == 8, "as much is remembered as must be counted"
    world.put(replace(world.view.services["web-id"], updated_at=NOW))
    assert world.plan() == []


def test_a_window_forgets_old_attempts() -> None:
    world = world_with(delay=1.0, max_attempts=1, window=60.0)
    end(world)
    world.pass_time(1.0)
    world.obey()
    end(world, after=120.0)
    assert world.task().status.state is PENDING, "the first restart is out of the window"
    world.pass_time(1.0)
    world.obey()
    end(world, after=5.0)
    assert world.task().status.state is FAILED
    world.pass_time(3600.0)
    assert world.task().status.state is FAILED, "what was decided does not change with time"


def test_changed_policy_takes_effect_without_restarting_tasks() -> None:
    world = world_with(condition=ANY)
    web = world.view.services["web-id"]
    spec = replace(web.spec.task, restart=RestartPolicy(NONE))
    world.put(replace(web, spec=replace(web.spec, task=spec), spec_version=2))
    world.settle()
    assert len(world.tasks(RUNNING)) == 1
    end(world)
    assert [item.status.state for item in world.tasks()] == [FAILED]


def test_a_new_leader_decides_the_same() -> None:
    world = world_with(delay=5.0)
    end(world)
    heir = World(*world.view.objects())
    heir.now = world.now + 1.0
    assert heir.plan() == []
    assert heir.requeue_at == world.now + 5.0


def test_a_restart_is_held_back_while_its_node_goes_down() -> None:
    world = world_with(delay=5.0)
    end(world)
    world.put(node("a", state=NodeState.DOWN))
    world.pass_time(5.0)
    assert world.task().status.message == "no suitable node (1 node: down)"
    world.put(node("b"))
    world.settle()
    assert world.slots_on() == {"b": [1]}


def test_history_keeps_the_last_five_of_a_slot() -> None:
    world = world_with(delay=0.0)
    for _ in range(9):
        end(world)
        world.pass_time(300.0)
        world.obey()
    tasks = world.tasks()
    assert [item.status.state for item in tasks] == [FAILED] * 4 + [RUNNING]
    assert tasks[-1].attempt == 9


def test_a_clock_set_back_changes_no_node() -> None:
    world = world_with(delay=0.0)
    failed = world.task()
    world.report(failed, FAILED)
    world.now -= 100.0
    world.settle()
    assert world.task().id != failed.id
    assert world.task().created_at > failed.created_at
    assert world.slots_on() == {"a": [1]}


def test_a_new_spec_has_all_its_attempts() -> None:
    world = world_with(delay=1.0, max_attempts=1)
    for expected in (PENDING, FAILED):
        end(world)
        assert world.task().status.state is expected
        world.pass_time(1.0)
        world.obey()
    web = world.view.services["web-id"]
    spec = replace(web.spec.task, force=1)
    world.put(replace(web, spec=replace(web.spec, task=spec), spec_version=2))
    world.obey()
    end(world)
    assert world.task().status.state is PENDING


def test_the_unhealthy_are_a_row_however_long_their_probes_took() -> None:
    world = world_with(delay=2.0)
    delays = []
    for _ in range(3):
        world.now += 100.0
        world.report(world.task(), FAILED, health=Health.UNHEALTHY)
        world.settle()
        delays.append(world.task().not_before - world.now)
        world.pass_time(delays[-1])
        world.obey()
    assert delays == [2.0, 4.0, 8.0]
