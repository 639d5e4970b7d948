# SPDX-License-Identifier: Apache-2.0
"""The metrics that an etcd member serves on its client port, for the manager to pass on.

Only its manager can reach that port, which is on loopback and accepts only the manager's
certificate. Names are etcd's own, so that dashboards and alerts made for etcd fit.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterable
from urllib.parse import urlsplit

from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.kv import StoreUnavailable

FAMILIES = frozenset(
    {
        "etcd_disk_backend_commit_duration_seconds",
        "etcd_disk_backend_defrag_duration_seconds",
        "etcd_disk_wal_fsync_duration_seconds",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_network_peer_round_trip_time_seconds",
        "etcd_server_has_leader",
        "etcd_server_is_leader",
        "etcd_server_is_learner",
        "etcd_server_leader_changes_seen_total",
        "etcd_server_proposals_applied_total",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_failed_total",
        "etcd_server_proposals_pending",
        "etcd_server_quota_backend_bytes",
        "etcd_server_slow_apply_total",
    }
)
"""Families that are passed on. etcd has many more, mostly about gRPC and its runtime."""

_SUFFIXES = ("_bucket", "_sum", "_count")


def read_metrics(endpoint: str, tls: EtcdTls, timeout: float) -> str:
    """The member's metrics as Prometheus' text, `FAMILIES` only; blocks for up to `timeout`
    seconds. Raises StoreUnavailable."""
    parts = urlsplit(endpoint)
    assert parts.hostname is not None
    try:
        context = ssl.create_default_context(cafile=str(tls.ca))
        context.load_cert_chain(tls.cert, tls.key)
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, context=context, timeout=timeout
        )
        try:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        raise StoreUnavailable(f"etcd at {endpoint} does not serve its metrics: {error}") from error
    if answer.status != http.client.OK:
        raise StoreUnavailable(
            f"etcd at {endpoint} does not serve its metrics: status {answer.status}"
        )
    return "".join(selected(text.splitlines(keepends=True)))


def selected(lines: Iterable[str]) -> Iterable[str]:
    """The lines of `FAMILIES`."""
    for line in lines:
        if line.startswith("# "):
            name = line.split(" ", 3)[2]
        else:
            name = line.partition(" ")[0].partition("{")[0]
            for suffix in _SUFFIXES:
                name = name.removesuffix(suffix)
        if name in FAMILIES:
            yield line
