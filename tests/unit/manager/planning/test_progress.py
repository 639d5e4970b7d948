"""What listings and waiting commands are told."""

from __future__ import annotations

from dataclasses import replace

from builders import MIB, NONE, ON_FAILURE, World, node, service, task, task_spec

from orchestrator.manager.planning.accounting import NodeUsage, node_usage, running_tasks
from orchestrator.manager.planning.progress import Progress, progress
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.specs import Resources, RestartPolicy
from orchestrator.model.states import TaskState


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


def test_work_that_failed_does_not() -> None:
    world = World(node("a"), service(spec=task_spec(restart=RestartPolicy(NONE))))
    world.obey()
    world.report(world.task(), TaskState.FAILED)
    world.settle()
    assert progress(world.view, "web-id") == Progress(1, 0, False, given_up=1)


def test_what_failed_is_given_up_once_nothing_else_is_left_to_do() -> None:
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


def test_of_a_service_that_goes() -> None:
    world = World(node("a"), service())
    world.obey()
    world.put(replace(service(), removed=True))
    world.settle()
    assert progress(world.view, "web-id") == Progress(0, 0, False)
    world.obey()
    assert progress(world.view, "web-id") == Progress(0, 0, True)


def test_none_wanted_is_done() -> None:
    assert progress(ClusterView.of([service(replicas=0)]), "web-id") == Progress(0, 0, True)


def test_usage_counts_what_has_not_ended() -> None:
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
