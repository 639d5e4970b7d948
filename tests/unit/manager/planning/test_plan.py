# SPDX-License-Identifier: Apache-2.0
"""What no plan may contain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import node, service, task

from orchestrator.manager.planning.pipeline import Dirty, dirty_of
from orchestrator.manager.planning.plan import Change, IllegalChange, Plan, earliest
from orchestrator.model.nodes import Availability, Node, NodeState
from orchestrator.model.objects import Network, NetworkPolicy, Object
from orchestrator.model.specs import Resources
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus

RUNNING = task("t", node_id="a")
WAITING = task("t", TaskState.PENDING)


def moved(state: TaskState, **fields: object) -> Object:
    return replace(RUNNING, status=TaskStatus(state), **fields)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (None, None, "needs an object"),
        (node("t"), RUNNING, "another kind"),
        (RUNNING, replace(RUNNING, id="u"), "cannot rename"),
        (RUNNING, None, "may be running"),
        (RUNNING, moved(TaskState.FAILED), "may not move it from RUNNING to FAILED"),
        (RUNNING, moved(TaskState.ASSIGNED), "may not move it from RUNNING to ASSIGNED"),
        (moved(TaskState.FAILED), RUNNING, "may not move it from FAILED to RUNNING"),
        (RUNNING, replace(RUNNING, node_id="b"), "for life"),
        (
            replace(RUNNING, desired_state=TaskState.REMOVE),
            replace(RUNNING, desired_state=TaskState.SHUTDOWN),
            "shrink from REMOVE to SHUTDOWN",
        ),
        (None, RUNNING, "created as RUNNING"),
        (None, task("t", TaskState.ASSIGNED), "assigned to no node"),
        (WAITING, task("t", TaskState.ASSIGNED), "assigned to no node"),
    ],
)
def test_illegal_changes_are_refused(
    before: Object | None, after: Object | None, words: str
) -> None:
    with pytest.raises(IllegalChange, match=words):
        Plan((Change(before, after),))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, WAITING),
        (None, task("t", TaskState.ASSIGNED, node_id="a")),
        (WAITING, task("t", TaskState.ASSIGNED, node_id="a")),
        (WAITING, None),
        (RUNNING, replace(RUNNING, desired_state=TaskState.REMOVE)),
        (RUNNING, moved(TaskState.ORPHANED)),
        (moved(TaskState.FAILED), None),
        (node("a"), None),
    ],
)
def test_legal_changes_are_accepted(before: Object | None, after: Object | None) -> None:
    assert Plan((Change(before, after),)).changes[0].subject is (after or before)


def test_earliest() -> None:
    assert earliest() is None
    assert earliest(None, 3.0, None, 2.0) == 2.0


@pytest.mark.parametrize(
    ("change", "dirty"),
    [
        (Change(None, RUNNING), Dirty(frozenset({"web-id"}))),
        (Change(RUNNING, moved(TaskState.FAILED)), Dirty(frozenset({"web-id"}), False, True)),
        (Change(RUNNING, None), Dirty(frozenset({"web-id"}), False, True)),
        (Change(None, service()), Dirty(frozenset({"web-id"}))),
        (Change(node("a"), None), Dirty(nodes=frozenset({"a"}))),
    ],
)
def test_dirty_objects_of_a_change(change: Change, dirty: Dirty) -> None:
    assert dirty_of([change]) == dirty
    assert dirty | Dirty() == dirty
    assert dirty
    assert not Dirty()


def measured(node: Node, **description: object) -> Node:
    return replace(node, description=replace(node.description, **description))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("after", "dirty"),
    [
        (measured(node("a"), path_mtu=1400), False),
        (measured(node("a"), trouble="no IPVS"), False),
        (replace(node("a"), boot_id="another", revision=7), False),
        (replace(node("a"), state=NodeState.DOWN), True),
        (replace(node("a"), labels={"disk": "ssd"}), True),
        (replace(node("a"), availability=Availability.DRAIN), True),
        (measured(node("a"), resources=Resources(shares=1)), True),
        (measured(node("a"), volume_drivers={"nfs": "global"}), True),
    ],
)
def test_a_change_of_a_node_that_is_not_planned_by_makes_nothing_dirty(
    after: Node, dirty: bool
) -> None:
    assert bool(dirty_of([Change(node("a"), after)]).nodes) is dirty


def test_policies_of_a_network_make_nothing_dirty() -> None:
    network = Network(id="n", name="back")
    policies = (NetworkPolicy(id="p", destination="db"),)
    assert not dirty_of([Change(network, replace(network, policies=policies, revision=2))])
    assert dirty_of([Change(network, replace(network, slices={"a": "10.1.1.0/24"}))])
