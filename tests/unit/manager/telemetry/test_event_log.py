# SPDX-License-Identifier: Apache-2.0
"""What a change of the store means to a user: tables."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.daemon.background import background
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.manager.telemetry.event_log import EventLog, events_of
from orchestrator.model.administration.backups import BackupStatus
from orchestrator.model.administration.managers import Manager
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.nodes import Availability, Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster, Image, Network, Object
from orchestrator.model.scheduling.autoscaling import AutoscaleSpec, AutoscaleStatus
from orchestrator.model.scheduling.queues import Queue
from orchestrator.model.services import (
    JobRun,
    JobState,
    JobStatus,
    Service,
    UpdateState,
    UpdateStatus,
)
from orchestrator.model.specs import ContainerSpec, Hook, ServiceMode, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

S = TaskState
NODE = Node(id="n1", state=NodeState.READY, description=NodeDescription(hostname="host-1"))
SICK = replace(NODE, description=replace(NODE.description, trouble="the kernel is full"))
BOX = Task(id="c1", container_name="box", node_id="n1", run=1, status=TaskStatus(S.RUNNING, run=1))
IMAGE = Image(id="sha256:1", names=("web:1",), nodes=("n1",))
BACK = Network(id="b1", name="back", subnet="10.5.0.0/16")
WEB = Service(id="s1", spec=ServiceSpec(name="web"))

HOST = Manager(id="m1", hostname="host1")
ORPHAN = Orphan(id="o1", node_id="n1", task=Task(id="o1", service_name="web", slot=2))


def at(state: TaskState, run: int = 1, **fields: Any) -> Task:
    return replace(BOX, status=TaskStatus(state, run=run, **fields))


def hooked(state: TaskState, done: int) -> Task:
    hook = Hook(("prepare",))
    spec = TaskSpec(ContainerSpec(post_start=(hook, hook), pre_stop=(hook,)))
    return replace(at(state, hooks=done), spec=spec)


@pytest.mark.parametrize(
    ("before", "after", "actions"),
    [
        (None, at(S.PENDING), ["create"]),
        (at(S.PENDING), at(S.ASSIGNED), []),
        (at(S.STARTING), BOX, ["start"]),
        (BOX, at(S.RUNNING, paused=True), ["pause"]),
        (at(S.RUNNING, paused=True), BOX, ["unpause"]),
        (BOX, replace(BOX, desired_state=S.SHUTDOWN, preempted_by="top.1"), ["preempt"]),
        (BOX, replace(BOX, desired_state=S.SHUTDOWN), []),
        (BOX, at(S.FAILED, exit_code=3), ["die"]),
        (BOX, at(S.FAILED, oom_killed=True), ["oom", "die"]),
        (BOX, at(S.SHUTDOWN), ["die", "stop"]),
        (at(S.COMPLETE), at(S.ASSIGNED, 2), []),
        (at(S.COMPLETE), at(S.RUNNING, 2), ["start"]),
        # Its end and the next run in one write.
        (BOX, at(S.PENDING, 2, exit_code=3), ["die"]),
        (hooked(S.STARTING, 0), hooked(S.STARTING, 1), ["post_start"]),
        (hooked(S.STARTING, 0), hooked(S.RUNNING, 2), ["post_start", "post_start", "start"]),
        (hooked(S.RUNNING, 2), hooked(S.SHUTDOWN, 3), ["pre_stop", "die", "stop"]),
        (hooked(S.RUNNING, 2), hooked(S.FAILED, 1 << 40), ["pre_stop", "die"]),
        (BOX, replace(BOX, container_name="crate"), ["rename"]),
        (at(S.COMPLETE), None, ["destroy"]),
        (BOX, None, ["die", "destroy"]),
        (None, NODE, ["create"]),
        (NODE, replace(NODE, state=NodeState.DOWN), ["down"]),
        (replace(NODE, state=NodeState.DOWN), NODE, ["ready"]),
        (NODE, replace(NODE, availability=Availability.DRAIN), ["update"]),
        (NODE, replace(NODE, message="slow"), []),
        (NODE, SICK, ["trouble"]),
        (SICK, NODE, ["recover"]),
        (NODE, None, ["remove"]),
        (None, IMAGE, ["create"]),
        (IMAGE, replace(IMAGE, names=("web:1", "web:2")), ["tag"]),
        (IMAGE, replace(IMAGE, names=()), ["untag"]),
        (IMAGE, replace(IMAGE, nodes=("n1", "n2")), ["pull"]),
        (replace(IMAGE, nodes=("n1", "n2")), IMAGE, ["delete"]),
        (IMAGE, None, ["remove"]),
        (WEB, replace(WEB, spec=ServiceSpec(name="web", replicas=3)), ["update"]),
        (WEB, replace(WEB, removed=True), ["remove"]),
        (WEB, replace(WEB, updated_at=1.0), []),
        (None, BACK, ["create"]),
        (BACK, replace(BACK, slices={"n1": "10.5.1.0/24"}), []),
        (BACK, None, ["remove"]),
        (HOST, replace(HOST, backups=BackupStatus(succeeded_at=9.0)), ["backup"]),
        (HOST, replace(HOST, backups=BackupStatus(failures=1)), ["backup_failed"]),
        (HOST, replace(HOST, backups=BackupStatus(downloaded_at=9.0)), []),
        (None, ORPHAN, ["create"]),
        (ORPHAN, replace(ORPHAN, removing=True), []),
        (ORPHAN, None, ["remove"]),
    ],
)
def test_actions(before: Object | None, after: Object | None, actions: list[str]) -> None:
    events = list(events_of(Change(before, after), ClusterView.of([NODE]), 5.0))
    assert [event.action for event in events] == actions
    assert all(event.at == 5.0 and event.name for event in events)


def test_runs_of_a_job_begin_and_end() -> None:
    begun, failed = JobRun(2), JobRun(2, state=JobState.FAILED, message="work.1 failed")
    spec = ServiceSpec(name="work", mode=ServiceMode.REPLICATED_JOB)
    job = Service(id="j1", spec=spec, job=JobStatus((JobRun(1, state=JobState.COMPLETE),)))
    steps = [job, *(replace(job, job=JobStatus((run, *job.job.runs))) for run in (begun, failed))]
    told = [
        (event.type, event.action, event.name, event.attributes)
        for before, after in pairwise(steps)
        for event in events_of(Change(before, after), ClusterView(), 5.0)
    ]
    assert told == [
        ("job", "start", "work", {"run": "2"}),
        ("job", "fail", "work", {"run": "2", "reason": "work.1 failed"}),
    ]


def test_events_of_an_update() -> None:
    states = [
        UpdateStatus(),
        UpdateStatus(UpdateState.UPDATING, started_at=1.0),
        UpdateStatus(UpdateState.CANARY, started_at=1.0, message="1 of 3 replicas are updated"),
        UpdateStatus(UpdateState.UPDATING, started_at=1.0, promoted=True),
        UpdateStatus(UpdateState.PAUSED, started_at=1.0, message="1 of 3 failed"),
        UpdateStatus(UpdateState.ROLLING_BACK, started_at=2.0),
        UpdateStatus(UpdateState.ROLLED_BACK, started_at=2.0, finished_at=3.0),
        UpdateStatus(UpdateState.UPDATING, started_at=4.0),
        UpdateStatus(UpdateState.UPDATING, started_at=5.0),
        UpdateStatus(UpdateState.COMPLETED, started_at=5.0),
        UpdateStatus(UpdateState.COMPLETED, started_at=5.0, finished_at=6.0),
    ]
    steps = [replace(WEB, update=state) for state in states]
    told = [
        event
        for before, after in pairwise(steps)
        for event in events_of(Change(before, after), ClusterView(), 5.0)
    ]
    assert [event.action.removeprefix("update: ") for event in told] == [
        "started",
        "canary",
        "promoted",
        "paused",
        "rolling back",
        "rolled back",
        "started",
        "started",
        "completed",
    ]
    assert told[3].attributes == {
        "updatestate.old": "updating",
        "updatestate.new": "paused",
        "reason": "1 of 3 failed",
    }


def test_events_of_node_changes_and_service_removal() -> None:
    drained = replace(NODE, availability=Availability.DRAIN)
    (event,) = events_of(Change(NODE, drained), ClusterView.of([NODE]), 5.0)
    assert event.attributes["availability.old"] == "active"
    assert event.attributes["availability.new"] == "drain"
    # It was told when it was ordered.
    assert not list(events_of(Change(replace(WEB, removed=True), None), ClusterView(), 5.0))


def test_attributes_of_container_events() -> None:
    (event,) = events_of(Change(BOX, at(S.FAILED, exit_code=3)), ClusterView.of([NODE]), 5.0)
    assert (event.type, event.id, event.name, event.node) == ("container", "c1", "box", "host-1")
    assert event.attributes["exitCode"] == "3"


def test_events_of_network_connections() -> None:
    before = at(S.RUNNING, addresses={"default": "10.128.1.2"})
    after = at(S.RUNNING, addresses={"back": "10.5.1.2"}, addresses6={"back": "fd00::2"})
    events = events_of(Change(before, after), ClusterView.of([NODE, BACK]), 5.0)
    told = [(each.type, each.action, each.id, each.name, each.attributes) for each in events]
    assert told == [
        ("network", "disconnect", "default", "default", {"container": "c1"}),
        ("network", "connect", "b1", "back", {"container": "c1"}),
    ]


def test_changes_of_queues_are_events_of_their_own() -> None:
    empty = Cluster(id="c1", worker_token="t")
    night = replace(empty, queues=(Queue("day"), Queue("night")))
    heavy = replace(empty, queues=(Queue("day"), Queue("night", weight=3)))

    def seen(before: Cluster, after: Cluster) -> list[tuple[str, str, str]]:
        found = events_of(Change(before, after), ClusterView(), 1.0)
        return [(event.type, event.action, event.name) for event in found]

    assert seen(empty, night) == [("queue", "create", "day"), ("queue", "create", "night")]
    assert seen(night, heavy) == [("queue", "update", "night")]
    assert seen(heavy, empty) == [("queue", "remove", "day"), ("queue", "remove", "night")]
    assert seen(empty, replace(empty, worker_token="u")) == [("cluster", "update", "")]


def test_image_events_name_the_nodes() -> None:
    both = replace(IMAGE, nodes=("n1", "n2"))
    (event,) = events_of(Change(both, replace(IMAGE, nodes=("n2",))), ClusterView.of([NODE]), 5.0)
    assert (event.type, event.action, event.name, event.node) == (
        "image",
        "delete",
        "web:1",
        "host-1",
    )


async def test_an_event_has_one_position_at_all_managers() -> None:
    kv = MemoryKv(lambda: 0.0)
    caches = [Cache(kv) for _ in range(2)]
    logs = [EventLog(cache, lambda: 0.0) for cache in caches]
    begun = await commit(kv, [Change(None, WEB)])
    async with AsyncExitStack() as stack:
        for cache, log in zip(caches, logs, strict=True):
            await stack.enter_async_context(background(cache.follow()))
            await cache.wait_for(begun)
            await stack.enter_async_context(log.following())
        await commit(kv, [Change(None, BOX), Change(None, BACK)])
        revision = await commit(kv, [Change(None, IMAGE)])
        for cache in caches:
            await cache.wait_for(revision)
    first, second = (
        [(each.position, each.action, each.id) for each in log.since(0)] for log in logs
    )
    assert first == second
    assert [id for _, _, id in first] == ["c1", "c1", "b1", "sha256:1"]
    for number, (position, _, _) in enumerate(first):
        rest = [each.position for each in logs[1].after(position)]
        assert rest == [each for each, _, _ in first[number + 1 :]]


async def test_events_before_the_record_began_are_reported_as_missing() -> None:
    kv = MemoryKv(lambda: 0.0)
    before = await commit(kv, [Change(None, WEB)])
    cache = Cache(kv)
    log = EventLog(cache, lambda: 0.0)
    async with background(cache.follow()):
        await cache.wait_for(before)
        async with log.following():
            await cache.wait_for(await commit(kv, [Change(None, BACK)]))
    assert [each.action for each in log.after((before - 1, 0))] == ["gap", "create"]
    assert [each.action for each in log.after((before, 0))] == ["create"]


def test_a_decision_of_the_autoscaler_is_an_event() -> None:
    spec = replace(WEB.spec, replicas=2, autoscale=AutoscaleSpec(1, 9, 50))
    before = replace(WEB, spec=spec)
    after = replace(before, autoscale=AutoscaleStatus(4, 9.0, "cpu at 100% of 50%"))
    [event] = events_of(Change(before, after), ClusterView(), 10.0)
    assert (event.type, event.action, event.name) == ("service", "autoscale", "web")
    assert event.attributes["replicas.old"] == "2"
    assert event.attributes["replicas.new"] == "4"
    assert event.attributes["reason"] == "cpu at 100% of 50%"
