"""What the web page is told, and who may look at it."""

from __future__ import annotations

import json
from dataclasses import replace

from orchestrator.manager.dashboard import picture
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.nodes import Availability, Node, NodeDescription, NodeState
from orchestrator.model.objects import Image, Network
from orchestrator.model.services import Service, UpdateState, UpdateStatus
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


def test_all_of_the_cluster_that_is_drawn() -> None:
    view = ClusterView.of([NODE, WEB, TASK, Network(id="w1", name="front"), Image(id="i1")])
    found = picture.whole(view)
    assert set(found) == {"nodes", "services", "tasks", "networks"}
    assert found["nodes"]["n1"]["name"] == "host1"
    assert found["networks"]["w1"]["name"] == "front"
    web, task = found["services"]["s1"], found["tasks"]["t1"]
    assert (web["wanted"], web["stack"], web["update"]) == (2, "shop", "paused")
    assert (task["name"], task["node"], task["health"]) == ("web.2", "n1", "unhealthy")
    assert task["message"] == "HTTP 500"


def test_nothing_of_what_a_container_is_given_is_told() -> None:
    text = json.dumps(picture.whole(ClusterView.of([NODE, WEB, TASK])))
    assert "sesame" not in text
    assert "serve" not in text


def test_only_what_looks_different_is_told() -> None:
    view = ClusterView.of([NODE, WEB, TASK])
    moved = replace(TASK, status=replace(TASK.status, state=TaskState.FAILED))
    heard = replace(NODE, boot_id="another")
    found = picture.changed(view, [Change(TASK, moved), Change(NODE, heard)])
    assert found == {"tasks": {"t1": {"state": "failed"}}}


def test_what_is_empty_is_told_only_when_it_was_not() -> None:
    healed = replace(TASK, status=replace(TASK.status, health=Health.NONE, health_output=""))
    view = ClusterView.of([healed])
    assert not {"health", "message", "stops"} & picture.whole(view)["tasks"]["t1"].keys()
    found = picture.changed(view, [Change(TASK, healed)])
    assert found == {"tasks": {"t1": {"health": "", "message": ""}}}


def test_a_task_that_is_new_is_told_with_all_that_it_has() -> None:
    view = ClusterView.of([NODE, WEB, TASK])
    found = picture.changed(view, [Change(None, TASK)])
    assert found == {"tasks": {"t1": picture.whole(view)["tasks"]["t1"]}}


def test_what_is_gone_is_told() -> None:
    gone = replace(WEB, removed=True)
    view = ClusterView.of([NODE, gone])
    assert picture.changed(view, [Change(TASK, None), Change(WEB, gone)]) == {
        "tasks": {"t1": None},
        "services": {"s1": None},
    }


def test_a_global_service_wants_more_when_a_node_comes() -> None:
    everywhere = replace(WEB, spec=replace(WEB.spec, mode=ServiceMode.GLOBAL))
    other = replace(NODE, id="n2", availability=Availability.ACTIVE)
    view = ClusterView.of([NODE, other, everywhere])
    assert picture.changed(view, [Change(None, other)])["services"]["s1"]["wanted"] == 2
