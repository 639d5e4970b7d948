# SPDX-License-Identifier: Apache-2.0
"""What the benchmark prints, from figures that are given: no machine is measured here."""

from __future__ import annotations

import os

import pytest

from tests.bench import latency, processes, rollout, tables
from tests.bench.memory import sort
from tests.bench.processes import Process


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0000123, "12 µs"),
        (0.00123, "1.2 ms"),
        (0.0123, "12 ms"),
        (0.8, "800 ms"),
        (12.34, "12.3 s"),
    ],
)
def test_times_are_shown_with_the_figures_that_matter(value: float, shown: str) -> None:
    assert tables.seconds(value) == shown


def test_targets_show_whether_they_are_met() -> None:
    assert tables.at_most(0.079, 0.080, "80 ms") == "< 80 ms: met"
    assert tables.at_most(0.080, 0.080, "80 ms") == "< 80 ms: MISSED"
    assert tables.at_least(0.95, 0.95, "95%") == "≥ 95%: met"


def test_a_table_is_markdown() -> None:
    table = tables.Table("Title", ("what", "value"), (("a", "1"), ("b", "2")), ("A note.",))
    assert tables.render(table).splitlines() == [
        "### Title",
        "",
        "| what | value |",
        "| --- | ---: |",
        "| a | 1 |",
        "| b | 2 |",
        "",
        "- A note.",
    ]


def test_rollouts_are_compared_by_medians_of_the_same_run() -> None:
    result = rollout.Rollout(orc=[1.0, 9.0, 1.2], first=2.0, host=[12.0], overlay=[3.0])
    ours, host, overlay = rollout.report(result, "").rows
    assert ours[1:4] == ("3", "1.2 s", "50.0")
    assert host[4:] == ("10.0x", "≥ 5x: met")
    assert overlay[4:] == ("2.5x", "≥ 5x: MISSED")


def test_without_docker_the_table_notes_its_absence() -> None:
    result = latency.Latency(orc=[0.05], orc_command=[0.2])
    table = latency.report(result, "Docker was not measured: dockerd is not installed")
    assert [row[0] for row in table.rows] == ["Orc, API call to RUNNING", "`orc service create`"]
    assert table.notes[-1] == "Docker was not measured: dockerd is not installed."


def test_processes_of_a_cluster_are_distinguished() -> None:
    def process(pid: int, *argv: str) -> Process:
        return Process(pid, 1, argv)

    groups = sort(
        {
            "manager1": [
                process(1, "python", "/venv/bin/orc", "manager", "--data-dir", "/d"),
                process(2, "/usr/bin/etcd", "--name=orc"),
            ],
            "node1": [
                process(3, "python", "/venv/bin/orc", "agent", "--data-dir", "/d"),
                process(4, "python", "-m", "orchestrator.cni.helper", "/d"),
                process(5, "/usr/bin/conmon", "--cid=x"),
                process(6, "/bin/busybox", "sleep"),
            ],
        }
    )
    told = [groups.managers, groups.etcd, groups.agents, groups.helpers, groups.conmons]
    assert [[process.pid for process in group] for group in told] == [[1], [2], [3], [4], [5]]


def test_this_process_is_measured_with_its_children() -> None:
    mine = processes.descendants(os.getpid())
    assert os.getpid() in [process.pid for process in mine]
    held = processes.memory(mine)
    assert held.rss >= held.pss > 1 << 20
    assert processes.cpu_seconds(mine) > 0
