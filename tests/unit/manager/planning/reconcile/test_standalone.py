# SPDX-License-Identifier: Apache-2.0
"""Standalone containers: placed, restarted by order or policy, never moved, removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import ANY, MIB, NONE, NOW, ON_FAILURE, World, node, task_spec

from orchestrator.manager.errors import RequestError
from orchestrator.manager.operations.workloads import container_lifecycle
from orchestrator.manager.planning.plan import Change, IllegalChange, check_change
from orchestrator.manager.planning.reconcile.standalone import backoff
from orchestrator.manager.planning.reports.claims import accept_reports
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.specs import RestartCondition, RestartPolicy
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus


def container(restart: RestartPolicy | None = None, *, memory: int = 0, **fields: Any) -> Task:
    return Task(
        id="c1",
        created_at=NOW,
        container_name="box",
        spec=task_spec(memory=memory, restart=restart or RestartPolicy(NONE)),
        status=TaskStatus(TaskState.PENDING, at=NOW, run=1),
        run=1,
        **fields,
    )


class Box(World):
    """A cluster with one container."""

    def __init__(self, task: Task, *nodes: Any) -> None:
        super().__init__(*(nodes or (node("n1"), node("n2"))), task)
        self.settle()

    @property
    def box(self) -> Task:
        return self.view.tasks["c1"]

    def order(self, after: Task) -> None:
        self.write(Change(self.box, after))
        self.settle()

    def says(self, state: TaskState, **fields: Any) -> None:
        """Its agent reports."""
        status = replace(self.box.status, state=state, at=self.now, **fields)
        if state is TaskState.RUNNING:
            status = replace(status, started_at=self.now)
        changes = accept_reports(self.view, self.box.node_id, {"c1": status}, self.now)
        assert changes, f"{state.name} was not taken"
        self.write(*changes)
        self.settle()

    def run(self) -> None:
        self.says(TaskState.RUNNING)


def test_standalone_container_is_placed_by_its_constraints() -> None:
    world = Box(container(constraints=("node.id==n2",)))
    assert (world.box.status.state, world.box.node_id) == (TaskState.ASSIGNED, "n2")
    assert world.box.status.run == 1


def test_container_that_fits_nowhere_has_a_reason() -> None:
    world = Box(container(memory=64 << 30))
    assert world.box.status.state is TaskState.PENDING
    assert "insufficient memory" in world.box.status.message


def test_restarted_container_is_the_next_run_on_its_node() -> None:
    world = Box(container())
    home = world.box.node_id
    world.run()
    world.order(container_lifecycle.stop(world.box, "", None))
    world.says(TaskState.SHUTDOWN, exit_code=143)
    assert world.box.status.state is TaskState.SHUTDOWN
    world.order(container_lifecycle.start(world.box))
    box = world.box
    assert (box.status.state, box.status.run, box.node_id) == (TaskState.ASSIGNED, 2, home)
    assert box.desired_state is TaskState.RUNNING


def test_a_restart_is_one_order_and_the_end_of_the_run_begins_the_next() -> None:
    world = Box(container())
    world.run()
    world.order(container_lifecycle.restart(world.box, "SIGINT", 3.0))
    assert (world.box.run, world.box.status.run) == (2, 1)
    assert (world.box.stop_signal, world.box.stop_grace) == ("SIGINT", 3.0)
    world.says(TaskState.SHUTDOWN)
    assert (world.box.status.state, world.box.status.run) == (TaskState.ASSIGNED, 2)
    assert (world.box.stop_signal, world.box.stop_grace) == ("", 0.0)


def test_a_start_waits_for_room_on_its_own_node() -> None:
    small = node("n1", memory=128 * MIB)
    world = Box(container(memory=100 * MIB), small)
    world.run()
    world.says(TaskState.COMPLETE)
    world.write(
        Change(
            None,
            Task(
                id="c2",
                container_name="other",
                node_id="n1",
                spec=task_spec(memory=100 * MIB),
                status=TaskStatus(TaskState.RUNNING, run=1),
                run=1,
            ),
        )
    )
    world.order(container_lifecycle.start(world.box))
    assert world.box.status.state is TaskState.PENDING
    assert "insufficient memory" in world.box.status.message
    other = world.view.tasks["c2"]
    done = replace(other, status=replace(other.status, state=TaskState.COMPLETE))
    world.write(Change(other, done))
    world.settle()
    assert (world.box.status.state, world.box.status.run) == (TaskState.ASSIGNED, 2)


def test_a_drained_node_lets_its_own_containers_run_again() -> None:
    world = Box(container(), node("n1"))
    world.run()
    world.says(TaskState.COMPLETE)
    world.put(node("n1", availability=Availability.DRAIN))
    world.order(container_lifecycle.start(world.box))
    assert world.box.status.state is TaskState.ASSIGNED


@pytest.mark.parametrize(
    ("policy", "end", "again"),
    [
        (RestartPolicy(NONE), TaskState.FAILED, False),
        (RestartPolicy(ANY), TaskState.COMPLETE, True),
        (RestartPolicy(RestartCondition.UNLESS_STOPPED), TaskState.FAILED, True),
        (RestartPolicy(ON_FAILURE), TaskState.COMPLETE, False),
        (RestartPolicy(ON_FAILURE), TaskState.FAILED, True),
        (RestartPolicy(ANY), TaskState.REJECTED, False),
    ],
)
def test_restart_policies(policy: RestartPolicy, end: TaskState, again: bool) -> None:
    world = Box(container(policy))
    if end is not TaskState.REJECTED:
        world.run()
    world.says(end, exit_code=0 if end is TaskState.COMPLETE else 3)
    assert (world.box.run == 2) is again
    if again:
        assert world.box.status.state is TaskState.PENDING
        assert world.box.not_before == NOW + backoff(1)
        assert world.box.status.exit_code == (0 if end is TaskState.COMPLETE else 3)
        world.pass_time(1.0)
        assert world.box.status.state is TaskState.ASSIGNED


def test_a_number_of_restarts_and_their_delays() -> None:
    world = Box(container(RestartPolicy(ON_FAILURE, max_attempts=2)))
    delays = []
    for _ in range(2):
        world.run()
        world.says(TaskState.FAILED, exit_code=1)
        delays.append(world.box.not_before - world.now)
        world.pass_time(5.0)
    assert delays == pytest.approx([0.1, 0.2])
    world.run()
    world.says(TaskState.FAILED, exit_code=1)
    assert (world.box.status.state, world.box.restarts) == (TaskState.FAILED, 2)
    world.order(container_lifecycle.start(world.box))
    assert (world.box.status.state, world.box.restarts) == (TaskState.ASSIGNED, 0)


def test_a_long_run_ends_the_row() -> None:
    world = Box(container(RestartPolicy(ANY), attempt=5))
    world.run()
    started = world.now
    world.pass_time(20.0)
    world.says(TaskState.FAILED, started_at=started, finished_at=world.now)
    assert world.box.attempt == 1


def test_a_program_that_is_not_there_is_not_tried_again() -> None:
    world = Box(container(RestartPolicy(ANY)))
    world.says(TaskState.FAILED, exit_code=127)
    assert (world.box.status.state, world.box.run) == (TaskState.FAILED, 1)


def test_stopped_while_it_waits_to_restart() -> None:
    world = Box(container(RestartPolicy(ANY)))
    world.run()
    world.says(TaskState.FAILED, exit_code=9)
    world.order(container_lifecycle.stop(world.box, "", None))
    assert (world.box.status.state, world.box.status.exit_code) == (TaskState.SHUTDOWN, 9)
    world.pass_time(60.0)
    assert world.box.status.state is TaskState.SHUTDOWN


def test_exit_is_recorded_before_auto_removal() -> None:
    world = Box(container(auto_remove=True))
    world.run()
    world.write(
        *accept_reports(
            world.view,
            world.box.node_id,
            {"c1": replace(world.box.status, state=TaskState.FAILED)},
            world.now,
        )
    )
    world.plan()
    assert (world.box.status.state, world.box.desired_state) == (
        TaskState.FAILED,
        TaskState.REMOVE,
    )
    world.settle()
    assert "c1" not in world.view.tasks


def test_silent_node_changes_nothing_and_a_removed_node_removes_its_container() -> None:
    world = Box(container(RestartPolicy(ANY)), node("n1"))
    world.run()
    world.put(node("n1", state=NodeState.DOWN))
    world.settle()
    assert (world.box.status.state, world.box.node_id) == (TaskState.RUNNING, "n1")
    world.drop(world.view.nodes["n1"])
    world.settle()
    assert "c1" not in world.view.tasks


def test_removal() -> None:
    world = Box(container())
    world.run()
    with pytest.raises(RequestError, match="running"):
        container_lifecycle.remove(world.view, world.box, False)
    world.order(container_lifecycle.remove(world.view, world.box, True))
    assert (world.box.desired_state, world.box.stop_signal) == (TaskState.REMOVE, "SIGKILL")
    world.says(TaskState.SHUTDOWN)
    assert "c1" not in world.view.tasks


def test_removal_on_a_node_that_is_down() -> None:
    world = Box(container(), node("n1"))
    world.run()
    world.put(node("n1", state=NodeState.DOWN))
    world.settle()
    with pytest.raises(RequestError, match="is down"):
        container_lifecycle.remove(world.view, world.box, False)
    world.order(container_lifecycle.remove(world.view, world.box, True))
    assert "c1" not in world.view.tasks


def test_orders_that_change_nothing() -> None:
    world = Box(container())
    world.run()
    assert container_lifecycle.start(world.box) == world.box
    created = replace(
        world.box, desired_state=TaskState.READY, status=TaskStatus(TaskState.READY, run=1)
    )
    assert container_lifecycle.stop(created, "", None) == created
    assert container_lifecycle.start(created).desired_state is TaskState.RUNNING
    assert container_lifecycle.start(created).run == 1


def test_the_next_run_is_made_ready_and_waits() -> None:
    world = Box(container())
    world.run()
    assert container_lifecycle.prepare(world.box) == world.box
    world.says(TaskState.COMPLETE)
    world.order(container_lifecycle.prepare(world.box))
    assert (world.box.run, world.box.status.run) == (2, 2)
    assert world.box.status.state is TaskState.ASSIGNED
    assert world.box.desired_state is TaskState.READY
    assert container_lifecycle.prepare(world.box) == world.box
    assert container_lifecycle.start(world.box).desired_state is TaskState.RUNNING
    assert container_lifecycle.start(world.box).run == 2


def test_volumes_without_a_name_go_with_a_container_that_takes_them_along() -> None:
    world = Box(container())
    world.run()
    assert not container_lifecycle.remove(world.view, world.box, True).auto_remove
    assert container_lifecycle.remove(world.view, world.box, True, volumes=True).auto_remove


def test_reports_of_an_earlier_run_are_dropped() -> None:
    world = Box(container())
    world.run()
    old = replace(world.box.status, state=TaskState.FAILED)
    world.says(TaskState.COMPLETE)
    world.order(container_lifecycle.start(world.box))
    assert not accept_reports(world.view, world.box.node_id, {"c1": old}, world.now)


@pytest.mark.parametrize(
    "after",
    [
        {"status": TaskStatus(TaskState.RUNNING, run=2), "run": 2},
        {"status": TaskStatus(TaskState.PENDING, run=1), "run": 1},
        {"status": TaskStatus(TaskState.PENDING, run=2), "run": 2, "service_id": "web"},
    ],
)
def test_no_other_move_begins_a_run(after: dict[str, Any]) -> None:
    before = replace(container(), node_id="n1", status=TaskStatus(TaskState.COMPLETE, run=1))
    with pytest.raises(IllegalChange):
        check_change(Change(before, replace(before, **after)))
