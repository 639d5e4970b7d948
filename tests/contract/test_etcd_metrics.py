# SPDX-License-Identifier: Apache-2.0
"""What a manager's scrape says of its etcd member, against Debian's etcd."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.kv import Put
from orchestrator.manager.telemetry.etcd_collector import EtcdCollector
from orchestrator.manager.telemetry.metrics import WithDeprecatedNames


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Name of each sample without labels, or with them in braces → value, as Prometheus reads."""
    text = generate_latest(WithDeprecatedNames(registry)).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def test_a_scrape_has_the_state_and_the_latencies_of_the_member(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    async with (
        EtcdMember(tmp_path / "etcd", quota=64 << 20) as member,
        EtcdKv(member.endpoints, member.tls) as kv,
    ):
        collector = EtcdCollector(member, registry)
        assert samples(registry)["orc_etcd_member_healthy"] == 0, "it has not been asked yet"
        await kv.txn([], [Put("a", b"x" * 100_000)])
        collector.defragmented(await member.maintenance.defragment())
        await collector.refresh()
        found = samples(registry)
        assert found["orc_etcd_member_healthy"] == 1
        assert found["orc_etcd_raft_term"] >= 2
        assert found["orc_etcd_raft_index"] > 1
        assert found["orc_etcd_alarm{alarm=nospace}"] == 0
        assert found["orc_etcd_defragmentations_total{result=done}"] == 1
        assert found["etcd_server_quota_backend_bytes"] == 64 << 20
        size = found["etcd_mvcc_db_total_size_in_bytes"]
        assert size >= found["etcd_mvcc_db_total_size_in_use_in_bytes"] > 100_000
        assert found["etcd_server_has_leader"] == 1
        assert found["etcd_server_leader_changes_seen_total"] >= 1
        for name in ("disk_wal_fsync", "disk_backend_commit"):
            assert found[f"etcd_{name}_duration_seconds_count"] > 0
            assert found[f"etcd_{name}_duration_seconds_bucket{{le=+Inf}}"] > 0
        assert not [name for name in found if name.startswith(("go_", "grpc_"))]


async def test_a_stopped_member_is_unhealthy_and_does_not_delay_the_scrape(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    async with EtcdMember(tmp_path / "etcd") as member:
        collector = EtcdCollector(member, registry)
        await collector.refresh()
        assert samples(registry)["orc_etcd_member_healthy"] == 1
        os.kill(member.pid, signal.SIGSTOP)
        try:
            await collector.refresh()
            found = samples(registry)
        finally:
            os.kill(member.pid, signal.SIGCONT)
        assert found["orc_etcd_member_healthy"] == 0
        assert "orc_etcd_raft_term" not in found
