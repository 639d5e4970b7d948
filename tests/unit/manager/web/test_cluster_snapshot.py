# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the cluster for the web page, and who may read them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.telemetry.event_log import Event
from orchestrator.manager.web import cluster_snapshot
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.nodes import Availability, Node, NodeDescription, NodeState
from orchestrator.model.objects import Image, Network
from orchestrator.model.services import (
    JobRun,
    JobState,
    JobStatus,
    Service,
    UpdateState,
    UpdateStatus,
)
from orchestrator.model.specs import (
    STACK_LABEL,
    ContainerSpec,
    Resources,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task, TaskStatus

NODE = Node(
    id="n1",
    state=NodeState.READY,
    description=NodeDescription(hostname="host1", address="10.0.0.1", resources=Resources(2048, 9)),
)
SPEC = TaskSpec(
    container=ContainerSpec(image="web:1", env=("PASSWORD=sesame",), command=("serve", "-k", "key"))
)
WEB = Service(
    id="s1",
    spec=ServiceSpec(name="web", replicas=2, labels={STACK_LABEL: "shop"}, task=SPEC),
    update=UpdateStatus(UpdateState.PAUSED, message="too many failed"),
)
TASK = Task(
    id="t1",
    service_id="s1",
    service_name="web",
    slot=2,
    node_id="n1",
    spec=SPEC,
    status=TaskStatus(TaskState.RUNNING, health=Health.UNHEALTHY, health_output="HTTP 500"),
)


def test_a_full_snapshot() -> None:
    view = ClusterView.of([NODE, WEB, TASK, Network(id="w1", name="front"), Image(id="i1")])
    found = cluster_snapshot.full_snapshot(view)
    assert set(found) == {"nodes", "services", "tasks", "networks", "managers"}
    assert found["nodes"]["n1"]["name"] == "host1"
    assert found["networks"]["w1"]["name"] == "front"
    web, task = found["services"]["s1"], found["tasks"]["t1"]
    assert (web["wanted"], web["stack"], web["update"]) == (2, "shop", "paused")
    assert (task["name"], task["node"], task["health"]) == ("web.2", "n1", "unhealthy")
    assert task["message"] == "HTTP 500"


def test_environment_and_command_are_not_in_the_snapshot() -> None:
    text = json.dumps(cluster_snapshot.full_snapshot(ClusterView.of([NODE, WEB, TASK])))
    assert "sesame" not in text
    assert "serve" not in text


def test_only_changed_fields_are_sent() -> None:
    view = ClusterView.of([NODE, WEB, TASK])
    moved = replace(TASK, status=replace(TASK.status, state=TaskState.FAILED))
    heard = replace(NODE, boot_id="another")
    found = cluster_snapshot.snapshot_changes(view, [Change(TASK, moved), Change(NODE, heard)])
    assert found == {"tasks": {"t1": {"state": "failed"}}}


def test_empty_fields_are_sent_only_when_they_change() -> None:
    healed = replace(TASK, status=replace(TASK.status, health=Health.NONE, health_output=""))
    view = ClusterView.of([healed])
    assert (
        not {"health", "message", "stops"}
        & cluster_snapshot.full_snapshot(view)["tasks"]["t1"].keys()
    )
    found = cluster_snapshot.snapshot_changes(view, [Change(TASK, healed)])
    assert found == {"tasks": {"t1": {"health": "", "message": ""}}}


def test_a_new_task_is_sent_with_all_fields() -> None:
    view = ClusterView.of([NODE, WEB, TASK])
    found = cluster_snapshot.snapshot_changes(view, [Change(None, TASK)])
    assert found == {"tasks": {"t1": cluster_snapshot.full_snapshot(view)["tasks"]["t1"]}}


def test_progress_of_a_job() -> None:
    spec = replace(WEB.spec, mode=ServiceMode.REPLICATED_JOB, replicas=3)
    job = replace(WEB, spec=spec)

    def extent(*runs: JobRun) -> tuple[object, ...]:
        view = ClusterView.of([NODE, replace(job, job=JobStatus(runs=runs))])
        found = cluster_snapshot.full_snapshot(view)["services"]["s1"]
        return tuple(found.get(key) for key in ("job", "done", "of", "wanted"))

    assert extent() == ("waiting", None, 3, None)
    run = JobRun(number=1, version=job.spec_version, completed="1")
    assert extent(run) == ("running", 1, 3, 2)
    ended = replace(run, completed="1-3", state=JobState.COMPLETE)
    assert extent(ended) == ("complete", 3, 3, None)
    assert extent(replace(run, state=JobState.FAILED)) == ("failed", 1, 3, None)


def test_when_a_task_that_failed_is_tried_again() -> None:
    waits = replace(TASK, status=TaskStatus(TaskState.PENDING), not_before=99.0)
    view = ClusterView.of([NODE, WEB, waits])
    assert "retry_at" not in cluster_snapshot.full_snapshot(view)["tasks"]["t1"], (
        "it only begins later"
    )
    view = ClusterView.of([NODE, WEB, replace(waits, attempt=2)])
    assert cluster_snapshot.full_snapshot(view)["tasks"]["t1"]["retry_at"] == 99.0


def test_a_service_that_names_no_network_is_on_the_default_one() -> None:
    view = ClusterView.of([NODE, WEB])
    assert cluster_snapshot.full_snapshot(view)["services"]["s1"]["networks"] == ["default"]


@pytest.mark.parametrize(
    ("action", "attributes", "bad"),
    [
        ("die", {"exitCode": "0"}, False),
        ("die", {"exitCode": "143"}, False),
        ("die", {"exitCode": "1", "reason": "exit status 1"}, True),
        ("die", {}, False),
        ("oom", {}, True),
        ("health_status: unhealthy", {}, True),
        ("health_status: healthy", {}, False),
        ("fail", {}, True),
        ("start", {}, False),
    ],
)
def test_which_events_report_failures(action: str, attributes: dict[str, str], bad: bool) -> None:
    event = Event(1.0, "container", action, "t1", "web.1", attributes=attributes)
    assert event.is_failure is bad


def test_removed_objects_are_sent() -> None:
    gone = replace(WEB, removed=True)
    view = ClusterView.of([NODE, gone])
    assert cluster_snapshot.snapshot_changes(view, [Change(TASK, None), Change(WEB, gone)]) == {
        "tasks": {"t1": None},
        "services": {"s1": None},
    }


def test_managers_are_ready_while_they_are_present() -> None:
    one, two = Manager(id="m1", hostname="host1"), Manager(id="m2", hostname="host2")
    here, there = ManagerPresence(id="m1"), ManagerPresence(id="m2")
    view = ClusterView.of([one, two, here, there, Manager(id="m3", hostname="host3", joining=True)])
    found = cluster_snapshot.full_snapshot(view)["managers"]
    assert {each["name"]: each["state"] for each in found.values()} == {
        "host1": "ready",
        "host2": "ready",
        "host3": "joining",
    }
    view = ClusterView.of([one, two, here])
    assert cluster_snapshot.snapshot_changes(view, [Change(there, None)]) == {
        "managers": {"m2": {"name": "host2", "state": "down"}}
    }
    view = ClusterView.of([one, here])
    gone = [Change(two, None), Change(there, None)]
    assert cluster_snapshot.snapshot_changes(view, gone) == {"managers": {"m2": None}}


def test_a_global_service_wants_more_when_a_node_comes() -> None:
    everywhere = replace(WEB, spec=replace(WEB.spec, mode=ServiceMode.GLOBAL))
    other = replace(NODE, id="n2", availability=Availability.ACTIVE)
    view = ClusterView.of([NODE, other, everywhere])
    assert (
        cluster_snapshot.snapshot_changes(view, [Change(None, other)])["services"]["s1"]["wanted"]
        == 2
    )
