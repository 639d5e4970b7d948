# SPDX-License-Identifier: Apache-2.0
"""What a word means of which there may be services, jobs and tasks."""

from __future__ import annotations

import re

import pytest

from orchestrator.manager.errors import RequestError
from orchestrator.manager.object_lookup import (
    find_container,
    find_log_source,
    find_service_or_task,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceMode, ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

WEB = Service(id="s-web", spec=ServiceSpec(name="web"))
SUMS = Service(id="j-sums", spec=ServiceSpec(name="sums", mode=ServiceMode.REPLICATED_JOB))
VIEW = ClusterView.of(
    [
        WEB,
        SUMS,
        Task(id="t-web-1", service_id=WEB.id, service_name="web", slot=1),
        Task(id="t-sums-1", service_id=SUMS.id, service_name="sums", slot=1),
        Task(id="t-sums-2", service_id=SUMS.id, service_name="sums", slot=2),
    ]
)


@pytest.mark.parametrize(
    ("word", "of_job", "service", "tasks"),
    [
        ("web", False, WEB, ["t-web-1"]),
        ("sums", False, SUMS, ["t-sums-1", "t-sums-2"]),
        ("web.1", False, None, ["t-web-1"]),
        ("sums", True, SUMS, ["t-sums-1", "t-sums-2"]),
        ("j-su", True, SUMS, ["t-sums-1", "t-sums-2"]),
        ("sums.2", True, None, ["t-sums-2"]),
        ("t-sums-1", True, None, ["t-sums-1"]),
    ],
)
def test_log_source_of_a_name(
    word: str, of_job: bool, service: Service | None, tasks: list[str]
) -> None:
    found, its = find_log_source(VIEW, word, of_job)
    assert (found, sorted(task.id for task in its)) == (service, tasks)


@pytest.mark.parametrize(
    ("word", "of_job", "words"),
    [
        ("sum", False, "no service 'sum'; did you mean 'sums'?"),
        ("sum", True, "no job 'sum'; did you mean 'sums'?"),
        ("none", True, "no job 'none'; see 'orc job ls'"),
        ("web", True, "'web' is a service, not a job; see 'orc job ls'"),
        ("web.1", True, "no job 'web.1'; see 'orc job ls'"),
    ],
)
def test_an_unknown_log_source_is_named_as_requested(word: str, of_job: bool, words: str) -> None:
    with pytest.raises(RequestError) as refusal:
        find_log_source(VIEW, word, of_job)
    assert refusal.value.text == words


def test_a_services_name_suggests_its_first_running_replica() -> None:
    states = (TaskState.PENDING, TaskState.RUNNING, TaskState.RUNNING)
    tasks = [
        Task(
            f"t{slot}", service_id="s-web", service_name="web", slot=slot, status=TaskStatus(state)
        )
        for slot, state in enumerate(states, start=1)
    ]
    view = ClusterView.of([WEB, *tasks])
    with pytest.raises(
        RequestError, match=r"no container 'web', but a service.*replica 'web\.2'\?"
    ):
        find_container(view, "web")
    assert find_container(view, "web.1").id == "t1"


@pytest.mark.parametrize(
    ("word", "id"),
    [("web", "s-web"), ("s-we", "s-web"), ("web.1", "t-web-1"), ("t-sums-2", "t-sums-2")],
)
def test_a_word_is_a_service_or_a_task(word: str, id: str) -> None:
    assert find_service_or_task(VIEW, word).id == id


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("x", "no task or service 'x'; see 'orc service ls' and 'orc ps -a'"),
        ("web.2", "no task or service 'web.2'; did you mean 'web.1'?"),
        ("t-sums-", "'t-sums-' is a prefix of 2 task or service ids; use a longer one"),
    ],
)
def test_what_is_neither_a_service_nor_a_task_is_named(word: str, words: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(words)}$"):
        find_service_or_task(VIEW, word)
