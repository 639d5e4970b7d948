# SPDX-License-Identifier: Apache-2.0
"""What a container's cgroups count, of both versions, and how it is written down."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.agent.runtime.resources.cadvisor import CadvisorReader
from orchestrator.agent.runtime.resources.cgroups import CgroupMode, Cgroups, Hierarchy
from orchestrator.agent.telemetry.agent_metrics import ContainerText
from orchestrator.model.specs import STACK_LABEL, ContainerSpec, Resources, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus

V2 = {
    "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n"
    "nr_periods 10\nnr_throttled 4\nthrottled_usec 1500000\n",
    "cpu.max": "50000 100000\n",
    "memory.current": "1000\n",
    "memory.max": "max\n",
    "memory.peak": "2000\n",
    "memory.stat": "anon 600\nfile 300\nfile_mapped 40\ninactive_file 200\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n",
    "memory.swap.current": "7\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:16 rbytes=1 wbytes=2 rios=3 wios=4\n",
    "pids.current": "5\n",
    "pids.max": "64\n",
    "cgroup.procs": "11\n12\n",
}
V1 = {
    "cpuacct.usage": "2500000000\n",
    "cpuacct.stat": "user 200\nsystem 50\n",
    "cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 1500000000\n",
    "cpu.cfs_quota_us": "50000\n",
    "cpu.cfs_period_us": "100000\n",
    "memory.usage_in_bytes": "1000\n",
    "memory.limit_in_bytes": "9223372036854771712\n",
    "memory.failcnt": "3\n",
    "memory.stat": "cache 1\ntotal_cache 300\ntotal_rss 600\ntotal_inactive_file 200\n"
    "total_swap 7\ntotal_mapped_file 40\n",
    "memory.max_usage_in_bytes": "2000\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\n8:16 Write 2\n"
    "Total 33\n",
    "blkio.throttle.io_serviced": "8:0 Read 1\n8:0 Write 2\n8:16 Read 3\n8:16 Write 4\nTotal 10\n",
    "pids.current": "5\n",
    "pids.max": "64\n",
    "cgroup.procs": "11\n12\n",
}
PRESSURE = """some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000
full avg10=0.00 avg60=0.00 avg300=0.00 total=1500000
"""
EXPECTED = {
    "container_cpu_usage_seconds_total": 2.5,
    "container_cpu_user_seconds_total": 2.0,
    "container_cpu_system_seconds_total": 0.5,
    "container_cpu_cfs_periods_total": 10,
    "container_cpu_cfs_throttled_periods_total": 4,
    "container_cpu_cfs_throttled_seconds_total": 1.5,
    "container_memory_failcnt": 3,
    "container_oom_events_total": 2,
    "container_fs_reads_bytes_total": 11,
    "container_fs_writes_bytes_total": 22,
    "container_fs_reads_total": 4,
    "container_fs_writes_total": 6,
    "container_memory_usage_bytes": 1000,
    "container_memory_working_set_bytes": 800,
    "container_memory_max_usage_bytes": 2000,
    "container_memory_rss": 600,
    "container_memory_mapped_file": 40,
    "container_memory_cache": 300,
    "container_memory_swap": 7,
    "container_spec_memory_limit_bytes": 0,
    "container_spec_memory_reservation_limit_bytes": 900,
    "container_spec_cpu_shares": 512,
    "container_spec_cpu_quota": 50000,
    "container_spec_cpu_period": 100000,
    "container_processes": 2,
    "container_threads": 5,
    "container_threads_max": 64,
}


def cgroups(root: Path, mode: CgroupMode) -> Cgroups:
    """Of a container `t1`, all controllers in one folder."""
    folder = root / "orc" / "t1"
    folder.mkdir(parents=True)
    for name, text in (V2 if mode is CgroupMode.V2 else V1).items():
        (folder / name).write_text(text)
    return Cgroups(Hierarchy(mode, (root,), root, root), "/orc")


@pytest.mark.parametrize("mode", [CgroupMode.V1, CgroupMode.V2])
def test_both_cgroup_versions_have_the_same_metrics(tmp_path: Path, mode: CgroupMode) -> None:
    assert CadvisorReader(cgroups(tmp_path, mode), "t1", 512, 900).read() == EXPECTED


def test_pressure_is_reported_where_the_kernel_supports_it(tmp_path: Path) -> None:
    found = cgroups(tmp_path, CgroupMode.V2)
    for resource in ("cpu", "memory", "io"):
        (tmp_path / "orc" / "t1" / f"{resource}.pressure").write_text(PRESSURE)
    told = CadvisorReader(found, "t1", 512, 900).read()
    assert told.items() > EXPECTED.items()
    assert {name: value for name, value in told.items() if name not in EXPECTED} == {
        f"container_pressure_{resource}_{word}_seconds_total": value
        for resource in ("cpu", "memory", "io")
        for word, value in (("waiting", 2.5), ("stalled", 1.5))
    }


def test_an_ended_container_has_no_figures(tmp_path: Path) -> None:
    found = cgroups(tmp_path, CgroupMode.V2)
    gone = CadvisorReader(found, "t2", 512).read()
    assert {key: value for key, value in gone.items() if value} == {
        "container_spec_cpu_shares": 512
    }


def test_container_metrics_are_in_prometheus_format(tmp_path: Path) -> None:
    labels = {STACK_LABEL: 'sh"op\\'}
    container = ContainerSpec(image="web:1", labels=labels)
    spec = TaskSpec(container=container, shares=512, reservation=Resources(memory=900))
    task = Task(id="t1", service_name="web", slot=3, spec=spec, restarts=2)
    status = TaskStatus(TaskState.RUNNING, pid=0, started_at=90.0)
    runner: Any = SimpleNamespace(task=task, status=status)
    access: Any = SimpleNamespace(cgroups=cgroups(tmp_path, CgroupMode.V2))
    text = ContainerText({"t1": runner}, lambda task_id: access, "host1", lambda: 100.0).render()
    samples = {
        sample.name: sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    # The library's parser gives every counter Prometheus' ending, cAdvisor did not.
    assert "\ncontainer_memory_failcnt{" in text
    samples["container_memory_failcnt"] = samples["container_memory_failcnt_total"]
    for name, value in EXPECTED.items():
        assert samples[name].value == value
    assert "pressure" not in text  # this kernel has none
    assert samples["container_start_time_seconds"].value == 90.0
    assert samples["container_last_seen"].value == 100.0
    assert samples["orc_container_restarts_total"].value == 2
    assert samples["container_processes"].labels == {
        "id": "/orc/t1",
        "name": "web.3",
        "image": "web:1",
        "service": "web",
        "task": "t1",
        "slot": "3",
        "stack": 'sh"op\\',
        "node": "host1",
    }
