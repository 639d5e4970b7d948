# SPDX-License-Identifier: Apache-2.0
"""Progress of services, for listings and waiting commands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from builders import ANY, MIB, NONE, NOW, ON_FAILURE, World, node, service, task, task_spec

from orchestrator.manager.planning.reconcile.convergence import (
    Progress,
    Watch,
    progress,
    running_tasks,
)
from orchestrator.manager.planning.reconcile.spec_history import with_spec
from orchestrator.manager.planning.scheduling.capacity import NodeUsage, node_usage
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.services import UpdateState
from orchestrator.model.specs import (
    FailureAction,
    Resources,
    RestartCondition,
    RestartPolicy,
    UpdatePolicy,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task

S = TaskState


def test_of_a_service_that_starts_and_scales_down() -> None:
    world = World(node("a"), service(replicas=2))
    assert progress(world.view, "web-id") == Progress(2, 0, False)
    world.settle()
    assert progress(world.view, "web-id") == Progress(2, 0, False)
    world.obey()
    assert progress(world.view, "web-id") == Progress(2, 2, True)
    world.put(service(replicas=1))
    assert progress(world.view, "web-id") == Progress(1, 2, False)
    world.settle()
    assert progress(world.view, "web-id") == Progress(1, 1, False), "one is still stopping"
    world.obey()
    assert progress(world.view, "web-id") == Progress(1, 1, True)


def test_work_that_is_done_counts() -> None:
    for condition in (NONE, ON_FAILURE):
        world = World(node("a"), service(spec=task_spec(restart=RestartPolicy(condition))))
        world.obey()
        world.report(world.task(), TaskState.COMPLETE)
        world.settle()
        assert progress(world.view, "web-id") == Progress(1, 0, True)


def test_failed_work_does_not_count() -> None:
    world = World(node("a"), service(spec=task_spec(restart=RestartPolicy(NONE))))
    world.obey()
    world.report(world.task(), TaskState.FAILED)
    world.settle()
    assert progress(world.view, "web-id") == Progress(1, 0, False, given_up=1)


def test_failed_tasks_are_given_up_once_nothing_else_remains() -> None:
    once = RestartPolicy(ON_FAILURE, delay=1, max_attempts=1)
    world = World(node("a"), service(replicas=2, spec=task_spec(restart=once)))
    world.settle()
    world.report(world.task(1), TaskState.FAILED)
    world.settle()
    assert progress(world.view, "web-id") == Progress(2, 0, False), "it is tried again"
    world.pass_time(1)
    world.settle()
    world.report(world.task(1), TaskState.FAILED)
    world.settle()
    assert progress(world.view, "web-id") == Progress(2, 0, False), "the other one is on its way"
    world.obey()
    assert progress(world.view, "web-id") == Progress(2, 1, False, given_up=1)
    world.put(replace(world.view.services["web-id"], spec=service(replicas=2).spec))
    world.settle()
    assert progress(world.view, "web-id") == Progress(2, 1, False), "another spec, another try"


def test_progress_of_a_removed_service() -> None:
    world = World(node("a"), service())
    world.obey()
    world.put(replace(service(), removed=True))
    world.settle()
    assert progress(world.view, "web-id") == Progress(0, 0, False)
    world.obey()
    assert progress(world.view, "web-id") == Progress(0, 0, True)


def test_none_wanted_is_done() -> None:
    assert progress(ClusterView.of([service(replicas=0)]), "web-id") == Progress(0, 0, True)


WEB = service(spec=task_spec(restart=RestartPolicy(delay=5.0)))
OTHER = task_spec(image="web:0")
POLICY = UpdatePolicy()


def up(seconds: float, **status: Any) -> Task:
    """A task that has been up for so long by the manager's clock; its node's is an hour ahead."""
    status = {"started_at": NOW + 3600.0 - seconds, **status}
    return attempt(S.RUNNING, "up", running_since=NOW - seconds, **status)


def attempt(state: TaskState, id: str, revision: int = 2, **fields: Any) -> Task:
    own = {k: fields.pop(k) for k in ("running_since", "desired_state", "spec") if k in fields}
    item = task(id, state, node_id="a", of=WEB, revision=revision, **own)
    return replace(item, status=replace(item.status, **fields))


def ended(seconds: float, state: TaskState = S.FAILED, id: str = "t1", **fields: Any) -> Task:
    """A task that ended after a number of seconds."""
    return attempt(state, id, **{"started_at": 10.0, "finished_at": 10.0 + seconds, **fields})


class Case(NamedTuple):
    """The tasks of a service, and the progress reported to a waiting command."""

    name: str
    tasks: list[Task]
    converged: bool = False
    stable_in: float = 0.0
    failing: bool = False
    policy: UpdatePolicy = POLICY
    restart: RestartCondition = ANY
    monitor: float | None = None


CASES = [
    Case("just started", [up(0)], stable_in=5),
    Case("up for a while", [up(3)], stable_in=2),
    Case("up for the period", [up(5)], converged=True),
    Case("up for long", [up(1e6)], converged=True),
    Case("a longer period", [up(5)], stable_in=25, policy=UpdatePolicy(monitor=30)),
    Case("no period", [up(0)], converged=True, policy=UpdatePolicy(monitor=0)),
    Case("no period for who waits", [up(0)], converged=True, monitor=0),
    Case("a longer one for who waits", [up(5)], stable_in=5, monitor=10),
    Case("the clock was set back", [up(-86400)], converged=True),
    Case("healthy", [up(0, health=Health.HEALTHY)], converged=True),
    Case("not healthy yet", [up(60, health=Health.STARTING)]),
    Case("not healthy any more", [up(60, health=Health.UNHEALTHY)]),
    Case("crashed at once", [ended(0.01)], failing=True),
    Case("crashed within the period", [ended(4.9)], failing=True),
    Case("failed after it", [ended(5.1)]),
    Case("crashed, with its replacement", [ended(1), up(2)], stable_in=3, failing=True),
    Case("crashed before the change", [ended(1, revision=1), up(2)], stable_in=3),
    Case("crashed long ago", [ended(1, revision=1), up(60)], converged=True),
    Case("crashed with another spec", [ended(1, spec=OTHER), up(2)], stable_in=3),
    Case("unhealthy after long", [ended(90, health=Health.UNHEALTHY)], failing=True),
    Case("refused by its node", [attempt(S.REJECTED, "t1")], failing=True),
    Case("lost with its node", [ended(1, lost=True), up(2)], stable_in=3),
    Case("stopped by the manager", [ended(1, desired_state=S.SHUTDOWN), up(2)], stable_in=3),
    Case("crashes do not matter", [ended(1)], monitor=0),
    Case("crashes are tried again", [ended(1), up(60)], True, policy=UpdatePolicy(
        failure_action=FailureAction.CONTINUE)),
    Case("some may crash", [ended(1), up(60)], True, policy=UpdatePolicy(max_failure_ratio=1.0)),
    Case("exits at once, over and over", [ended(1, S.COMPLETE)], failing=True),
    Case("is done", [ended(1, S.COMPLETE)], converged=True, restart=ON_FAILURE),
    Case("is done once", [ended(1, S.COMPLETE)], converged=True, restart=NONE),
    Case("fails once", [ended(1)], failing=True, restart=NONE),
    Case("runs once", [up(1)], stable_in=4, restart=NONE),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_monitor_period_applies(case: Case) -> None:
    restart = RestartPolicy(case.restart, delay=5.0)
    spec = replace(WEB.spec, update=case.policy, task=replace(WEB.spec.task, restart=restart))
    items = [replace(item, created_at=float(age)) for age, item in enumerate(case.tasks)]
    view = ClusterView.of([node("a"), replace(WEB, spec=spec), *items])
    state = progress(view, "web-id", Watch(NOW, since=1, monitor=case.monitor))
    assert (state.converged, state.stable_in, state.failing) == (
        case.converged,
        case.stable_in,
        case.failing,
    )
    assert state.crashed == (("t1",) if case.failing else state.crashed)


@pytest.mark.parametrize(("ratio", "failing"), [(0.0, True), (0.4, True), (0.5, False)])
def test_the_part_of_the_slots_that_may_crash(ratio: float, failing: bool) -> None:
    policy = UpdatePolicy(max_failure_ratio=ratio)
    world = World(node("a"), service(replicas=4, update=policy))
    world.settle()
    for slot in (1, 3):
        world.report(world.task(slot), TaskState.FAILED)
    world.settle()
    state = progress(world.view, "web-id", Watch(world.now, since=-1))
    assert (len(state.crashed), state.failing) == (2, failing)


def test_missing_task_delays_convergence_of_the_others() -> None:
    world = World(node("a"), service(replicas=2))
    world.settle()
    world.report(world.task(1), TaskState.RUNNING)
    world.settle()
    assert progress(world.view, "web-id", Watch(world.now)).stable_in == 0
    world.now += 60.0
    world.report(world.task(2), TaskState.RUNNING)
    world.settle()
    assert progress(world.view, "web-id", Watch(world.now)).stable_in == 5.0
    world.now += 5.0
    assert progress(world.view, "web-id", Watch(world.now)).converged


def test_tasks_of_before_the_change_need_no_monitor_period() -> None:
    old, new = up(1), up(3)
    new = replace(new, id="new", slot=2, revision=5)
    web = replace(WEB, spec=replace(WEB.spec, replicas=2))
    view = ClusterView.of([node("a"), web, old, new])
    for written, stable_in in [(0, 4.0), (1, 4.0), (2, 2.0), (4, 2.0), (5, 0.0)]:
        state = progress(view, "web-id", Watch(NOW, since=written, written=written))
        assert (state.stable_in, state.converged) == (stable_in, not stable_in)


def test_scaling_waits_for_new_tasks_only() -> None:
    world = World(node("a"), service(replicas=2))
    world.stay_up()
    assert progress(world.view, "web-id", Watch(world.now)).converged
    world.put(service(replicas=1))
    world.obey()
    assert progress(world.view, "web-id", Watch(world.now)).converged
    world.put(service(replicas=3))
    world.obey()
    state = progress(world.view, "web-id", Watch(world.now))
    assert (state.converged, state.stable_in) == (False, 5.0)


@pytest.mark.parametrize("action", FailureAction)
def test_waiting_for_an_update_uses_its_monitor_period_by_default(
    action: FailureAction,
) -> None:
    world = World(node("a"), service(update=UpdatePolicy(failure_action=action)))
    world.stay_up()
    now = world.view.services["web-id"]
    world.put(with_spec(now, replace(now.spec, task=task_spec(image="web:2")), "", world.now))
    world.obey()
    assert not progress(world.view, "web-id", Watch(world.now)).converged
    undone = action is FailureAction.ROLLBACK
    assert progress(world.view, "web-id", Watch(world.now, monitor=0.0)).converged is not undone
    world.pass_time(5.0)
    assert world.view.services["web-id"].update.state is UpdateState.COMPLETED
    assert progress(world.view, "web-id", Watch(world.now)).converged


def test_a_crash_in_an_update_is_left_to_its_failure_action() -> None:
    world = World(node("a"), service())
    world.stay_up()
    now = world.view.services["web-id"]
    world.put(with_spec(now, replace(now.spec, task=task_spec(image="web:2")), "", world.now))
    world.obey()
    world.report(world.task(), TaskState.FAILED)
    state = progress(world.view, "web-id", Watch(world.now, since=-1))
    assert (len(state.crashed), state.failing) == (1, False)
    world.settle()
    assert world.view.services["web-id"].update.state is UpdateState.PAUSED


def test_usage_counts_tasks_that_have_not_ended() -> None:
    web = service(spec=task_spec(shares=512, memory=32 * MIB))
    plain = service("plain")
    view = ClusterView.of(
        [
            node("a"),
            task("t1", node_id="a", of=web),
            task("t2", node_id="a", of=web, desired_state=TaskState.SHUTDOWN),
            task("t3", TaskState.FAILED, node_id="a", of=web),
            task("t4", TaskState.ASSIGNED, node_id="a", of=plain),
        ]
    )
    usage = node_usage(view, "a")
    assert usage == NodeUsage(Resources(512 * 2 + 128, (32 * 2 + 64) * MIB), tasks=3)
    assert running_tasks(view, "web-id") == 1
    assert running_tasks(view, "plain-id") == 0
