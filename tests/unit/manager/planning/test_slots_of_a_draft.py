# SPDX-License-Identifier: Apache-2.0
"""A draft's slots after any changes are those of its tasks, in ascending order."""

from __future__ import annotations

from itertools import count

from builders import NOW, service, task
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.slots import Draft, Start, slots_of
from orchestrator.model.states import TaskState

STATES = (TaskState.PENDING, TaskState.RUNNING, TaskState.FAILED)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from(STATES)), max_size=10),
    st.lists(
        st.tuples(st.sampled_from(("create", "stop", "remove", "message")), st.integers(1, 6))
    ),
)
def test_slots_follow_the_tasks(
    stored: list[tuple[int, TaskState]], steps: list[tuple[str, int]]
) -> None:
    web = service("web")
    tasks = {
        f"old{number}": task(
            f"old{number}", state, slot=slot, of=web, node_id="n1", created_at=NOW + number
        )
        for number, (slot, state) in enumerate(stored)
    }
    numbers = count()
    draft = Draft(web, tasks, NOW + 100.0, lambda: f"new{next(numbers)}")
    assert list(draft.slots().items()) == list(slots_of(draft.tasks).items())
    for step, number in steps:
        slot = draft.slots().get(number)
        if step == "create":
            draft.create(web, number, Start(), slot)
        elif slot is None:
            continue
        elif step == "stop":
            draft.stop(slot.newest, TaskState.SHUTDOWN)
        elif step == "remove":
            draft.remove_slot(slot)
        else:
            draft.set_message(slot.newest, "as a test says")
        assert list(draft.slots().items()) == list(slots_of(draft.tasks).items())
