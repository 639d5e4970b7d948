# SPDX-License-Identifier: Apache-2.0
"""What a new version of a secret or config does to services, jobs and containers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import NOW, World, node, service, task_spec

from orchestrator.manager.planning.reconcile.document_versions import (
    document_consumers,
    newest_versions,
    update_effects,
    version_of,
    versions_for_rollback,
    versions_in_use,
)
from orchestrator.manager.planning.reconcile.spec_history import rolled_back, with_spec
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.compatibility.agent_features import DOCUMENTS
from orchestrator.model.documents import Document, DocumentKind, FileReference, OnUpdate
from orchestrator.model.nodes import Node
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import (
    ContainerSpec,
    FailureAction,
    RestartCondition,
    RestartPolicy,
    TaskSpec,
    UpdatePolicy,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

S = TaskState
DB = Document(id="d1", name="db", version=1, kept=(1,))
REFERENCE = FileReference(source="db")
SIGNALLED = replace(REFERENCE, on_update=OnUpdate.SIGNAL)
LEFT = replace(REFERENCE, on_update=OnUpdate.NONE)


def able(id: str) -> Node:
    plain = node(id)
    return replace(plain, description=replace(plain.description, features=(DOCUMENTS,)))


def spec_with(*references: FileReference) -> TaskSpec:
    spec = task_spec(restart=RestartPolicy(delay=1.0))
    return replace(spec, container=replace(spec.container, secrets=references))


def naming(*references: FileReference, name: str = "web", **fields: object) -> Service:
    made = service(name, 2, spec=spec_with(*references), documents={"d1": 1}, **fields)  # type: ignore[arg-type]
    return made


def world(*services: Service) -> World:
    made = World(able("a"), able("b"), DB, *services)
    made.obey()
    return made


def renew(made: World, version: int) -> None:
    made.put(replace(DB, version=version, kept=tuple(range(1, version + 1))))
    made.settle()


def web(made: World) -> Service:
    return made.view.services["web-id"]


def test_tasks_have_the_versions_of_their_service() -> None:
    made = world(naming(REFERENCE))
    assert [task.documents for task in made.tasks(S.RUNNING)] == [{"d1": 1}] * 2


def test_new_version_updates_only_services_that_reference_it() -> None:
    made = world(naming(REFERENCE), service("other", 2))
    others = {task.id for task in made.tasks() if task.service_name == "other"}
    renew(made, 2)
    assert web(made).update.state is UpdateState.UPDATING
    assert len(made.tasks(S.RUNNING)) == 4, "one at a time, and stopping"
    made.stay_up()
    assert {task.id for task in made.tasks(S.RUNNING) if task.service_name == "other"} == others
    running = [task for task in made.tasks(S.RUNNING) if task.service_name == "web"]
    assert [task.documents for task in running] == [{"d1": 2}] * 2
    assert web(made).update.state is UpdateState.COMPLETED
    assert web(made).history[0].documents == {"d1": 1}
    assert web(made).spec == naming(REFERENCE).spec


@pytest.mark.parametrize("reference", [SIGNALLED, LEFT])
def test_a_new_version_that_replaces_no_task(reference: FileReference) -> None:
    made = world(naming(reference))
    before = [task.id for task in made.tasks(S.RUNNING)]
    renew(made, 2)
    made.obey()
    assert [task.id for task in made.tasks(S.RUNNING)] == before
    document = made.view.documents["d1"]
    expected = 2 if reference is SIGNALLED else 1
    assert {version_of(task, document, reference) for task in made.tasks()} == {expected}


def test_a_version_that_was_rolled_back_from_is_not_given_again_but_the_next_is() -> None:
    policy = UpdatePolicy(failure_action=FailureAction.ROLLBACK, monitor=5.0)
    made = world(naming(REFERENCE, update=policy))
    renew(made, 2)
    for item in made.tasks(S.RUNNING):
        if item.desired_state is S.SHUTDOWN:
            made.report(item, S.SHUTDOWN)
    made.settle()
    (new,) = made.tasks(S.ASSIGNED)
    made.report(new, S.FAILED, message="no such key")
    made.obey()
    made.pass_time(10.0)
    made.obey()
    made.pass_time(10.0)
    assert web(made).update.state is UpdateState.ROLLED_BACK
    assert web(made).documents == {"d1": 1}
    assert web(made).declined == {"d1": 2}
    assert {task.documents["d1"] for task in made.tasks(S.RUNNING)} == {1}
    renew(made, 3)
    assert web(made).documents == {"d1": 3}
    assert web(made).declined == {}


@pytest.mark.parametrize("state", [UpdateState.PAUSED, UpdateState.CANARY, UpdateState.UPDATING])
def test_an_update_that_is_not_over_is_not_mixed_with_another(state: UpdateState) -> None:
    made = world(naming(REFERENCE))
    made.put(replace(web(made), update=replace(web(made).update, state=state)))
    before = web(made).spec_version
    made.put(replace(DB, version=2, kept=(1, 2)))
    made.plan()
    assert web(made).spec_version == before


def test_update_takes_the_newest_versions_and_a_label_restarts_nothing() -> None:
    view = ClusterView.of([replace(DB, version=4, kept=(3, 4))])
    had = replace(naming(REFERENCE), declined={"d1": 4})
    labelled = with_spec(
        had,
        replace(had.spec, labels={"a": "b"}),
        "",
        NOW,
        newest_versions(view, had.spec.task.container),
    )
    assert (labelled.documents, labelled.declined) == ({"d1": 1}, {"d1": 4})
    forced = replace(had.spec, task=replace(had.spec.task, force=1))
    after = with_spec(had, forced, "", NOW, newest_versions(view, had.spec.task.container))
    assert (after.documents, after.declined) == ({"d1": 4}, {})
    assert versions_for_rollback(view, had.spec.task.container, {"d1": 3}) == {"d1": 3}
    assert versions_for_rollback(view, had.spec.task.container, {"d1": 1}) == {"d1": 4}, (
        "1 is not kept"
    )
    back = rolled_back(after, after.history[0], NOW, "", documents={"d1": 3})
    assert (back.documents, back.declined) == ({"d1": 3}, {"d1": 4})


def test_standalone_container_gets_the_newest_versions_when_restarted() -> None:
    container = Task(
        id="c1",
        container_name="c",
        spec=replace(spec_with(REFERENCE), restart=RestartPolicy(RestartCondition.ANY)),
        documents={"d1": 1},
        run=1,
        desired_state=S.RUNNING,
        status=TaskStatus(S.PENDING, run=1),
    )
    made = World(able("a"), DB, container)
    made.settle()
    made.report(made.view.tasks["c1"], S.RUNNING)
    renew(made, 2)
    assert made.view.tasks["c1"].documents == {"d1": 1}, "it runs on"
    made.report(made.view.tasks["c1"], S.FAILED, exit_code=1)
    made.settle()
    assert made.view.tasks["c1"].documents == {"d1": 2}


def test_users_of_a_document() -> None:
    spec = ContainerSpec(image="web:1", secrets=(REFERENCE,))
    container = Task(id="c1", container_name="c", spec=TaskSpec(container=spec), run=1)
    other = replace(DB, id="d2", kind=DocumentKind.CONFIG)
    gone = replace(naming(REFERENCE, name="gone"), removed=True)
    going = replace(service("going"), history=(), update=replace(Service().update))
    view = ClusterView.of([DB, other, container, naming(REFERENCE), gone, going])
    assert document_consumers(view, DB) == ["service web", "container c"]
    assert document_consumers(view, other) == []
    assert versions_in_use(view, "d1") == {1}
    assert update_effects(view, DB) == {
        OnUpdate.ROLL: ["service web"],
        OnUpdate.SIGNAL: [],
        OnUpdate.NONE: ["container c"],
    }


def test_images_of_rollback_specs_are_in_use() -> None:
    made = naming(REFERENCE)
    plain = replace(made.spec, task=task_spec())
    under_way = with_spec(made, plain, "", NOW, {})
    assert document_consumers(ClusterView.of([DB, under_way]), DB) == ["service web"]
    done = replace(under_way, update=replace(under_way.update, state=UpdateState.COMPLETED))
    assert document_consumers(ClusterView.of([DB, done]), DB) == []


def test_a_node_whose_agent_is_too_old_takes_no_task_with_files() -> None:
    made = World(node("a"), DB, naming(REFERENCE))
    made.settle()
    (first, _) = made.tasks()
    assert "its agent is too old for secrets and configs" in first.status.message
