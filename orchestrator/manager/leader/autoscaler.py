# SPDX-License-Identifier: Apache-2.0
"""The leader's autoscaler: measures tasks of autoscaled services, and decides how many they need.

It runs for a term. A measurement asks each node that has such tasks once for their CPU time and
memory; CPU use is the difference of two measurements. A node that does not answer is left out, and
its tasks count as not measured. Each different query is sent to the cluster's Prometheus once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from orchestrator.manager.leader.prometheus_queries import QueryFailed
from orchestrator.manager.planning.autoscaling import (
    Reading,
    Usage,
    autoscaled,
    decide,
    measured_tasks,
    needed,
)
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict, Guard, Kv, StoreError

log = logging.getLogger(__name__)

PERIOD = 15.0
"""Seconds between two measurements (Kubernetes')."""


Measure = Callable[[str, Sequence[str]], Coroutine[Any, Any, Mapping[str, Reading]]]
"""Reads the counters of tasks on a node: node id, task ids → by task id. Empty if the node does not
answer in time."""


Ask = Callable[[str, str], Coroutine[Any, Any, float]]
"""The value of a query: the URL of a Prometheus, PromQL. Raises QueryFailed."""


class Autoscaler:
    """Autoscales services for one term."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        fence: Guard,
        measure: Measure,
        ask: Ask,
        now: Callable[[], float],
        period: float = PERIOD,
    ) -> None:
        self._kv = kv
        self._cache = cache
        self._fence = fence
        self._measure = measure
        self._ask = ask
        self._now = now
        self._period = period
        self._readings: dict[str, Reading] = {}
        self._failing: dict[str, str] = {}
        """Query → why it failed, as was logged."""

    async def run(self) -> None:
        """Measure and decide every period, until cancelled."""
        while True:
            await asyncio.sleep(self._period)
            await self.step()

    async def step(self) -> None:
        """Measure once, and write what was decided."""
        view = self._cache.view
        if not autoscaled(view):
            self._readings = {}
            return
        usages, values = await asyncio.gather(self._usages(view), self._values(view))
        view, now = self._cache.view, self._now()
        for service in autoscaled(view):
            need = needed(service, measured_tasks(view, service), usages, values)
            after = decide(service, need, now)
            if after is service:
                continue
            if after.replicas != service.replicas:
                log.info(
                    "autoscaled a service",
                    extra={
                        "service": service.spec.name,
                        "before": service.replicas,
                        "after": after.replicas,
                        "reason": after.autoscale.message,
                    },
                )
            try:
                await commit(self._kv, [Change(service, after)], guards=[self._fence])
            except Conflict:
                continue  # changed meanwhile; the next measurement decides anew
            except StoreError as error:
                log.warning("cannot write an autoscaling decision", extra={"error": error})
                return

    async def _values(self, view: ClusterView) -> dict[str, float]:
        """The values of the services' queries, by query. One that fails is left out."""
        url = view.cluster.prometheus if view.cluster else ""
        queries = {service.spec.autoscale.query for service in autoscaled(view)} - {""}
        found = dict(
            zip(
                queries,
                await asyncio.gather(*(self._value(url, query) for query in queries)),
                strict=True,
            )
        )
        self._failing = {query: why for query, why in self._failing.items() if query in queries}
        return {query: value for query, value in found.items() if value is not None}

    async def _value(self, url: str, query: str) -> float | None:
        """The value of a query; None if it has none, of which a new reason is logged."""
        try:
            if not url:
                raise QueryFailed("no Prometheus is named; see 'orc cluster update --prometheus'")
            value = await self._ask(url, query)
        except QueryFailed as failed:
            if self._failing.get(query) != str(failed):
                self._failing[query] = str(failed)
                log.warning(
                    "an autoscaling query failed", extra={"query": query, "error": str(failed)}
                )
            return None
        self._failing.pop(query, None)
        return value

    async def _usages(self, view: ClusterView) -> dict[str, Usage]:
        """What the tasks of all autoscaled services use, by task id. A task that is measured for
        the first time is left out."""
        by_node: dict[str, list[str]] = {}
        for service in autoscaled(view):
            for task in measured_tasks(view, service):
                by_node.setdefault(task.node_id, []).append(task.id)
        read: dict[str, Reading] = {}
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(self._measure(node_id, ids)) for node_id, ids in by_node.items()
            ]
        for each in asked:
            read |= each.result()
        former, self._readings = self._readings, dict(read)
        usages = {}
        for id, reading in read.items():
            before = former.get(id)
            if before is None or reading.at <= before.at or reading.cpu < before.cpu:
                continue
            cores = (reading.cpu - before.cpu) / (reading.at - before.at)
            usages[id] = Usage(cores, reading.memory)
        return usages
