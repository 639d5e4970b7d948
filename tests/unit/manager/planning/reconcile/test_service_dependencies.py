# SPDX-License-Identifier: Apache-2.0
"""Dependencies between services: order of starts and stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import ANY, NONE, World, node, service, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.model.dependencies import Dependency, DependencyCondition
from orchestrator.model.services import Service
from orchestrator.model.specs import RestartCondition, RestartPolicy, ServiceMode
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health

STARTED, HEALTHY, COMPLETED = DependencyCondition


def needing(of: Service, *needs: Dependency) -> Service:
    return replace(of, spec=replace(of.spec, depends_on=needs))


def web(condition: DependencyCondition = STARTED, replicas: int = 1) -> Service:
    return needing(service("web", replicas), Dependency("db", condition))


def named(world: World, name: str, slot: int = 1) -> str:
    [*_, task] = [t for t in world.tasks() if t.service_name == name and t.slot == slot]
    return f"{task.status.state.name.lower()}: {task.status.message}".removesuffix(": ")


def report(world: World, name: str, state: TaskState, **fields: object) -> None:
    for task in world.tasks():
        if task.service_name == name and task.status.state < TaskState.COMPLETE:
            world.report(task, state, **fields)
    world.settle()


def test_dependent_starts_once_a_task_of_the_dependency_runs() -> None:
    world = World(node(), service("db"), web(replicas=2))
    world.settle()
    assert named(world, "db") == "assigned"
    for slot in (1, 2):
        assert named(world, "web", slot) == "pending: waits for service db: no task is running yet"
    report(world, "db", TaskState.STARTING)
    assert named(world, "web").startswith("pending")
    report(world, "db", TaskState.RUNNING)
    assert named(world, "web", 1) == named(world, "web", 2) == "assigned"


def test_dependent_starts_once_a_task_of_the_dependency_is_healthy() -> None:
    world = World(node(), service("db"), web(HEALTHY))
    world.settle()
    report(world, "db", TaskState.RUNNING, health=Health.STARTING)
    assert named(world, "web") == "pending: waits for service db: no task is healthy yet"
    report(world, "db", TaskState.RUNNING, health=Health.HEALTHY)
    assert named(world, "web") == "assigned"


def test_dependent_starts_once_the_dependency_has_completed() -> None:
    once = task_spec(restart=RestartPolicy(RestartCondition.ON_FAILURE, delay=1.0))
    world = World(node(), service("db", 2, spec=once), web(COMPLETED))
    world.settle()
    report(world, "db", TaskState.RUNNING)
    assert named(world, "web") == "pending: waits for service db: it has not completed yet"
    world.report(world.tasks()[0], TaskState.COMPLETE)
    world.settle()
    assert named(world, "web").startswith("pending"), "one of two is not all"
    world.report(world.tasks()[1], TaskState.COMPLETE)
    world.settle()
    assert named(world, "web") == "assigned"


def test_a_final_failure_is_the_reason_of_tasks_that_wait_for_completion() -> None:
    once = task_spec(restart=RestartPolicy(NONE))
    world = World(node(), service("db", spec=once), web(COMPLETED))
    world.settle()
    report(world, "db", TaskState.FAILED, exit_code=3)
    assert named(world, "web") == (
        "pending: waits for service db: it has not completed; db.1 failed: exit status 3"
    )


def test_completed_dependency_counts_as_started() -> None:
    world = World(node(), service("db", spec=task_spec(restart=RestartPolicy(NONE))), web())
    world.settle()
    report(world, "db", TaskState.COMPLETE)
    assert named(world, "web") == "assigned"


@pytest.mark.parametrize("optional", [False, True])
def test_missing_dependency_is_waited_for_unless_optional(optional: bool) -> None:
    world = World(node(), needing(service("web"), Dependency("db", STARTED, optional)))
    world.settle()
    waits = "pending: waits for service db: it does not exist"
    assert named(world, "web") == ("assigned" if optional else waits)


def test_replacement_waits_too_and_running_tasks_are_kept() -> None:
    world = World(node(), service("db", spec=task_spec(restart=RestartPolicy(ANY, 5.0))), web())
    world.obey()
    report(world, "db", TaskState.FAILED)
    assert named(world, "web") == "running"
    report(world, "web", TaskState.FAILED)
    world.now += 6
    world.dirty |= world.dirty.__class__(timer=True)
    world.settle()
    assert named(world, "web").startswith("pending: waits for service db")
    world.obey()
    assert named(world, "web") == "running"


def test_tasks_of_a_global_service_wait_for_dependencies_too() -> None:
    each = needing(service("each", mode=ServiceMode.GLOBAL), Dependency("db"))
    world = World(node("a"), node("b"), service("db"), each)
    world.settle()
    assert [named(world, "each", slot)[:7] for slot in (1, 2)] == ["pending", "pending"]
    world.obey()
    assert [named(world, "each", slot) for slot in (1, 2)] == ["running", "running"]


def removed(world: World, name: str) -> None:
    found = world.view.services[f"{name}-id"]
    world.put(replace(found, removed=True))
    world.settle()


def test_dependencies_stop_after_their_dependents() -> None:
    world = World(node(), service("db"), web())
    world.obey()
    removed(world, "web")
    removed(world, "db")
    wanted = {t.service_name: t.desired_state for t in world.tasks()}
    assert wanted == {"db": TaskState.RUNNING, "web": TaskState.REMOVE}
    report(world, "web", TaskState.SHUTDOWN)
    assert {t.desired_state for t in world.tasks() if t.service_name == "db"} == {TaskState.REMOVE}
    report(world, "db", TaskState.SHUTDOWN)
    world.settle()
    assert not world.view.services
    assert not world.view.tasks


def test_a_pending_task_blocks_no_other() -> None:
    world = World(node(shares=128), service("db"), web())
    world.obey()
    assert named(world, "web").startswith("pending")
    removed(world, "db")
    removed(world, "web")
    world.obey()
    assert not world.view.services


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=6),
    st.lists(st.sampled_from("abcd"), unique=True),
)
@settings(max_examples=100)
def test_all_start_in_order_and_stop_in_reverse(
    pairs: list[tuple[str, str]], gone: list[str]
) -> None:
    needs = {
        name: {other for one, other in pairs if one == name and other < name} for name in "abcd"
    }
    world = World(node(shares=1 << 16), *(
        needing(service(name), *map(Dependency, sorted(needs[name]))) for name in "abcd"
    ))  # fmt: skip
    world.obey()
    began = {t.service_name: t.status.started_at for t in world.tasks()}
    assert set(began) == set("abcd")
    for name in gone:
        world.put(replace(world.view.services[f"{name}-id"], removed=True))
    world.settle()
    stopping = {t.service_name for t in world.tasks() if t.desired_state is TaskState.REMOVE}
    for name in gone:
        held = any(name in needs[other] for other in gone)
        assert (name in stopping) is not held
    world.obey()
    assert {t.service_name for t in world.tasks()} == set("abcd") - set(gone)
