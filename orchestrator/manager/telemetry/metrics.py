"""What a manager tells Prometheus of the cluster and of itself.

Levels are counted from the cache when they are asked for. Every manager has the same ones, for all
follow one store; a dashboard takes the leader's (`orc_manager_leader == 1`). Latencies are taken
from the changes as they happen (`Latencies`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator import __version__
from orchestrator.identity.tls import Identity
from orchestrator.manager.audit.trail import AuditTrail
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.reconcile.convergence import desired_tasks, running_tasks
from orchestrator.manager.planning.reports.claims import Claim
from orchestrator.manager.planning.scheduling.capacity import node_usage
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.telemetry.event_log import EventLog
from orchestrator.model.nodes import Availability, NodeState
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
    """What a manager is at the moment."""

    leader: bool
    term: int
    """Revision of the store at which its term began; 0 while it does not lead."""
    sessions: int
    """Agents that are in session with it."""
    reports: int
    """Words of agents that are yet to be written down."""
    orders: int
    """Words to agents that are yet to be sent."""
    streams: int
    """Streams to nodes that are open: logs, terminals, copies."""


class StoreMetrics:
    """How long the store takes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "orc_store_request_seconds",
            "Time from a request to the store to its answer",
            labelnames=("operation",),
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self._failures = CounterMetric(
            "orc_store_failures",
            "Requests to the store that it did not answer in time",
            labelnames=("operation",),
            registry=registry,
        )

    def took(self, operation: str, seconds: float) -> None:
        """A request was answered."""
        self._seconds.labels(operation).observe(seconds)

    def failed(self, operation: str) -> None:
        """A request was not."""
        self._failures.labels(operation).inc()


class RevocationMetrics:
    """Calls with certificates that were revoked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = CounterMetric(
            "orc_manager_revoked_calls",
            "Calls that were refused or ended because the caller's certificate was revoked",
            labelnames=("role",),
            registry=registry,
        )

    def refused(self, identity: Identity) -> None:
        """A call was refused or ended."""
        self._calls.labels(identity.role).inc()


class AuditMetrics:
    """The audit trail."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._entries = CounterMetric(
            "orc_audit_entries",
            "Calls that were recorded in the audit trail",
            registry=registry,
        )
        self._lost = CounterMetric(
            "orc_audit_lost_entries",
            "Calls that could not be written to the audit trail, such as on a full disk",
            registry=registry,
        )

    def count(self, trail: AuditTrail) -> None:
        """Count the entries of a trail."""
        trail.recorded = self._entries.inc
        trail.lost = self._lost.inc


class EventLoopLag:
    """How late the event loop is, because something computes on it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "orc_manager_event_loop_lag_seconds",
            "Time by which the event loop is late with what is due, sampled",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )

    async def measure(self) -> None:
        """Take a sample every `LAG_PERIOD` seconds, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PERIOD
            await asyncio.sleep(LAG_PERIOD)
            self._seconds.observe(max(0.0, loop.time() - due))


class PlanningMetrics:
    """How long a leader takes to decide."""

    def __init__(self, registry: CollectorRegistry, events: EventLog) -> None:
        self._events = events
        self._reasons: Mapping[str, str] = {}
        self._seconds = Histogram(
            "orc_planning_seconds",
            "Time of one decision on all that has happened",
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self._conflicts = CounterMetric(
            "orc_planning_conflicts",
            "Decisions that were made anew, for what they were made from had changed",
            registry=registry,
        )
        self._read_only = Gauge(
            "orc_store_read_only",
            "Whether the store takes no writes, so that nothing can be changed (1) or not (0)",
            registry=registry,
        )
        self._aside = Gauge(
            "orc_planning_failed_services",
            "Services that cannot be planned or written; they are retried with backoff",
            registry=registry,
        )
        self._doubted = Gauge(
            "orc_nodes_doubted",
            "Nodes that are silent, but too many at once to count as down yet",
            registry=registry,
        )
        self._false_claims = CounterMetric(
            "orc_manager_false_claims",
            "Claims in nodes' reports that were refused, by what they were about",
            labelnames=("kind",),
            registry=registry,
        )
        for kind in Claim:
            self._false_claims.labels(kind)
        self._store_error = ""

    def took(self, seconds: float) -> None:
        """Something was decided."""
        self._seconds.observe(seconds)

    def conflicted(self) -> None:
        """Something of it was not written."""
        self._conflicts.inc()

    def store_failed(self, error: str) -> None:
        """Why the store takes no writes; empty when it does."""
        if error and error != self._store_error:
            self._events.read_only(error)
        elif self._store_error and not error:
            self._events.writable()
        self._store_error = error
        self._read_only.set(bool(error))

    def put_aside(self, services: Mapping[str, str]) -> None:
        """Id → why of the services that cannot be planned or written."""
        for id, why in services.items():
            if self._reasons.get(id) != why:
                self._events.set_aside(id, why)
        self._reasons = services
        self._aside.set(len(services))

    def doubts(self, silent: int) -> None:
        """So many nodes are silent at once that the leader doubts itself; 0 when it does not."""
        self._doubted.set(silent)

    def refused(self, kind: str) -> None:
        """A node claimed what it cannot."""
        self._false_claims.labels(kind).inc()

    def ended(self) -> None:
        """This manager leads no longer, so none of it is its to say."""
        self._store_error, self._reasons = "", {}
        for gauge in (self._read_only, self._aside, self._doubted):
            gauge.set(0)


class TaskMetrics:
    """How long tasks take to find a node and to run, and how many end in which way."""

    def __init__(self, cache: Cache, registry: CollectorRegistry) -> None:
        self._cache = cache
        self._scheduling = Histogram(
            "orc_scheduling_seconds",
            "Time from a task's creation (or the end of its restart delay) to its node",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._convergence = Histogram(
            "orc_convergence_seconds",
            "Time from a task's creation (or the end of its restart delay) until it runs",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._ends = CounterMetric(
            "orc_task_ends",
            "Tasks that have ended, by how",
            labelnames=("state",),
            registry=registry,
        )
        self._ooms = CounterMetric(
            "orc_task_ooms", "Tasks that the kernel ended for want of memory", registry=registry
        )
        for state in (state for state in TaskState if is_terminal(state)):
            self._ends.labels(state.name.lower())

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Take times for as long as this lasts."""
        async with self._cache.subscribe() as feed:
            feed.on_change = lambda: self.take(feed.take())
            yield

    def take(self, changes: Iterable[Change]) -> None:
        """Look at changes as they happen."""
        for change in changes:
            if isinstance(change.after, Task):
                before = change.before if isinstance(change.before, Task) else None
                self._task(before, change.after)

    def _task(self, before: Task | None, after: Task) -> None:
        was = before.status.state if before is not None else TaskState.NEW
        now = after.status.state
        if now <= was:
            return
        wished = max(after.created_at, after.not_before)
        # When a container was to run again is written nowhere.
        first = after.run <= 1
        if first and was < TaskState.ASSIGNED <= now and after.node_id:
            self._scheduling.observe(max(after.status.at - wished, 0.0))
        if first and was < TaskState.RUNNING <= now and after.status.started_at:
            self._convergence.observe(max(after.status.started_at - wished, 0.0))
        if is_terminal(now):
            self._ends.labels(now.name.lower()).inc()
            if after.status.oom_killed:
                self._ooms.inc()


class ClusterCollector(Collector):
    """The cluster as it is."""

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
        """Every family."""
        view, state = self._view(), self._state()
        version = GaugeMetricFamily("orc_manager_info", "This manager", labels=("version",))
        version.add_metric([__version__], 1)
        yield version
        for name, help, value in (
            ("orc_manager_leader", "Whether it leads", state.leader),
            ("orc_manager_term", "The revision at which its term began, 0 for none", state.term),
            ("orc_manager_sessions", "Agents in session with it", state.sessions),
            ("orc_manager_reports_waiting", "Agents' words yet to be stored", state.reports),
            ("orc_manager_orders_waiting", "Words to agents yet to be sent", state.orders),
            ("orc_manager_streams", "Streams to nodes that are open", state.streams),
            ("orc_networks", "Networks", len(view.networks)),
            ("orc_volumes", "Volumes", len(view.volumes)),
            ("orc_images", "Images", len(view.images)),
            ("orc_services", "Services", sum(not s.removed for s in view.services.values())),
        ):
            yield GaugeMetricFamily(name, help, value)
        yield _undecodable(view)
        yield from _nodes(view)
        yield from _services(view)
        yield from _tasks(view, self._now())


def _undecodable(view: ClusterView) -> Metric:
    counts = GaugeMetricFamily(
        "orc_store_undecodable_objects",
        "Stored objects that this manager cannot decode, and leaves alone",
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
            ("up", "Whether the node is heard of"),
            ("shares", "CPU shares that the node offers, 1024 a core"),
            ("shares_reserved", "CPU shares that its tasks reserve"),
            ("memory_bytes", "Memory that the node offers"),
            ("memory_reserved_bytes", "Memory that its tasks reserve"),
            ("tasks", "Tasks that take room on the node"),
        )
    }
    for node in view.nodes.values():
        usage, offered = node_usage(view, node.id), node.description.resources
        for name, value in (
            ("up", node.state is NodeState.READY),
            ("shares", offered.shares),
            ("shares_reserved", usage.reserved.shares),
            ("memory_bytes", offered.memory),
            ("memory_reserved_bytes", usage.reserved.memory),
            ("tasks", usage.tasks),
        ):
            families[name].add_metric([node.description.hostname, node.id], value)
    yield counts
    yield from families.values()


def _services(view: ClusterView) -> Iterable[Metric]:
    labels = ("service", "stack")
    desired = GaugeMetricFamily("orc_service_tasks_wanted", "Tasks wanted", labels=labels)
    running = GaugeMetricFamily("orc_service_tasks_running", "Tasks that work", labels=labels)
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
        if service.update.state is not UpdateState.NONE:
            updates.add_metric([*of, service.update.state.name.lower()], 1)
    yield from (desired, running, updates)


def _tasks(view: ClusterView, now: float) -> Iterable[Metric]:
    states = GaugeMetricFamily("orc_tasks", "Tasks by state", labels=("state",))
    number = Counter(task.status.state for task in view.tasks.values())
    for state in TaskState:
        if state is not TaskState.REMOVE:
            states.add_metric([state.name.lower()], number[state])
    yield states
    waiting = GaugeMetricFamily(
        "orc_tasks_waiting", "Tasks that are to run and do not yet, by why", labels=("reason",)
    )
    reasons = Counter(_reason(task, now) for task in view.tasks.values())
    for reason in ("placement", "restart_delay", "node", "preparation", "health"):
        waiting.add_metric([reason], reasons[reason])
    yield waiting


def _reason(task: Task, now: float) -> str:
    """Why a task that is to run does not work yet, in one of a few words; empty when it does."""
    state = task.status.state
    if task.desired_state > TaskState.RUNNING or is_terminal(state) or task.status.works:
        return ""
    if state < TaskState.ASSIGNED:
        return "restart_delay" if task.not_before > now else "placement"
    if state < TaskState.ACCEPTED:
        return "node"
    return "health" if state is TaskState.RUNNING else "preparation"
