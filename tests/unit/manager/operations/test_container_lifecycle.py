# SPDX-License-Identifier: Apache-2.0
"""Changes of a container that a user requests, and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import GIB, MIB, World, node, service, task, task_spec

from orchestrator.manager.errors import RequestError
from orchestrator.manager.operations.workloads import container_lifecycle
from orchestrator.model.specs import Resources, RestartCondition, RestartPolicy
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

ALWAYS = RestartPolicy(RestartCondition.ANY)


def box(state: TaskState = TaskState.RUNNING, **fields: Any) -> Task:
    """A container of its own that reserves 1 GiB."""
    made = task("c1", state, node_id="n1", spec=task_spec(memory=GIB, restart=RestartPolicy()))
    return replace(made, service_id="", service_name="", container_name="box", **fields)


def test_free_capacity_excludes_the_containers_own_reservation() -> None:
    other = task("t1", node_id="n1", spec=task_spec(memory=5 * GIB))
    view = World(node("n1", memory=8 * GIB), service(), other, box()).view
    wanted = task_spec(memory=3 * GIB, restart=ALWAYS)
    after = container_lifecycle.update(view, box(), wanted)
    assert after.spec.counted.memory == 3 * GIB
    assert after.spec.restart == ALWAYS
    with pytest.raises(RequestError) as refusal:
        container_lifecycle.update(view, box(), task_spec(memory=4 * GIB))
    assert str(refusal.value) == (
        "node host-n1 is too full: container 'box' reserves 1GiB of memory and would reserve "
        "4GiB, but 2GiB of 8GiB are free"
    )
    with pytest.raises(
        RequestError, match=r"reserves 0\.125 cores .* would reserve 4 cores, but 3\.75"
    ):
        container_lifecycle.update(view, box(), task_spec(memory=GIB, shares=4096))
    # What runs nowhere takes no room yet.
    ended = box(TaskState.COMPLETE)
    assert (
        container_lifecycle.update(view, ended, task_spec(memory=4 * GIB)).spec.counted.memory
        == 4 * GIB
    )


def test_reducing_resources_is_never_refused_for_capacity() -> None:
    other = task("t1", node_id="n1", spec=task_spec(memory=12 * GIB))
    view = World(node("n1", memory=8 * GIB), service(), other, box()).view
    assert (
        container_lifecycle.update(view, box(), task_spec(memory=512 * MIB)).spec.counted.memory
        == 512 * MIB
    )


def test_nothing_but_resources_and_restarts_changes() -> None:
    view = World(node(), box()).view
    wanted = replace(
        task_spec(image="other:1", memory=2 * GIB, restart=ALWAYS), limit=Resources(512, 2 * GIB)
    )
    after = container_lifecycle.update(view, box(), wanted)
    assert after.spec.container.image == "web:1"
    assert after.spec == replace(
        box().spec, reservation=wanted.reservation, limit=wanted.limit, restart=ALWAYS
    )


def test_a_task_of_a_service_is_changed_by_its_service() -> None:
    of_service = task("t1", node_id="n1")
    view = World(node(), service(), of_service).view
    with pytest.raises(RequestError, match="'orc service update --limit-memory 256m web'"):
        container_lifecycle.update(view, of_service, task_spec())


def test_auto_removed_container_takes_no_restart_policy() -> None:
    view = World(node(), box()).view
    with pytest.raises(RequestError, match=r"'box' is removed when it ends \(--rm\)"):
        container_lifecycle.update(view, box(auto_remove=True), task_spec(restart=ALWAYS))
