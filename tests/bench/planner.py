# SPDX-License-Identifier: Apache-2.0
"""Planning in memory: placing tasks, and a whole pass from a new service to assigned tasks.

Times are the thread's CPU time, so that other load of the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from orchestrator.manager.planning.pipeline import Dirty, plan
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.scheduling.scheduler import Placement, schedule
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, Resources, ServiceSpec, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from tests.bench.cluster import BenchError
from tests.bench.tables import Table, median, seconds

SIZES = ((500, 100), (5_000, 1_000), (50_000, 5_000))
"""Tasks and nodes."""
SERVICES = 50
ZONES = 3
ROUNDS = 3
_NOW = 1_000.0
_NODE = Resources(shares=65_536, memory=64 << 30)


@dataclass(frozen=True, slots=True)
class Planned:
    """Seconds of each round, for one size."""

    tasks: int
    nodes: int
    one_service: list[float]
    """`schedule`: all tasks of one service."""
    spread: list[float]
    """`schedule`: of one service that is spread over zones and has affinities, one to itself."""
    many_services: list[float]
    """`schedule`: of `SERVICES` services."""
    whole_pass: list[float]
    """`plan`: tasks made and placed for one new service."""
    changes: list[float]
    """`ClusterView.evolve`: each tenth task changes at once."""


def measure() -> list[Planned]:
    """All sizes. Raises BenchError if a task was not placed."""
    return [
        Planned(
            tasks,
            nodes,
            _schedule([_service("s0", tasks)], tasks, nodes),
            _schedule([_spread_service("s0", tasks)], tasks, nodes),
            _schedule(
                [_service(f"s{number}", tasks // SERVICES) for number in range(SERVICES)],
                tasks,
                nodes,
            ),
            _plan(tasks, nodes),
            _evolve(tasks, nodes),
        )
        for tasks, nodes in SIZES
    ]


def _schedule(declared: list[Service], tasks: int, nodes: int) -> list[float]:
    services = len(declared)
    pending = [
        Task(
            id=f"t{number:05}",
            service_id=declared[number % services].id,
            slot=number,
            spec=declared[number % services].spec.task,
            status=TaskStatus(TaskState.PENDING),
        )
        for number in range(tasks)
    ]
    view = ClusterView.of([*_nodes(nodes), *declared, *pending])

    def once() -> None:
        decided = schedule(view, view.pending.values(), _NOW)
        if sum(isinstance(item, Placement) for item in decided) != tasks:
            raise BenchError("not every task was placed")

    return _timed(once)


def _plan(tasks: int, nodes: int) -> list[float]:
    service = _service("new", tasks)
    view = ClusterView.of([*_nodes(nodes), service])

    def once() -> None:
        numbers = count()
        made_now = plan(
            view, Dirty(services=frozenset({service.id})), _NOW, lambda: f"t{next(numbers):05}"
        )
        made = sum(
            isinstance(change.after, Task) for item in made_now.plans for change in item.changes
        )
        if made != tasks:
            raise BenchError(f"{made} of {tasks} tasks were planned")

    return _timed(once)


def _evolve(tasks: int, nodes: int) -> list[float]:
    service = _service("web", tasks)
    running = [
        Task(
            id=f"t{number:05}",
            service_id=service.id,
            slot=number,
            node_id=f"n{number % nodes:04}",
            spec=service.spec.task,
            status=TaskStatus(TaskState.RUNNING),
        )
        for number in range(tasks)
    ]
    view = ClusterView.of([*_nodes(nodes), service, *running])
    changes = [Change(task, replace(task, attempt=1)) for task in running[::10]]
    return _timed(lambda: view.evolve(changes))


def _timed(once: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        once()
        took.append(time.thread_time() - began)
    return took


def _nodes(number: int) -> list[Node]:
    return [
        Node(
            id=f"n{index:04}",
            state=NodeState.READY,
            description=NodeDescription(hostname=f"host{index}", resources=_NODE),
            labels={"zone": f"z{index % ZONES}"},
        )
        for index in range(number)
    ]


def _service(name: str, replicas: int) -> Service:
    task = TaskSpec(container=ContainerSpec(image="web:1"))
    return Service(id=f"{name}-id", spec=ServiceSpec(name=name, replicas=replicas, task=task))


def _spread_service(name: str, replicas: int) -> Service:
    plain = _service(name, replicas)
    spec = replace(
        plain.spec,
        spread=("node.labels.zone",),
        affinities=(
            Affinity("node.labels.zone==z1", weight=2),
            Affinity(f"service=={name}", anti=True, weight=3),
        ),
    )
    return replace(plain, spec=spec)


def report(results: list[Planned]) -> Table:
    """Pure."""
    rows = []
    for size in results:
        scheduled = median(size.one_service)
        rows.append(
            (
                f"{size.tasks} tasks on {size.nodes} nodes",
                seconds(scheduled),
                seconds(median(size.spread)),
                seconds(median(size.many_services)),
                seconds(median(size.whole_pass)),
                seconds(median(size.changes)),
                f"{size.tasks / scheduled:,.0f}",
                f"{size.tasks / median(size.spread):,.0f}",
            )
        )
    return Table(
        "Planning in memory",
        (
            *("what", "placed, 1 service", "spread over zones", f"placed, {SERVICES} services"),
            *("made and placed", "a tenth changed", "per s", "spread, per s"),
        ),
        tuple(rows),
        (f"Medians of {ROUNDS}, in CPU time. The rates are of placing tasks of one service.",),
    )
