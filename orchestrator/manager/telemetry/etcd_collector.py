# SPDX-License-Identifier: Apache-2.0
"""Metrics of this manager's etcd member: what its status says, and etcd's own families."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from orchestrator.manager.store.etcd_maintenance import Defragmented
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.etcd_membership import MemberStatus
from orchestrator.manager.store.etcd_metrics import read_metrics
from orchestrator.manager.store.kv import StoreError

log = logging.getLogger(__name__)

READ_TIMEOUT = 1.0
"""Seconds that a member has to answer a scrape."""

ALARMS = ("corrupt", "nospace")


class EtcdCollector(Collector):
    """Collects what `refresh` has read. Collectors run in a thread, calls to etcd in the loop."""

    def __init__(self, member: EtcdMember, registry: CollectorRegistry) -> None:
        self._member = member
        self._status: MemberStatus | None = None
        self._families = ""
        self._defragmentations = CounterMetric(
            "orc_etcd_defragmentations",
            "Defragmentations of the database of this manager's etcd member",
            labelnames=("result",),
            registry=registry,
        )
        for result in ("done", "failed"):
            self._defragmentations.labels(result)
        registry.register(self)

    def defragmented(self, done: Defragmented | None) -> None:
        """Count a defragmentation; None: it failed."""
        self._defragmentations.labels("done" if done else "failed").inc()

    async def refresh(self) -> None:
        """Ask the member. Without an answer it counts as unhealthy."""
        self._status, self._families = None, ""
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                status = await self._member.membership.status()
            [endpoint], tls = self._member.endpoints, self._member.tls
            families = await asyncio.to_thread(read_metrics, endpoint, tls, READ_TIMEOUT)
        except (StoreError, TimeoutError) as error:
            log.debug("cannot read etcd's metrics", extra={"error": error})
            return
        self._status, self._families = status, families

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are known when the member has answered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families; only the health while the member does not answer."""
        status = self._status
        yield GaugeMetricFamily(
            "orc_etcd_member_healthy",
            "1 if this manager's etcd member answers and follows a leader",
            status is not None and not status.errors and status.leader != 0,
        )
        if status is None:
            return
        for name, help, value in (
            ("orc_etcd_raft_term", "Raft term of the member", status.raft_term),
            (
                "orc_etcd_raft_index",
                "Raft entries that the member has applied; the difference to the largest is its "
                "lag",
                status.applied_index,
            ),
        ):
            yield GaugeMetricFamily(name, help, value)
        alarms = GaugeMetricFamily(
            "orc_etcd_alarm", "1 if this member has raised the alarm", labels=("alarm",)
        )
        raised = {each.kind.lower() for each in status.alarms if each.member_id == f"{status.id:x}"}
        for alarm in sorted({*ALARMS, *raised}):
            alarms.add_metric([alarm], alarm in raised)
        yield alarms
        yield from text_string_to_metric_families(self._families)
