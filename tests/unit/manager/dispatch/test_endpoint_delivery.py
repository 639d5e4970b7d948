# SPDX-License-Identifier: Apache-2.0
"""What nodes are told of endpoints, and what waits for their following it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.manager.dispatch.endpoint_delivery import EndpointFeed, without_stop_order
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Network, Object
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import dispatch_pb2

NETWORK = Network(id="net", name="default", subnet="10.128.0.0/16")
WEB = Service(id="web", spec=ServiceSpec(name="web"), vips={"net": "10.128.0.7"})
NODES = [Node(id=id, state=NodeState.READY) for id in ("n1", "n2")]


def running(id: str, run: int = 0, **fields: object) -> Task:
    status = TaskStatus(TaskState.RUNNING, addresses={"default": "10.128.1.2"}, run=run)
    made = Task(id=id, service_id="web", service_name="web", node_id="n1", status=status, run=run)
    return replace(made, **fields)  # type: ignore[arg-type]


class Leader:
    """A view that changes, the feed that follows it, and a clock."""

    def __init__(self, *objects: Object) -> None:
        self.time = 100.0
        self.view = ClusterView.of([NETWORK, WEB, *NODES, *objects])
        self.feed = EndpointFeed(self.view, lambda: self.time, 2.0)

    def change(self, before: Object | None, after: Object | None) -> None:
        changes = [Change(before, after)]
        self.view = self.view.evolve(changes)
        self.feed.update(self.view, changes)

    def stop(self, task: Task) -> Task:
        stopped = replace(task, desired_state=TaskState.SHUTDOWN)
        self.change(task, stopped)
        return stopped

    def revision(self) -> int:
        return self.feed.since(0)[1]


def tables(told: list[dispatch_pb2.ManagerMessage]) -> list[tuple[bool, int, int]]:
    return [
        (each.endpoints.full, each.endpoints.applies_to, each.endpoints.revision) for each in told
    ]


def test_a_new_session_gets_the_table_and_a_lagging_one_the_missed_changes() -> None:
    leader = Leader(running("a"))
    told, revision = leader.feed.since(0)
    assert tables(told) == [(True, 0, revision)]
    [entry] = told[0].endpoints.changed
    assert (entry.name, entry.vip, [each.task_id for each in entry.endpoints]) == (
        "web",
        "10.128.0.7",
        ["a"],
    )
    leader.change(None, running("b"))
    leader.change(running("a"), None)
    told, newest = leader.feed.since(revision)
    assert tables(told) == [
        (False, revision, revision + 1),
        (False, revision + 1, revision + 2),
    ]
    assert [list(each.endpoints.changed[0].gone) for each in told] == [[], ["a"]]
    assert leader.feed.since(newest) == ([], newest)
    assert tables(leader.feed.since(0)[0]) == [(True, 0, newest)]


def test_a_session_far_behind_gets_the_whole_table() -> None:
    leader = Leader()
    _, revision = leader.feed.since(0)
    for number in range(300):
        leader.change(None, running(f"t{number}"))
    told, newest = leader.feed.since(revision)
    assert tables(told) == [(True, 0, newest)]
    assert len(told[0].endpoints.changed[0].endpoints) == 300


def test_file_read_before_a_change_is_sent_unchanged() -> None:
    leader = Leader(running("a"))
    (before,), _ = leader.feed.since(0)
    leader.change(None, running("b"))
    (after,), _ = leader.feed.since(0)
    for message in (before, after, before):
        assert leader.feed.encoded(message) == message.SerializeToString()


def test_a_stop_is_withheld_until_all_nodes_have_withdrawn_the_endpoint() -> None:
    leader = Leader(running("a"), running("b"))
    assert not leader.feed.holds(running("a"))
    stopped = leader.stop(running("a"))
    assert leader.feed.holds(stopped)
    assert without_stop_order(stopped).desired_state is TaskState.RUNNING
    revision = leader.revision()
    assert not leader.feed.acknowledge("n1", revision)
    assert not leader.feed.acknowledge("n2", revision - 1)
    assert leader.feed.holds(stopped)
    assert leader.feed.acknowledge("n2", revision)
    assert not leader.feed.holds(stopped)
    assert leader.feed.deadline is None


def test_a_stop_is_withheld_before_the_feed_has_processed_it() -> None:
    leader = Leader(running("a"))
    assert leader.feed.holds(replace(running("a"), desired_state=TaskState.SHUTDOWN))


def test_a_silent_node_delays_a_stop_only_for_the_timeout() -> None:
    leader = Leader(running("a"), running("b"))
    stopped = leader.stop(running("a"))
    leader.feed.acknowledge("n1", leader.revision())
    leader.change(NODES[1], replace(NODES[1], state=NodeState.DOWN))
    assert not leader.feed.holds(stopped)
    leader.change(replace(NODES[1], state=NodeState.DOWN), NODES[1])
    stopped = leader.stop(running("b"))
    assert leader.feed.deadline == 102.0
    leader.time = 102.0
    leader.feed.update(leader.view, [])
    assert not leader.feed.holds(stopped)


def test_a_restart_is_withheld_like_a_stop() -> None:
    box = running("box", run=1, service_id="", container_name="box")
    leader = Leader(box)
    again = replace(box, run=2)
    leader.change(box, again)
    assert leader.feed.holds(again)
    assert without_stop_order(again).run == 1
    for node in NODES:
        leader.feed.acknowledge(node.id, leader.revision())
    assert not leader.feed.holds(again)


def test_a_task_that_ends_by_itself_is_not_withheld() -> None:
    leader = Leader(running("a"), running("b"))
    ended = replace(running("a"), status=TaskStatus(TaskState.FAILED))
    leader.change(running("a"), ended)
    assert not leader.feed.holds(replace(ended, desired_state=TaskState.SHUTDOWN))
    leader.change(WEB, replace(WEB, removed=True))
    assert not leader.feed.holds(leader.stop(running("b")))


def test_new_leader_does_not_know_followers_of_its_predecessor() -> None:
    stopped = replace(running("a"), desired_state=TaskState.SHUTDOWN)
    leader = Leader(stopped)
    assert leader.feed.holds(stopped)
    for node in NODES:
        leader.feed.acknowledge(node.id, leader.revision())
    assert not leader.feed.holds(stopped)
