# SPDX-License-Identifier: Apache-2.0
"""Pages of a list of tasks: together they are the list, whatever is written in between."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.errors import RequestError
from orchestrator.manager.operations.workloads.task_pages import by_service, place, task_page
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.tasks import Task


def tasks_of(services: list[tuple[str, int]]) -> list[Task]:
    """A service of each name, with so many slots, the first of which was replaced; names may be
    equal, as when a service is removed and created again."""
    return [
        Task(
            id=f"{number}-{slot}-{age}",
            created_at=10.0 + age / 3,
            service_id=f"s{number}" if name else "",
            service_name=name,
            slot=slot,
        )
        for number, (name, slots) in enumerate(services)
        for slot in range(1, slots + 1)
        for age in range(2 if slot == 1 else 1)
    ]


SERVICES = st.lists(
    st.tuples(st.sampled_from(("", "db", "web", "web2")), st.integers(0, 4)), max_size=5
)


def listed(view: ClusterView, size: int) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = task_page(by_service(view, token), size, token)
        assert len(page.tasks) <= size
        found += [task.id for task in page.tasks]
        if not page.next_token:
            return found
        assert page.tasks, "an empty page is the last one"
        token = page.next_token


@settings(max_examples=150, deadline=None)
@given(SERVICES, st.integers(1, 5))
def test_pages_together_are_the_whole_list(services: list[tuple[str, int]], size: int) -> None:
    view = ClusterView.of(tasks_of(services))
    whole = task_page(by_service(view, ""), 0, "")
    assert whole.next_token == ""
    assert whole.tasks == sorted(view.tasks.values(), key=place)
    assert listed(view, size) == [task.id for task in whole.tasks]


def test_what_is_written_between_two_pages_hides_and_repeats_no_other_task() -> None:
    tasks = tasks_of([("db", 2), ("web", 3)])
    view = ClusterView.of(tasks)
    first = task_page(by_service(view, ""), 2, "")
    assert [task.id for task in first.tasks] == ["0-1-1", "0-1-0"]
    # The last task of the page is gone, and a service comes before all others.
    new = Task(id="new", service_id="s9", service_name="a", slot=1)
    view = ClusterView.of([*(task for task in tasks if task.id != "0-1-0"), new])
    second = task_page(by_service(view, first.next_token), 10, first.next_token)
    assert [task.id for task in second.tasks] == ["0-2-0", "1-1-1", "1-1-0", "1-2-0", "1-3-0"]


@pytest.mark.parametrize("token", ["x", "bm8=", "WzEsMl0=", "W10="])
def test_a_token_that_no_list_gave_is_refused(token: str) -> None:
    with pytest.raises(RequestError, match="unknown page token"):
        task_page([[]], 1, token)
