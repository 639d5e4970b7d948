# SPDX-License-Identifier: Apache-2.0
"""What a manager counts, as Prometheus reads it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.instrumented_kv import InstrumentedKv
from orchestrator.manager.store.kv import StoreUnavailable
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.manager.telemetry.event_log import EventLog
from orchestrator.manager.telemetry.metrics import (
    LAG_PERIOD,
    ClusterCollector,
    EventLoopLag,
    ManagerState,
    PlanningMetrics,
    StoreMetrics,
    TaskMetrics,
    WithDeprecatedNames,
)
from orchestrator.model.administration.backups import BackupSchedule, BackupStatus
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.nodes import Availability, Node, NodeDescription, NodeState
from orchestrator.model.objects import Cluster, Object
from orchestrator.model.scheduling.queues import Queue
from orchestrator.model.services import Service
from orchestrator.model.specs import STACK_LABEL, Resources, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task, TaskStatus

NOW = 1000.0
NODE = Node(
    id="n1",
    state=NodeState.READY,
    description=NodeDescription(hostname="host1", resources=Resources(2048, 1 << 30)),
)
WEB = Service(id="s1", spec=ServiceSpec(name="web", replicas=3, labels={STACK_LABEL: "shop"}))


def task(id: str, state: TaskState, **fields: Any) -> Task:
    health = fields.pop("health", Health.NONE)
    return Task(
        id=id,
        service_id="s1",
        service_name="web",
        node_id="n1" if state >= TaskState.ASSIGNED else "",
        spec=TaskSpec(reservation=Resources(512, 1 << 20)),
        status=TaskStatus(state, health=health),
        **fields,
    )


def registry(*objects: Object) -> CollectorRegistry:
    made = CollectorRegistry()
    view = ClusterView.of(objects)
    state = ManagerState(True, 12, 3, 1, 4, 2)
    made.register(ClusterCollector(lambda: view, lambda: state, lambda: NOW))
    return made


def test_the_cluster_is_counted() -> None:
    found = registry(
        NODE,
        replace(NODE, id="n2", state=NodeState.DOWN, availability=Availability.DRAIN),
        WEB,
        task("a", TaskState.RUNNING),
        task("b", TaskState.PENDING),
        task("c", TaskState.FAILED),
        Manager(
            id="m1",
            hostname="host1",
            backups=BackupStatus(succeeded_at=90.0, size=7, failures=2),
        ),
        ManagerPresence(id="m1"),
        Manager(id="m2"),
        Manager(id="m3", joining=True),
        Cluster(id="c", backup_schedule=BackupSchedule(every=60.0), queues=(Queue("night"),)),
        Orphan(id="o"),
    ).get_sample_value
    for state in ("ready", "down", "joining"):
        assert found("orc_managers", {"state": state}) == 1
    of = {"manager": "host1", "manager_id": "m1"}
    assert found("orc_backup_last_success_timestamp_seconds", of) == 90
    assert found("orc_backup_size_bytes", of) == 7
    assert found("orc_backup_failures_total", of) == 2
    assert found("orc_backup_schedule_period_seconds") == 60
    assert found("orc_orphans") == 1
    assert found("orc_queue_share_ratio", {"queue": "night"}) == 0
    assert found("orc_queue_tasks", {"queue": "night", "state": "waiting"}) == 0
    assert found("orc_nodes", {"state": "ready", "availability": "active"}) == 1
    assert found("orc_nodes", {"state": "down", "availability": "drain"}) == 1
    assert found("orc_nodes", {"state": "unknown", "availability": "active"}) == 0
    node = {"node": "host1", "node_id": "n1"}
    assert found("orc_node_up", node) == 1
    assert found("orc_node_cpu_shares", node) == 2048
    assert found("orc_node_cpu_shares_reserved", node) == 512
    assert found("orc_node_memory_reserved_bytes", node) == 1 << 20
    assert found("orc_node_tasks", node) == 1
    web = {"service": "web", "stack": "shop"}
    assert found("orc_service_tasks_desired", web) == 3
    assert found("orc_service_tasks_running", web) == 1
    assert found("orc_tasks", {"state": "failed"}) == 1
    assert found("orc_manager_leader") == 1
    assert found("orc_manager_term") == 12
    assert found("orc_manager_agent_sessions") == 3
    assert found("orc_manager_pending_reports") == 1
    assert found("orc_manager_pending_assignments") == 4
    assert found("orc_manager_node_streams") == 2


@pytest.mark.parametrize(
    ("waits", "reason"),
    [
        (task("a", TaskState.PENDING), "placement"),
        (task("a", TaskState.PENDING, not_before=NOW + 9.0), "restart_delay"),
        (task("a", TaskState.PENDING, not_before=NOW - 9.0), "placement"),
        (task("a", TaskState.ASSIGNED), "node"),
        (task("a", TaskState.PREPARING), "preparation"),
        (task("a", TaskState.RUNNING, health=Health.STARTING), "health"),
    ],
)
def test_a_task_that_is_not_ready_is_counted_by_reason(waits: Task, reason: str) -> None:
    found = registry(NODE, WEB, waits).get_sample_value
    reasons = ("placement", "restart_delay", "node", "preparation", "health")
    counts = {each: found("orc_tasks_not_ready", {"reason": each}) for each in reasons}
    assert counts == {each: float(each == reason) for each in reasons}


@pytest.mark.parametrize(
    "busy",
    [
        task("a", TaskState.RUNNING),
        task("a", TaskState.COMPLETE),
        task("a", TaskState.PENDING, desired_state=TaskState.REMOVE),
    ],
)
def test_a_ready_task_is_not_counted(busy: Task) -> None:
    found = registry(NODE, WEB, busy).get_sample_value
    assert found("orc_tasks_not_ready", {"reason": "placement"}) == 0


def test_durations_are_observed_once_per_task() -> None:
    made = CollectorRegistry()
    latencies = TaskMetrics(Cache(MemoryKv(lambda: 0.0)), made)
    wished = task("a", TaskState.PENDING, created_at=100.0, not_before=110.0)
    placed = replace(wished, node_id="n1", status=TaskStatus(TaskState.ASSIGNED, at=110.5))
    runs = replace(placed, status=TaskStatus(TaskState.RUNNING, at=112.1, started_at=112.0))
    ended = replace(runs, status=TaskStatus(TaskState.FAILED, at=113.0, oom_killed=True))
    latencies.take([Change(None, wished)])
    latencies.take([Change(wished, placed), Change(placed, placed)])
    latencies.take([Change(placed, runs), Change(runs, ended), Change(ended, None)])
    found = made.get_sample_value
    assert found("orc_task_scheduling_duration_seconds_count") == 1
    assert found("orc_task_scheduling_duration_seconds_sum") == pytest.approx(0.5)
    assert found("orc_task_startup_duration_seconds_count") == 1
    assert found("orc_task_startup_duration_seconds_sum") == pytest.approx(2.0)
    assert found("orc_task_terminations_total", {"state": "failed"}) == 1
    assert found("orc_task_terminations_total", {"state": "complete"}) == 0
    assert found("orc_task_oom_kills_total") == 1


@pytest.mark.parametrize(("run", "times"), [(1, 1), (2, 0)])
def test_only_the_first_run_of_a_container_is_timed(run: int, times: int) -> None:
    made = CollectorRegistry()
    latencies = TaskMetrics(Cache(MemoryKv(lambda: 0.0)), made)
    box = Task(id="c1", created_at=100.0, container_name="box", run=run)
    placed = replace(box, node_id="n1", status=TaskStatus(TaskState.ASSIGNED, at=100.5, run=run))
    runs = replace(placed, status=TaskStatus(TaskState.RUNNING, started_at=102.0, run=run))
    latencies.take([Change(None, box), Change(box, placed), Change(placed, runs)])
    found = made.get_sample_value
    assert found("orc_task_scheduling_duration_seconds_count") == times
    assert found("orc_task_startup_duration_seconds_count") == times


class AwayKv(MemoryKv):
    async def get(self, key: str) -> Any:
        raise StoreUnavailable("nobody answers")


async def test_store_requests_are_timed_and_failures_counted() -> None:
    made = CollectorRegistry()
    times = StoreMetrics(made)
    kv = InstrumentedKv(AwayKv(lambda: 0.0), times.took, times.failed)
    await kv.list("/orc/")
    with pytest.raises(StoreUnavailable):
        await kv.get("/orc/x")
    found = made.get_sample_value
    assert found("orc_store_request_duration_seconds_count", {"operation": "list"}) == 1
    assert found("orc_store_request_errors_total", {"operation": "get"}) == 1
    assert found("orc_store_request_errors_total", {"operation": "list"}) is None


async def test_a_long_callback_shows_as_event_loop_lag() -> None:
    made = CollectorRegistry()
    lag = asyncio.create_task(EventLoopLag(made).measure())
    slow = asyncio.get_running_loop().call_later(LAG_PERIOD / 2, time.sleep, 3 * LAG_PERIOD)
    async with asyncio.timeout(60):
        while not made.get_sample_value("orc_manager_event_loop_lag_seconds_sum"):  # noqa: ASYNC110
            await asyncio.sleep(LAG_PERIOD)
    lag.cancel()
    assert not slow.cancelled()
    late = made.get_sample_value("orc_manager_event_loop_lag_seconds_bucket", {"le": "0.1"})
    every = made.get_sample_value("orc_manager_event_loop_lag_seconds_count")
    assert late is not None
    assert every is not None
    assert late < every


def test_planning_problems_are_metrics_and_events() -> None:
    made, cache = CollectorRegistry(), Cache(MemoryKv(lambda: NOW))
    cache.view = ClusterView.of([WEB])
    events = EventLog(cache, lambda: NOW)
    planning = PlanningMetrics(made, events)
    for _ in range(2):  # said once, however often it is tried again
        planning.set_aside({"s1": "ValueError: a defect"})
        planning.store_failed("the database is full")
    assert made.get_sample_value("orc_planning_failed_services") == 1
    assert made.get_sample_value("orc_store_read_only") == 1
    planning.set_aside({})
    planning.store_failed("")
    said = [(each.type, each.action, each.name, each.attributes) for each in events.since(0)]
    assert said == [
        ("service", "set_aside", "web", {"reason": "ValueError: a defect"}),
        ("store", "read_only", "store", {"reason": "the database is full"}),
        ("store", "writable", "store", {}),
    ]
    assert made.get_sample_value("orc_planning_failed_services") == 0
    assert made.get_sample_value("orc_store_read_only") == 0


def test_gauges_of_the_leader_are_reset_when_its_term_ends() -> None:
    made, cache = CollectorRegistry(), Cache(MemoryKv(lambda: NOW))
    events = EventLog(cache, lambda: NOW)
    planning = PlanningMetrics(made, events)
    planning.set_aside({"s1": "ValueError: a defect"})
    planning.store_failed("the database is full")
    planning.suspected(3)
    planning.ended()
    names = ("orc_planning_failed_services", "orc_store_read_only", "orc_nodes_suspected")
    assert [made.get_sample_value(name) for name in names] == [0, 0, 0]
    assert [each.action for each in events.since(0)] == ["set_aside", "read_only"]


def test_a_renamed_metric_is_exported_under_its_old_name_too() -> None:
    made = registry(NODE, WEB, task("a", TaskState.PENDING))
    store = StoreMetrics(made)
    store.took("get", 0.001)
    store.failed("get")
    text = generate_latest(WithDeprecatedNames(made)).decode()
    assert 'orc_node_cpu_shares{node="host1",node_id="n1"} 2048.0' in text
    assert 'orc_node_shares{node="host1",node_id="n1"} 2048.0' in text
    assert "# HELP orc_node_shares Deprecated: use orc_node_cpu_shares\n" in text
    assert 'orc_tasks_waiting{reason="placement"} 1.0' in text
    assert 'orc_store_request_seconds_count{operation="get"} 1.0' in text
    assert 'orc_store_failures_total{operation="get"} 1.0' in text
    assert "Deprecated: use orc_store_request_errors_total\n" in text
