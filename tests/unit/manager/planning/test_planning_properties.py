# SPDX-License-Identifier: Apache-2.0
"""Properties of any plan, in any state of the cluster.

States are not reached by planning but made up: nodes of any state and size, services of any
kind, tasks in any state that the table allows, more of them than fit or fewer. (States that are
reached by planning and by faults are the simulated cluster's part.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from builders import MIB, NOW, World, node, service, task, task_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.node_load import occupies, published
from orchestrator.manager.planning.pipeline import EVERYTHING, plan
from orchestrator.manager.planning.reconcile.convergence import progress
from orchestrator.manager.planning.reconcile.updates import starts_first
from orchestrator.manager.planning.scheduling.capacity import reserved
from orchestrator.manager.planning.scheduling.scheduler import Placement, schedule
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.objects import Object
from orchestrator.model.services import Service
from orchestrator.model.specs import (
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    UpdateOrder,
    UpdatePolicy,
)
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task

REACHABLE = [state for state in TaskState if state not in (TaskState.NEW, TaskState.REMOVE)]
DESIRED = [TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE]

nodes = st.builds(
    node,
    st.sampled_from(["n1", "n2", "n3", "n4"]),
    shares=st.sampled_from([256, 1024]),
    memory=st.sampled_from([256 * MIB, 1024 * MIB]),
    state=st.sampled_from(NodeState),
    availability=st.sampled_from(Availability),
    labels=st.sampled_from([{}, {"zone": "a"}]),
)
specs = st.builds(
    task_spec,
    shares=st.sampled_from([64, 256]),
    memory=st.sampled_from([32 * MIB, 128 * MIB]),
    ports=st.sampled_from([(), (8080,)]),
    restart=st.builds(
        RestartPolicy,
        st.sampled_from(RestartCondition),
        delay=st.sampled_from([0.0, 1.0]),
        max_attempts=st.sampled_from([0, 0, 1]),
    ),
    force=st.integers(0, 1),
)
services = st.builds(
    service,
    st.sampled_from(["web", "db"]),
    st.integers(0, 6),
    spec=specs,
    update=st.builds(
        UpdatePolicy, st.integers(0, 2), st.sampled_from([0.0, 1.0]), st.sampled_from(UpdateOrder)
    ),
    constraints=st.sampled_from([(), (), ("node.labels.zone==a",)]),
    mode=st.sampled_from([ServiceMode.REPLICATED, ServiceMode.REPLICATED, ServiceMode.GLOBAL]),
    removed=st.sampled_from([False, False, False, True]),
)


@st.composite
def clusters(draw: st.DrawFn) -> ClusterView:
    """A cluster at some moment: at most one runnable task a slot, no node over capacity."""
    made = draw(st.lists(nodes, max_size=4, unique_by=lambda item: item.id))
    declared = draw(st.lists(services, min_size=1, max_size=2, unique_by=lambda item: item.id))
    objects: list[Object] = [*made, *declared]
    for of in declared:
        for slot in range(1, draw(st.integers(0, 6)) + 1):
            objects += _history(draw, of, slot, made)
    return _within_capacity(ClusterView.of(objects))


def _history(draw: st.DrawFn, of: Service, slot: int, made: list[Node]) -> list[Task]:
    """The tasks of a slot: some that have ended, and one in any state."""
    tasks = []
    states = draw(st.lists(st.sampled_from(REACHABLE), min_size=1, max_size=4))
    for age, state in enumerate(states):
        if age < len(states) - 1 and not is_terminal(state):
            state = TaskState.FAILED
        waits = state is TaskState.PENDING
        home = draw(st.sampled_from([*(item.id for item in made), "gone"]))
        pinned = of.spec.mode is ServiceMode.GLOBAL
        tasks.append(
            task(
                f"{of.spec.name}-{slot}-{age}",
                state,
                node_id=home if pinned or not waits else "",
                slot=slot,
                of=of,
                spec=replace(of.spec.task, force=draw(st.integers(0, 1))),
                message="some reason" if waits else "",
                desired_state=TaskState.RUNNING if waits else draw(st.sampled_from(DESIRED)),
                created_at=float(age),
                attempt=draw(st.integers(0, 2)),
                not_before=draw(st.sampled_from([0.0, NOW - 1, NOW + 1])) if waits else 0.0,
            )
        )
    return tasks


def _within_capacity(view: ClusterView) -> ClusterView:
    """The view without the tasks that could never have been placed where they are."""
    kept: list[Task] = []
    for item in sorted(view.tasks.values(), key=lambda item: item.id):
        home = view.nodes.get(item.node_id)
        if home is None or not occupies(item) or not _over([*kept, item], home):
            kept.append(item)
    return ClusterView.of([*view.nodes.values(), *view.services.values(), *kept])


def _over(tasks: list[Task], home: Node) -> bool:
    mine = [item for item in tasks if item.node_id == home.id and occupies(item)]
    taken, size = reserved(mine), home.description.resources
    ports = Counter(port for item in mine for port in published(item))
    return (
        taken.shares > size.shares
        or taken.memory > size.memory
        or any(count > 1 for count in ports.values())
    )


def planned(view: ClusterView) -> ClusterView:
    """The cluster after one pass over everything."""
    world = World(*view.objects())
    world.plan()
    return world.view


@given(clusters())
@settings(max_examples=200)
def test_one_pass_keeps_every_promise(view: ClusterView) -> None:
    after = planned(view)  # a plan that moves a task illegally cannot be made at all
    for home in after.nodes.values():
        assert not _over(list(after.tasks_of_node(home.id).values()), home)
    live = Counter(
        (item.service_id, item.slot)
        for item in after.tasks.values()
        if not is_terminal(item.status.state)
    )
    for (service_id, _), count in live.items():
        assert count <= 1 + starts_first(after.services[service_id])
    for item in after.pending.values():
        assert item.status.message
    left = [item for item in after.pending.values() if not after.services[item.service_id].removed]
    assert not any(isinstance(item, Placement) for item in schedule(after, left, NOW))


@given(clusters())
@settings(max_examples=100)
def test_the_same_input_gives_the_same_plan(view: ClusterView) -> None:
    shuffled = ClusterView.of(reversed(list(view.objects())))
    first, second = (
        plan(given_view, EVERYTHING, NOW, World().new_id) for given_view in (view, shuffled)
    )
    assert repr(first) == repr(second)


@given(clusters())
@settings(max_examples=100)
def test_second_pass_over_a_fresh_plan_changes_no_task_twice(view: ClusterView) -> None:
    world = World(*view.objects())
    world.settle()
    world.dirty = EVERYTHING
    assert world.plan() == []


@given(clusters())
@settings(max_examples=100)
def test_every_cluster_comes_to_rest_once_there_is_room(view: ClusterView) -> None:
    world = World(*view.objects())
    for home in view.nodes.values():
        world.put(node(home.id, shares=1 << 20, memory=1 << 40, labels={"zone": "a"}))
    for number in range(13):  # one each for the most tasks with the same port
        world.put(node(f"more{number}", shares=1 << 20, memory=1 << 40, labels={"zone": "a"}))
    for declared in list(view.services.values()):  # a global one would need the port everywhere
        if declared.spec.mode is ServiceMode.GLOBAL:
            spec = replace(declared.spec, task=replace(declared.spec.task, ports=()))
            world.put(replace(declared, spec=spec))
    world.obey()
    while world.requeue_at is not None:
        world.pass_time(max(world.requeue_at - world.now, 0.0))
        world.obey()
    for id, declared in world.view.services.items():
        assert not declared.removed
        at_rest = progress(world.view, id)
        assert at_rest.converged or _given_up(world, declared), (at_rest, world.tasks())


def _given_up(world: World, declared: Service) -> bool:
    """Whether the policy forbids to run again what has failed or was lost."""
    newest: dict[int, Task] = {}
    for item in world.tasks():
        if item.service_id == declared.id:
            newest[item.slot] = item
    return any(is_terminal(item.status.state) for item in newest.values())
