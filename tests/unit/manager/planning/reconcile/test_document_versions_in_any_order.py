# SPDX-License-Identifier: Apache-2.0
"""New versions, failures, rollbacks and updates in any order: what holds all the time, and what the
end is."""

from __future__ import annotations

from dataclasses import replace

from builders import World, service
from hypothesis import given, settings
from hypothesis import strategies as st
from test_document_versions import DB, REFERENCE, able, naming, web

from orchestrator.manager.planning.reconcile.document_versions import (
    newest_versions,
    versions_for_rollback,
)
from orchestrator.manager.planning.reconcile.spec_history import rolled_back, with_spec
from orchestrator.model.services import UpdateState
from orchestrator.model.specs import FailureAction, UpdatePolicy
from orchestrator.model.states import TaskState

S = TaskState
STEPS = ("renew", "obey", "fail", "stop", "rollback", "force", "time")


class Life:
    """A service with a secret, and one without, to which things happen."""

    def __init__(self, action: FailureAction) -> None:
        policy = UpdatePolicy(failure_action=action, monitor=5.0)
        self.world = World(
            able("a"), able("b"), DB, naming(REFERENCE, update=policy), service("other", 2)
        )
        self.world.obey()
        self.others = self.tasks_of("other")

    def tasks_of(self, name: str) -> set[str]:
        return {task.id for task in self.world.tasks(S.RUNNING) if task.service_name == name}

    def renew(self) -> None:
        document = self.world.view.documents["d1"]
        version = document.version + 1
        self.world.put(replace(document, version=version, kept=(*document.kept, version)))

    def obey(self) -> None:
        self.world.obey()

    def fail(self) -> None:
        for item in self.world.tasks(S.ASSIGNED)[:1]:
            self.world.report(item, S.FAILED, message="no")

    def stop(self) -> None:
        for item in self.world.tasks(S.RUNNING):
            if item.desired_state is S.SHUTDOWN:
                self.world.report(item, S.SHUTDOWN)

    def rollback(self) -> None:
        now = web(self.world)
        if now.history:
            past = now.history[0]
            container = past.spec.task.container
            had = versions_for_rollback(self.world.view, container, past.documents)
            self.world.put(rolled_back(now, past, self.world.now, "", documents=had))

    def force(self) -> None:
        now = web(self.world)
        spec = replace(now.spec, task=replace(now.spec.task, force=now.spec.task.force + 1))
        versions = newest_versions(self.world.view, spec.task.container)
        self.world.put(with_spec(now, spec, "", self.world.now, versions))

    def time(self) -> None:
        self.world.pass_time(10.0)

    def check(self) -> None:
        """Whatever has happened: the service without the secret was left alone, and nobody has a
        version that is not kept."""
        assert self.tasks_of("other") == self.others
        kept = self.world.view.documents["d1"].kept
        for task in self.world.tasks():
            assert task.documents.get("d1", 1) in kept

    def rest(self) -> None:
        """All goes well for a long time."""
        for _ in range(12):
            self.world.obey()
            self.world.pass_time(10.0)
        self.world.obey()


@settings(max_examples=150)
@given(st.lists(st.sampled_from(STEPS), max_size=14), st.sampled_from(FailureAction))
def test_invariants_hold_in_any_order_of_events(steps: list[str], action: FailureAction) -> None:
    life = Life(action)
    for step in steps:
        getattr(life, step)()
        life.world.settle()
        life.check()
    life.rest()
    life.check()
    now, newest_version = web(life.world), life.world.view.documents["d1"].version
    running = [task for task in life.world.tasks(S.RUNNING) if task.service_name == "web"]
    if now.update.state in (UpdateState.NONE, UpdateState.COMPLETED, UpdateState.ROLLED_BACK):
        assert [task.documents for task in running] == [now.documents] * 2
        assert newest_version in (now.documents["d1"], now.declined.get("d1"))
        version = now.spec_version
        life.rest()
        assert web(life.world).spec_version == version, "nothing happens by itself any more"
    else:
        assert now.update.state in (UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)
