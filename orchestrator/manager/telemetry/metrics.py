# SPDX-License-Identifier: Apache-2.0
"""The manager's metrics, as Prometheus reads them.

Gauges of the cluster are counted from the cache at each scrape. Every manager reports the same
ones, since all follow one store; a dashboard takes the leader's (`orc_manager_leader == 1`).
Durations are observed from changes as they happen (`TaskMetrics`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator import __version__
from orchestrator.identity.tls import Identity
from orchestrator.manager.audit.trail import AuditTrail
from orchestrator.manager.planning.disruptions import disruptions_left_in, was_preempted
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.convergence import desired_tasks, running_tasks
from orchestrator.manager.planning.reconcile.job_queues import has_queues
from orchestrator.manager.planning.reports.claims import Claim
from orchestrator.manager.planning.scheduling.capacity import node_usage
from orchestrator.manager.planning.scheduling.fair_shares import FairShares, queue_counts
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.telemetry.event_log import EventLog
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.scheduling.disruptions import DisruptionBudget
from orchestrator.model.services import UpdateState
from orchestrator.model.specs import STACK_LABEL
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
LAG_PERIOD = 0.1
_STORE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


@dataclass(frozen=True, slots=True)
class ManagerState:
    """The manager's own state at a scrape."""

    leader: bool
    term: int
    """Revision of the store at which its term began; 0 while it does not lead."""
    sessions: int
    """Agents in session with it."""
    reports: int
    """Reports of agents that are not committed yet."""
    orders: int
    """Messages to agents that are not sent yet."""
    streams: int
    """Open streams to nodes: logs, terminals, copies."""


class StoreMetrics:
    """Durations and failures of requests to the store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "orc_store_request_duration_seconds",
            "Time from a request to the store to its answer",
            labelnames=("operation",),
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self._failures = CounterMetric(
            "orc_store_request_errors",
            "Requests to the store that were not answered in time",
            labelnames=("operation",),
            registry=registry,
        )

    def took(self, operation: str, seconds: float) -> None:
        """Observe a request that was answered."""
        self._seconds.labels(operation).observe(seconds)

    def failed(self, operation: str) -> None:
        """Count a request that was not answered."""
        self._failures.labels(operation).inc()


class RevocationMetrics:
    """Calls with revoked certificates."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = CounterMetric(
            "orc_manager_revoked_calls",
            "Calls refused or ended because the caller's certificate is revoked",
            labelnames=("role",),
            registry=registry,
        )

    def refused(self, identity: Identity) -> None:
        """Count a call that was refused or ended."""
        self._calls.labels(identity.role).inc()


class AuditMetrics:
    """Entries of the audit trail."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._entries = CounterMetric(
            "orc_audit_entries",
            "Calls recorded in the audit trail",
            registry=registry,
        )
        self._lost = CounterMetric(
            "orc_audit_entries_dropped",
            "Calls that could not be written to the audit trail, for example on a full disk",
            registry=registry,
        )

    def count(self, trail: AuditTrail) -> None:
        """Count the entries of a trail."""
        trail.recorded = self._entries.inc
        trail.lost = self._lost.inc


class EventLoopLag:
    """Lag of the event loop: how late it runs what is due."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "orc_manager_event_loop_lag_seconds",
            "Lag of the event loop, sampled",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )

    async def measure(self) -> None:
        """Sample every `LAG_PERIOD` seconds, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PERIOD
            await asyncio.sleep(LAG_PERIOD)
            self._seconds.observe(max(0.0, loop.time() - due))


class PlanningMetrics:
    """The leader's planning rounds (a `planning_loop.Observer`)."""

    def __init__(self, registry: CollectorRegistry, events: EventLog) -> None:
        self._events = events
        self._reasons: Mapping[str, str] = {}
        self._seconds = Histogram(
            "orc_planning_duration_seconds",
            "Duration of one planning round, without the commit",
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self._conflicts = CounterMetric(
            "orc_planning_conflicts",
            "Plans that were recomputed because of concurrent changes",
            registry=registry,
        )
        self._read_only = Gauge(
            "orc_store_read_only",
            "1 while the store rejects writes, for example because it is full",
            registry=registry,
        )
        self._aside = Gauge(
            "orc_planning_failed_services",
            "Services that cannot be planned or committed; they are retried with backoff",
            registry=registry,
        )
        self._suspected = Gauge(
            "orc_nodes_suspected",
            "Silent nodes that do not count as down yet, because too many are silent at once",
            registry=registry,
        )
        self._false_claims = CounterMetric(
            "orc_node_reports_rejected",
            "Claims in reports of nodes that were rejected, by kind",
            labelnames=("kind",),
            registry=registry,
        )
        for kind in Claim:
            self._false_claims.labels(kind)
        self._store_error = ""

    def took(self, seconds: float) -> None:
        """Observe a round."""
        self._seconds.observe(seconds)

    def conflicted(self) -> None:
        """Count a conflict."""
        self._conflicts.inc()

    def store_failed(self, error: str) -> None:
        """Set why the store rejects writes; empty when it accepts them."""
        if error and error != self._store_error:
            self._events.read_only(error)
        elif self._store_error and not error:
            self._events.writable()
        self._store_error = error
        self._read_only.set(bool(error))

    def set_aside(self, services: Mapping[str, str]) -> None:
        """Set the services that cannot be planned or committed: id → reason."""
        for id, why in services.items():
            if self._reasons.get(id) != why:
                self._events.set_aside(id, why)
        self._reasons = services
        self._aside.set(len(services))

    def suspected(self, silent: int) -> None:
        """Set the number of suspected nodes."""
        self._suspected.set(silent)

    def refused(self, kind: str) -> None:
        """Count a rejected claim."""
        self._false_claims.labels(kind).inc()

    def ended(self) -> None:
        """Reset the gauges: this manager no longer leads."""
        self._store_error, self._reasons = "", {}
        for gauge in (self._read_only, self._aside, self._suspected):
            gauge.set(0)


class TaskMetrics:
    """Durations of scheduling and start-up, and how tasks end."""

    def __init__(self, cache: Cache, registry: CollectorRegistry) -> None:
        self._cache = cache
        self._scheduling = Histogram(
            "orc_task_scheduling_duration_seconds",
            "Time from a task's creation (or the end of its restart delay) to its node",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._convergence = Histogram(
            "orc_task_startup_duration_seconds",
            "Time from a task's creation (or the end of its restart delay) until it runs",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._ends = CounterMetric(
            "orc_task_terminations",
            "Terminated tasks, by final state",
            labelnames=("state",),
            registry=registry,
        )
        self._ooms = CounterMetric(
            "orc_task_oom_kills", "Tasks killed by the kernel's OOM killer", registry=registry
        )
        self._moves = CounterMetric(
            "orc_task_moves",
            "Moves of running tasks to other nodes by rebalancing",
            registry=registry,
        )
        self._preemptions = CounterMetric(
            "orc_task_preemptions",
            "Tasks stopped to make room for tasks of higher priority",
            registry=registry,
        )
        for state in (state for state in TaskState if is_terminal(state)):
            self._ends.labels(state.name.lower())

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Observe changes while the body runs."""
        async with self._cache.subscribe() as feed:
            feed.on_change = lambda: self.take(feed.take())
            yield

    def take(self, changes: Iterable[Change]) -> None:
        """Observe changes."""
        for change in changes:
            if isinstance(change.after, Task):
                before = change.before if isinstance(change.before, Task) else None
                self._task(before, change.after)

    def _task(self, before: Task | None, after: Task) -> None:
        if before is None and after.moved_from:
            self._moves.inc()
        if was_preempted(before, after):
            self._preemptions.inc()
        was = before.status.state if before is not None else TaskState.NEW
        now = after.status.state
        if now <= was:
            return
        requested = max(after.created_at, after.not_before)
        # The time at which a container was asked to run again is not stored.
        first = after.run <= 1
        if first and was < TaskState.ASSIGNED <= now and after.node_id:
            self._scheduling.observe(max(after.status.at - requested, 0.0))
        if first and was < TaskState.RUNNING <= now and after.status.started_at:
            self._convergence.observe(max(after.status.started_at - requested, 0.0))
        if is_terminal(now):
            self._ends.labels(now.name.lower()).inc()
            if after.status.oom_killed:
                self._ooms.inc()


class ClusterCollector(Collector):
    """Gauges of the cluster's current state."""

    def __init__(
        self,
        view: Callable[[], ClusterView],
        state: Callable[[], ManagerState],
        now: Callable[[], float],
    ) -> None:
        """`now` is the wall clock, in seconds since the epoch."""
        self._view = view
        self._state = state
        self._now = now

    def collect(self) -> Iterable[Metric]:
        """All families."""
        view, state = self._view(), self._state()
        version = GaugeMetricFamily("orc_manager_info", "This manager", labels=("version",))
        version.add_metric([__version__], 1)
        yield version
        for name, help, value in (
            ("orc_manager_leader", "1 if this manager leads", state.leader),
            (
                "orc_manager_term",
                "Store revision at which its term began, 0 without a term",
                state.term,
            ),
            ("orc_manager_agent_sessions", "Agents in session with this manager", state.sessions),
            (
                "orc_manager_pending_reports",
                "Reports of agents that are not committed yet",
                state.reports,
            ),
            (
                "orc_manager_pending_assignments",
                "Messages to agents that are not sent yet",
                state.orders,
            ),
            ("orc_manager_node_streams", "Open streams to nodes", state.streams),
            ("orc_networks", "Networks", len(view.networks)),
            ("orc_volumes", "Volumes", len(view.volumes)),
            (
                "orc_orphans",
                "Running containers that the restored cluster does not know",
                len(view.orphans),
            ),
            ("orc_images", "Images", len(view.images)),
            ("orc_services", "Services", sum(not s.removed for s in view.services.values())),
        ):
            yield GaugeMetricFamily(name, help, value)
        yield _managers(view)
        yield from _backups(view)
        yield _undecodable(view)
        yield from _nodes(view)
        yield from _services(view)
        yield from _tasks(view, self._now())
        yield from _queues(view)


def _queues(view: ClusterView) -> Iterable[Metric]:
    labels = ("queue",)
    share = GaugeMetricFamily(
        "orc_queue_share_ratio",
        "Dominant share of the cluster that the queue's tasks reserve, divided by its weight",
        labels=labels,
    )
    tasks = GaugeMetricFamily(
        "orc_queue_tasks",
        "Tasks of the queue's jobs, by whether they have a node or wait",
        labels=(*labels, "state"),
    )
    if has_queues(view):
        shares, counts = FairShares(view), queue_counts(view)
        for name, count in sorted(counts.items()):
            share.add_metric([name], shares.share(name))
            tasks.add_metric([name, "placed"], count.placed)
            tasks.add_metric([name, "waiting"], count.waiting)
    yield from (share, tasks)


def _managers(view: ClusterView) -> Metric:
    counts = GaugeMetricFamily("orc_managers", "Managers of the cluster", labels=("state",))
    number = Counter(
        "joining" if each.joining else "ready" if each.id in view.manager_presence else "down"
        for each in view.managers.values()
    )
    for state in ("ready", "down", "joining"):
        counts.add_metric([state], number[state])
    return counts


def _backups(view: ClusterView) -> Iterable[Metric]:
    # Two managers may have the same hostname: a lost one, and the one in its place.
    labels = ("manager", "manager_id")
    period = GaugeMetricFamily(
        "orc_backup_schedule_period_seconds",
        "Time from one scheduled backup to the next, 0 without a schedule",
    )
    period.add_metric([], view.cluster.backup_schedule.every if view.cluster else 0)
    newest = GaugeMetricFamily(
        "orc_backup_last_success_timestamp_seconds",
        "When the manager's newest scheduled backup was made, 0 if none was",
        labels=labels,
    )
    size = GaugeMetricFamily(
        "orc_backup_size_bytes", "Size of the manager's newest scheduled backup", labels=labels
    )
    failures = CounterMetricFamily(
        "orc_backup_failures", "Scheduled backups of the manager that failed", labels=labels
    )
    for manager in view.managers.values():
        status = manager.backups
        of = [manager.hostname, manager.id]
        newest.add_metric(of, status.succeeded_at)
        size.add_metric(of, status.size)
        failures.add_metric(of, status.failures)
    yield from (period, newest, size, failures)


def _undecodable(view: ClusterView) -> Metric:
    counts = GaugeMetricFamily(
        "orc_store_undecodable_objects",
        "Stored objects that this manager cannot decode and does not modify",
        labels=("kind",),
    )
    number = Counter(each.kind or "unknown" for each in view.quarantined.values())
    for kind in sorted({*number, "task", "service", "node"}):
        counts.add_metric([kind], number[kind])
    return counts


def _nodes(view: ClusterView) -> Iterable[Metric]:
    labels = ("node", "node_id")
    counts = GaugeMetricFamily("orc_nodes", "Nodes", labels=("state", "availability"))
    number = Counter((node.state, node.availability) for node in view.nodes.values())
    for state in NodeState:
        for availability in Availability:
            counts.add_metric(
                [state.name.lower(), availability.name.lower()], number[state, availability]
            )
    families = {
        name: GaugeMetricFamily(f"orc_node_{name}", help, labels=labels)
        for name, help in (
            ("up", "1 if the node is up"),
            ("cpu_shares", "CPU shares of the node, 1024 per core"),
            ("cpu_shares_reserved", "CPU shares reserved by its tasks"),
            ("memory_bytes", "Memory of the node"),
            ("memory_reserved_bytes", "Memory reserved by its tasks"),
            ("tasks", "Tasks that occupy resources of the node"),
        )
    }
    for node in view.nodes.values():
        usage, offered = node_usage(view, node.id), node.description.resources
        for name, value in (
            ("up", node.state is NodeState.READY),
            ("cpu_shares", offered.shares),
            ("cpu_shares_reserved", usage.reserved.shares),
            ("memory_bytes", offered.memory),
            ("memory_reserved_bytes", usage.reserved.memory),
            ("tasks", usage.tasks),
        ):
            families[name].add_metric([node.description.hostname, node.id], value)
    yield counts
    yield from families.values()


def _services(view: ClusterView) -> Iterable[Metric]:
    labels = ("service", "stack")
    desired = GaugeMetricFamily("orc_service_tasks_desired", "Desired tasks", labels=labels)
    running = GaugeMetricFamily("orc_service_tasks_running", "Running tasks", labels=labels)
    disruptions = GaugeMetricFamily(
        "orc_service_disruptions_allowed",
        "Working tasks that may be stopped now within the service's disruption budget",
        labels=labels,
    )
    updates = GaugeMetricFamily(
        "orc_service_update",
        "1 for the state of the newest update",
        labels=(*labels, "state"),
    )
    for service in view.services.values():
        if service.removed:
            continue
        of = [service.spec.name, service.spec.labels.get(STACK_LABEL, "")]
        desired.add_metric(of, desired_tasks(view, service))
        running.add_metric(of, running_tasks(view, service.id))
        if service.spec.disruption != DisruptionBudget():
            disruptions.add_metric(of, disruptions_left_in(view, service))
        if service.update.state is not UpdateState.NONE:
            updates.add_metric([*of, service.update.state.name.lower()], 1)
    yield from (desired, running, disruptions, updates)


def _tasks(view: ClusterView, now: float) -> Iterable[Metric]:
    states = GaugeMetricFamily("orc_tasks", "Tasks by state", labels=("state",))
    number = Counter(task.status.state for task in view.tasks.values())
    for state in TaskState:
        if state is not TaskState.REMOVE:
            states.add_metric([state.name.lower()], number[state])
    yield states
    waiting = GaugeMetricFamily(
        "orc_tasks_not_ready",
        "Tasks that should run and are not ready, by reason",
        labels=("reason",),
    )
    reasons = Counter(_reason(task, now) for task in view.tasks.values())
    for reason in ("placement", "restart_delay", "node", "preparation", "health"):
        waiting.add_metric([reason], reasons[reason])
    yield waiting


def _reason(task: Task, now: float) -> str:
    """Why a task that should run is not ready, as a label value; empty when it is ready."""
    state = task.status.state
    if task.desired_state > TaskState.RUNNING or is_terminal(state) or task.status.works:
        return ""
    if state < TaskState.ASSIGNED:
        return "restart_delay" if task.not_before > now else "placement"
    if state < TaskState.ACCEPTED:
        return "node"
    return "health" if state is TaskState.RUNNING else "preparation"


DEPRECATED_NAMES = {
    "orc_service_tasks_desired": "orc_service_tasks_wanted",
    "orc_tasks_not_ready": "orc_tasks_waiting",
    "orc_task_terminations": "orc_task_ends",
    "orc_task_oom_kills": "orc_task_ooms",
    "orc_task_scheduling_duration_seconds": "orc_scheduling_seconds",
    "orc_task_startup_duration_seconds": "orc_convergence_seconds",
    "orc_manager_agent_sessions": "orc_manager_sessions",
    "orc_manager_pending_reports": "orc_manager_reports_waiting",
    "orc_manager_pending_assignments": "orc_manager_orders_waiting",
    "orc_manager_node_streams": "orc_manager_streams",
    "orc_planning_duration_seconds": "orc_planning_seconds",
    "orc_nodes_suspected": "orc_nodes_doubted",
    "orc_node_reports_rejected": "orc_manager_false_claims",
    "orc_node_cpu_shares": "orc_node_shares",
    "orc_node_cpu_shares_reserved": "orc_node_shares_reserved",
    "orc_audit_entries_dropped": "orc_audit_lost_entries",
    "orc_store_request_duration_seconds": "orc_store_request_seconds",
    "orc_store_request_errors": "orc_store_failures",
}
"""Family → the name that it had in earlier versions, and still has for existing dashboards."""


class WithDeprecatedNames(Collector):
    """The families of another collector, renamed ones under both names."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        """All families."""
        for family in self._collector.collect():
            yield family
            if (old := DEPRECATED_NAMES.get(family.name)) is not None:
                name = f"{family.name}_total" if family.type == "counter" else family.name
                copy = Metric(old, f"Deprecated: use {name}", family.type)
                copy.samples = [
                    sample._replace(name=sample.name.replace(family.name, old, 1))
                    for sample in family.samples
                ]
                yield copy
