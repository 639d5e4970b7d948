# SPDX-License-Identifier: Apache-2.0
"""Metrics of the host, as Prometheus reads them, compared with the kernel's values."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.agent.telemetry import host_metrics
from orchestrator.agent.telemetry.host_metrics import HostCollector

NET = """Inter-|   Receive                            |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo: 99 1 0 0 0 0 0 0 99 1 0 0 0 0 0 0
  eth0: 10 1 2 3 0 0 0 0 20 4 5 6 0 0 0 0
orcv1f: 99 1 0 0 0 0 0 0 99 1 0 0 0 0 0 0
 orcx7: 30 7 0 0 0 0 0 0 40 8 0 0 0 0 0 0
"""
DISKS = """   8       0 sda 1 0 2 9 3 0 4 9 0 1500 9 0 0 0 0 0 0
   8       1 sda1 9 9 9 9 9 9 9 9 9 9 9 0 0 0 0 0 0
   7       0 loop0 9 9 9 9 9 9 9 9 9 9 9 0 0 0 0 0 0
 259       0 nvme0n1 5 0 6 9 7 0 8 9 0 2500 9 0 0 0 0 0 0
 259       1 nvme0n1p1 9 9 9 9 9 9 9 9 9 9 9 0 0 0 0 0 0
"""


def samples(disk: Path) -> dict[tuple[str, str], float]:
    """(name, device, or cpu and mode) → value."""
    registry = CollectorRegistry()
    registry.register(HostCollector(disk))
    return {
        (each.name, each.labels.get("device", "")): each.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for each in family.samples
    }


def test_the_hosts_metrics_match_the_kernel(tmp_path: Path) -> None:
    found = samples(tmp_path)
    assert found["machine_cpu_cores", ""] == os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["machine_memory_bytes", ""] == memory
    assert found["node_memory_MemTotal_bytes", ""] == memory
    assert found["node_boot_time_seconds", ""] <= found["node_time_seconds", ""] <= time.time()
    assert found["node_uname_info", ""] == 1
    for resource in ("cpu", "io", "memory"):
        told = ("node_pressure_" + resource + "_waiting_seconds_total", "") in found
        assert told == Path("/proc/pressure", resource).exists()


def test_devices_of_containers_and_parts_of_disks_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"/proc/net/dev": NET, "/proc/diskstats": DISKS}
    read = host_metrics.read_text
    monkeypatch.setattr(
        host_metrics,
        "read_text",
        lambda path: files[path].encode() if path in files else read(path),
    )
    found = {
        key: value
        for key, value in samples(tmp_path).items()
        if key[0].startswith(("node_network", "node_disk"))
    }
    assert {device for _, device in found} == {"eth0", "orcx7", "sda", "nvme0n1"}
    assert [
        found[f"node_network_{name}_total", "eth0"]
        for name in ("receive_bytes", "receive_errs", "transmit_bytes", "transmit_drop")
    ] == [10, 2, 20, 6]
    assert [
        found[f"node_disk_{name}_total", "sda"]
        for name in ("reads_completed", "read_bytes", "written_bytes", "io_time_seconds")
    ] == [1, 1024, 2048, 1.5]
