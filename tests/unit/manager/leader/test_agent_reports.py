# SPDX-License-Identifier: Apache-2.0
"""Reports of agents as changes."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from orchestrator.manager.leader.agent_reports import MOST_NAMES, Hello, Reports, report_changes
from orchestrator.manager.operations.node_requests import image_name_changes
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node, NodeDescription, NodeState, TunnelKey
from orchestrator.model.objects import Image
from orchestrator.model.specs import RestartCondition, RestartPolicy, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

NODE = Node(id="n1", description=NodeDescription(hostname="one", address="10.0.0.1"))


def task(state: TaskState, **more: object) -> Task:
    return Task(id="t1", service_id="s", node_id="n1", status=TaskStatus(state=state), **more)  # type: ignore[arg-type]


def after(view: ClusterView, reports: Reports, now: float = 100.0) -> ClusterView:
    return view.evolve(report_changes(view, reports, now))


@pytest.mark.parametrize(
    ("current", "reported", "stored"),
    [
        (TaskState.ASSIGNED, TaskState.RUNNING, TaskState.RUNNING),
        (TaskState.RUNNING, TaskState.FAILED, TaskState.FAILED),
        (TaskState.RUNNING, TaskState.PREPARING, TaskState.RUNNING),
        (TaskState.FAILED, TaskState.RUNNING, TaskState.FAILED),
        (TaskState.ORPHANED, TaskState.RUNNING, TaskState.ORPHANED),
        (TaskState.RUNNING, TaskState.ORPHANED, TaskState.RUNNING),
    ],
)
def test_task_states_only_advance(
    current: TaskState, reported: TaskState, stored: TaskState
) -> None:
    view = ClusterView.of([NODE, task(current)])
    reports = Reports(statuses={"n1": {"t1": TaskStatus(state=reported, at=5.0)}})
    assert after(view, reports).tasks["t1"].status.state is stored


def test_a_node_cannot_report_another_nodes_task() -> None:
    view = ClusterView.of([NODE, replace(NODE, id="n2"), task(TaskState.RUNNING)])
    reports = Reports(statuses={"n2": {"t1": TaskStatus(state=TaskState.FAILED)}})
    assert report_changes(view, reports, 1.0) == []


def test_a_running_task_may_report_more_of_itself() -> None:
    view = ClusterView.of([NODE, task(TaskState.RUNNING)])
    status = TaskStatus(state=TaskState.RUNNING, at=7.0, pid=42)
    assert after(view, Reports(statuses={"n1": {"t1": status}})).tasks["t1"].status == status


def test_the_same_report_again_changes_nothing() -> None:
    view = ClusterView.of([NODE, task(TaskState.RUNNING)])
    reports = Reports(statuses={"n1": {"t1": TaskStatus(state=TaskState.RUNNING)}})
    assert report_changes(view, reports, 1.0) == []


def test_a_hello_makes_the_node_ready_and_is_idempotent() -> None:
    view = ClusterView.of([replace(NODE, state=NodeState.DOWN, message="no heartbeat")])
    reports = Reports(hellos={"n1": Hello(replace(NODE.description, kernel="6.12"), "boot1")})
    ready = after(view, reports).nodes["n1"]
    assert (ready.state, ready.state_since, ready.message) == (NodeState.READY, 100.0, "")
    assert ready.description.kernel == "6.12"
    assert report_changes(ClusterView.of([ready]), reports, 200.0) == []


@pytest.mark.parametrize(
    ("policy", "desired", "state", "starts"),
    [
        ("ANY", "SHUTDOWN", "SHUTDOWN", True),
        ("ANY", "SHUTDOWN", "RUNNING", False),
        ("ANY", "REMOVE", "SHUTDOWN", False),
        ("ANY", "RUNNING", "FAILED", False),
        ("UNLESS_STOPPED", "SHUTDOWN", "SHUTDOWN", False),
        ("ON_FAILURE", "SHUTDOWN", "SHUTDOWN", False),
        ("NONE", "SHUTDOWN", "SHUTDOWN", False),
    ],
)
def test_a_reboot_starts_containers_with_restart_policy_always(
    policy: str, desired: str, state: str, starts: bool
) -> None:
    stopped = Task(
        id="t1",
        container_name="box",
        node_id="n1",
        run=3,
        desired_state=TaskState[desired],
        spec=TaskSpec(restart=RestartPolicy(RestartCondition[policy])),
        status=TaskStatus(TaskState[state], run=3),
    )
    replica = replace(stopped, id="t2", service_id="s")
    view = ClusterView.of([NODE, stopped, replica])
    # The first hello, and one of another agent in the same boot, start nothing.
    for _ in range(2):
        view = after(view, Reports(hellos={"n1": Hello(NODE.description, "boot1")}))
        assert (view.tasks["t1"], view.tasks["t2"]) == (stopped, replica)
    view = after(view, Reports(hellos={"n1": Hello(NODE.description, "boot2")}))
    task = view.tasks["t1"]
    wanted = (4, TaskState.RUNNING) if starts else (3, TaskState[desired])
    assert (task.run, task.desired_state) == wanted
    assert view.tasks["t2"] == replica


def test_image_removal_is_pending_until_the_node_removed_it_or_it_is_used_again() -> None:
    image = Image(id="sha256:a", nodes=("n1", "n2"), pending_removal=("n1", "n2"))
    view = ClusterView.of([NODE, image])
    # A node that is back tells of its copy, under a name that no image has any more.
    copy = Image(id="sha256:a", names=("a:1",))
    back = after(view, Reports(inventories={"n1": (copy,)}))
    assert back.images["sha256:a"] == image
    gone = after(back, Reports(inventories={"n1": ()}))
    assert gone.images["sha256:a"].nodes == gone.images["sha256:a"].pending_removal == ("n2",)
    assert not after(gone, Reports(inventories={"n2": ()})).images
    pulled = view.evolve(image_name_changes(view, "n3", copy))
    assert pulled.images["sha256:a"].pending_removal == ()
    assert pulled.images["sha256:a"].names == ("a:1",)


def test_a_hello_of_a_removed_node_changes_nothing() -> None:
    assert (
        report_changes(ClusterView(), Reports(hellos={"n9": Hello(NodeDescription(), "")}), 1.0)
        == []
    )


def test_an_inventory_adds_and_withdraws_a_node() -> None:
    gone = Image(id="sha256:a", names=("a:1",), nodes=("n1",))
    shared = Image(id="sha256:b", names=("b:1",), nodes=("n1", "n2"))
    view = ClusterView.of([NODE, gone, shared])
    new = Image(id="sha256:c", names=("c:1", "b:1"))
    images = after(view, Reports(inventories={"n1": (new,)})).images
    assert "sha256:a" not in images
    assert images["sha256:b"].nodes == ("n2",)
    # What a node calls an image is for display: no name leads to it.
    assert (images["sha256:c"].names, images["sha256:c"].nodes) == ((), ("n1",))
    assert images["sha256:c"].reported_names == ("b:1", "c:1")


def test_names_given_by_users_survive_reports_of_nodes() -> None:
    known = Image(id="sha256:a", names=("a:1",), nodes=("n1",))
    view = ClusterView.of([NODE, known])
    told = Image(
        id="sha256:a", names=("a:1", "nginx:1", "x\x1b[2J", *(f"n{i}:1" for i in range(99)))
    )
    view = after(view, Reports(inventories={"n1": (told,)}))
    assert view.images["sha256:a"].names == ("a:1",)
    assert view.image_by_name("nginx:1") is None
    reported = view.images["sha256:a"].reported_names
    assert len(reported) <= MOST_NAMES
    assert not any("\x1b" in name for name in reported)


def test_an_image_known_from_before_gets_its_labels() -> None:
    known = Image(id="sha256:a", names=("a:1",), nodes=("n1",))
    view = ClusterView(nodes={"n1": NODE}, images={known.id: known})
    told = Image(id="sha256:a", names=("a:1",), labels={"tier": "db"}, command=("sh",))
    later = after(view, Reports(inventories={"n1": (told,)}))
    assert later.images[known.id].labels == {"tier": "db"}
    assert later.images[known.id].command == ("sh",)
    assert not report_changes(later, Reports(inventories={"n1": (told,)}), 100.0)
    older = replace(told, command=())
    assert not report_changes(later, Reports(inventories={"n1": (older,)}), 100.0)


def test_a_tag_moves_the_name_in_the_whole_cluster() -> None:
    old = Image(id="sha256:a", names=("web:1", "web:old"), nodes=("n1", "n2"))
    view = ClusterView.of([NODE, old])
    new = Image(id="sha256:b", names=("web:1",))
    images = view.evolve(image_name_changes(view, "n1", new)).images
    assert images["sha256:a"].names == ("web:old",)
    assert (images["sha256:b"].names, images["sha256:b"].nodes) == (("web:1",), ("n1",))


def test_changes_are_applied_to_the_read_objects() -> None:
    view = ClusterView.of([NODE, task(TaskState.ASSIGNED)])
    reports = Reports(statuses={"n1": {"t1": TaskStatus(state=TaskState.RUNNING)}})
    (change,) = report_changes(view, reports, 1.0)
    assert isinstance(change, Change)
    assert change.before is view.tasks["t1"]


def test_a_path_mtu_is_kept_until_a_new_agent_has_measured_it() -> None:
    view = after(ClusterView.of([NODE]), Reports(path_mtus={"n1": 1400, "gone": 1500}))
    assert view.nodes["n1"].description.path_mtu == 1400
    assert report_changes(view, Reports(path_mtus={"n1": 1400}), 100.0) == []
    view = after(view, Reports(hellos={"n1": Hello(NODE.description, "boot")}))
    assert view.nodes["n1"].description.path_mtu == 1400
    again = replace(NODE.description, path_mtu=1500)
    view = after(view, Reports(hellos={"n1": Hello(again, "boot")}))
    assert view.nodes["n1"].description.path_mtu == 1500


def test_host_problems_are_recorded_while_they_last() -> None:
    view = after(ClusterView.of([NODE]), Reports(troubles={"n1": "it is full", "gone": "so it is"}))
    assert view.nodes["n1"].description.trouble == "it is full"
    assert report_changes(view, Reports(troubles={"n1": "it is full"}), 100.0) == []
    assert after(view, Reports(troubles={"n1": ""})).nodes["n1"].description.trouble == ""


def tunnel_key(name: str, port: int = 51840) -> TunnelKey:
    return TunnelKey(base64.b64encode(name.encode().ljust(32)).decode(), port)


def test_the_newest_keys_of_a_node_are_kept() -> None:
    view = ClusterView.of([NODE])
    old, new = tunnel_key("old"), tunnel_key("new", 51841)
    described = replace(NODE.description, tunnel_keys=(old,))
    reports = Reports(hellos={"n1": Hello(described, "")}, keys={"n1": (old, new), "gone": (old,)})
    known = after(view, reports)
    assert known.nodes["n1"].description.tunnel_keys == (old, new)
    assert report_changes(known, Reports(keys={"n1": (old, new)}), 200.0) == []
    assert after(known, Reports(keys={"n1": ()})).nodes["n1"].description.tunnel_keys == ()


def test_a_key_that_is_not_the_nodes_own_is_not_distributed() -> None:
    theirs, mine = tunnel_key("theirs"), tunnel_key("mine")
    other = replace(NODE, id="n2", description=replace(NODE.description, tunnel_keys=(theirs,)))
    view = ClusterView.of([NODE, other])
    said = (
        TunnelKey("not base64!", 51840),
        TunnelKey(base64.b64encode(b"short").decode(), 51840),
        TunnelKey(mine.public[:-2] + "h=", 51840),
        TunnelKey(mine.public + "\n", 51840),
        replace(mine, port=0),
        theirs,
        mine,
    )
    for reports in (
        Reports(keys={"n1": said}),
        Reports(hellos={"n1": Hello(replace(NODE.description, tunnel_keys=said), "")}),
    ):
        found = after(view, reports).nodes
        assert found["n1"].description.tunnel_keys == (mine,)
        assert found["n2"].description.tunnel_keys == (theirs,)
    many = tuple(tunnel_key(str(number)) for number in range(5))
    assert after(view, Reports(keys={"n1": many})).nodes["n1"].description.tunnel_keys == many[-2:]
