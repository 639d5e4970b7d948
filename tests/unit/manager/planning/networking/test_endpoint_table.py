# SPDX-License-Identifier: Apache-2.0
"""The table of endpoints, and that following the changes gives what a fresh look would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from builders import node, service, task, task_spec
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.manager.planning.networking.endpoint_table import (
    Endpoint,
    Entry,
    Key,
    Table,
    TableChange,
)
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import NodeState
from orchestrator.model.objects import Network, Object
from orchestrator.model.services import Service
from orchestrator.model.specs import NetworkAttachment
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task, TaskStatus

DEFAULT = Network(id="net", name="default", subnet="10.128.0.0/16")
BACK = Network(id="back", name="back", subnet="10.200.0.0/16")
WEB = replace(service("web", 3), vips={"net": "10.128.0.7"})


def running(id: str, *, of: Service = WEB, address: str = "10.128.1.2", **fields: object) -> Task:
    made = task(id, of=of, node_id="n1", **fields)  # type: ignore[arg-type]
    return replace(made, status=replace(made.status, addresses={"default": address}))


def ready(table: Table, key: Key = ("web-id", "net")) -> list[str]:
    return sorted(each.task_id for each in table.endpoints(key).values() if each.ready)


def test_a_running_task_of_a_service_is_a_ready_endpoint() -> None:
    view = ClusterView.of([DEFAULT, node("n1"), WEB, running("a", slot=2)])
    change = Table.of(view).whole()
    [(entry, endpoints, gone)] = [(c.entry, c.endpoints, c.gone) for c in change.changed]
    assert entry == Entry("web-id", "net", "web", vip="10.128.0.7")
    assert endpoints == (Endpoint("a", "n1", 2, "web.2", (), "10.128.1.2", "", True),)
    assert gone == ()


def test_a_task_that_is_probed_is_ready_once_it_is_healthy() -> None:
    found = []
    for health in Health:
        made = running("a")
        made = replace(made, status=replace(made.status, health=health))
        view = ClusterView.of([DEFAULT, node("n1"), WEB, made])
        found += [health] * len(ready(Table.of(view)))
    assert found == [Health.NONE, Health.HEALTHY]


def test_a_service_without_tasks_is_an_entry_all_the_same() -> None:
    change = Table.of(ClusterView.of([DEFAULT, WEB])).whole()
    assert [(each.entry.name, each.endpoints) for each in change.changed] == [("web", ())]


def test_stopping_starting_and_lost_tasks_are_not_ready() -> None:
    stopped = replace(running("stopped"), desired_state=TaskState.SHUTDOWN)
    starting = replace(
        running("starting"), status=replace(running("x").status, state=TaskState.STARTING)
    )
    lost = replace(running("lost"), node_id="n2")
    view = ClusterView.of(
        [DEFAULT, node("n1"), node("n2", state=NodeState.DOWN), WEB, stopped, starting, lost]
    )
    table = Table.of(view)
    assert set(table.endpoints(("web-id", "net"))) == {"stopped", "starting", "lost"}
    assert ready(table) == []
    assert not table.serving("stopped")


def test_ended_tasks_and_earlier_runs_are_removed_from_the_table() -> None:
    table = Table.of(ClusterView.of([DEFAULT, node("n1"), WEB, running("a"), running("b")]))
    ended = replace(running("a"), status=TaskStatus(TaskState.FAILED))
    view = ClusterView.of([DEFAULT, node("n1"), WEB, ended, running("b")])
    change = table.update(view, [Change(running("a"), ended)])
    assert [(each.endpoints, each.gone) for each in change.changed] == [((), ("a",))]
    box = running("box", of=Service(), container_name="box", slot=0, run=2)
    box = replace(box, status=replace(box.status, run=1))
    view = ClusterView.of([DEFAULT, node("n1"), box])
    assert ready(Table.of(view), ("box", "net")) == []


def test_a_container_is_an_entry_with_its_aliases_in_each_network() -> None:
    spec = task_spec(
        networks=(NetworkAttachment("default", aliases=("db",)), NetworkAttachment("back"))
    )
    box = running("box", of=Service(), container_name="box", slot=0, spec=spec)
    both = {"default": "10.128.1.9", "back": "10.200.1.9"}
    box = replace(box, status=replace(box.status, addresses=both, addresses6={"back": "fd00::9"}))
    table = Table.of(ClusterView.of([DEFAULT, BACK, node("n1"), box]))
    found = {each.entry.network_id: each for each in table.whole().changed}
    assert found["net"].entry.container
    assert found["net"].entry.name == "box"
    assert found["net"].endpoints[0].aliases == ("db",)
    assert found["back"].endpoints[0].aliases == ()
    assert found["back"].endpoints[0].address6 == "fd00::9"


def test_a_service_that_is_being_removed_is_gone_at_once() -> None:
    before = ClusterView.of([DEFAULT, node("n1"), WEB, running("a")])
    table = Table.of(before)
    removed = Change(WEB, replace(WEB, removed=True))
    change = table.update(before.evolve([removed]), [removed])
    assert change == TableChange((), (("web-id", "net"),))
    assert not table.serving("a")


def test_change_of_one_task_leaves_others_out() -> None:
    tasks = [running(f"t{number}", slot=number) for number in range(1, 2_000)]
    view = ClusterView.of([DEFAULT, node("n1"), WEB, *tasks])
    table = Table.of(view)
    told = Change(tasks[5], replace(tasks[5], desired_state=TaskState.SHUTDOWN))
    [change] = table.update(view.evolve([told]), [told]).changed
    assert [each.task_id for each in change.endpoints] == [tasks[5].id]


STATES = (TaskState.ASSIGNED, TaskState.STARTING, TaskState.RUNNING, TaskState.FAILED)
ADDRESSES = ({}, {"default": "10.128.1.1"}, {"default": "10.128.1.1", "back": "10.200.1.1"})
SERVICES = (
    WEB,
    replace(WEB, removed=True),
    replace(WEB, vips={"net": "10.128.0.8"}),
    service("web", spec=task_spec(networks=(NetworkAttachment("back"),))),
)


@st.composite
def objects(draw: st.DrawFn) -> Object:
    kind = draw(st.sampled_from(["task", "box", "service", "node", "network"]))
    if kind == "service":
        return draw(st.sampled_from(SERVICES))
    if kind == "node":
        return node("n1", state=draw(st.sampled_from([NodeState.READY, NodeState.DOWN])))
    if kind == "network":
        return BACK
    id = draw(st.sampled_from(["a", "b"]))
    fields = {"run": draw(st.integers(0, 1))} if kind == "box" else {}
    of = WEB if kind == "task" else Service()
    made = running(f"{kind}-{id}", of=of, container_name="" if kind == "task" else id, **fields)
    return replace(
        made,
        desired_state=draw(st.sampled_from([TaskState.RUNNING, TaskState.SHUTDOWN])),
        status=TaskStatus(
            draw(st.sampled_from(STATES)), addresses=draw(st.sampled_from(ADDRESSES))
        ),
    )


class Follower:
    """A node's copy of the table, made from nothing but what it was sent."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        self.endpoints: dict[Key, dict[str, Endpoint]] = {}

    def take(self, change: TableChange) -> None:
        for key in change.removed:
            del self.entries[key], self.endpoints[key]
        for each in change.changed:
            self.entries[each.entry.key] = each.entry
            held = self.endpoints.setdefault(each.entry.key, {})
            for id in each.gone:
                held.pop(id, None)
            held.update({endpoint.task_id: endpoint for endpoint in each.endpoints})


@given(st.lists(st.lists(st.tuples(objects(), st.booleans()), max_size=3), max_size=12))
def test_following_changes_equals_a_full_computation(
    steps: Sequence[Sequence[tuple[Object, bool]]],
) -> None:
    view = ClusterView.of([DEFAULT, BACK, node("n1"), WEB])
    table, follower = Table.of(view), Follower()
    follower.take(table.whole())
    for step in steps:
        seen: dict[tuple[type, str], tuple[Object | None, Object | None]] = {}
        for item, delete in step:
            known = {(type(each), each.id): each for each in view.objects()}
            before = seen.get((type(item), item.id), (known.get((type(item), item.id)),))[0]
            seen[type(item), item.id] = before, None if delete else item
        changes = [Change(*pair) for pair in seen.values() if pair != (None, None)]
        view = view.evolve(changes)
        follower.take(table.update(view, changes))
        fresh = Table.of(view)
        assert table.whole() == fresh.whole()
        assert follower.entries == {each.entry.key: each.entry for each in fresh.whole().changed}
        assert follower.endpoints == {
            each.entry.key: {endpoint.task_id: endpoint for endpoint in each.endpoints}
            for each in fresh.whole().changed
        }
