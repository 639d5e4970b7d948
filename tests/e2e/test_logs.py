# SPDX-License-Identifier: Apache-2.0
"""Logs of containers and of services, at speed and over faults."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from pathlib import Path

from devcluster import ORC, Cluster, eventually


def test_every_line_of_a_fast_writer_is_followed_over_rotations(
    cluster: Cluster, hello: str, tmp_path: Path
) -> None:
    cluster.orc("create", "--name", "fast", "--entrypoint", "/bin/busybox", hello, "seq", "200000")
    cluster.orc("start", "fast")
    try:
        followed = cluster.orc("logs", "-f", "fast").stdout
        assert followed == "".join(f"{number}\n" for number in range(1, 200_001))
        stamped = cluster.orc("logs", "-t", "--tail", "2", "fast").stdout.splitlines()
        assert [line.split(" ")[1] for line in stamped] == ["199999", "200000"]
        until = stamped[0].split(" ")[0]
        assert cluster.orc("logs", "--tail", "1", "--until", "1h", "fast").stdout == ""
        assert cluster.orc("logs", "--since", until, "--tail", "1", "fast").stdout == "200000\n"
    finally:
        cluster.orc("rm", "-f", "fast")


def test_service_logs_are_followed_through_outages_of_node_and_manager(
    cluster: Cluster, hello: str, tmp_path: Path
) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i; echo e$i >&2; sleep 0.1; done"
    tasks = cluster.script("talk", hello, script, "--replicas", "3")
    away = tasks[0]["node"]
    out, err = tmp_path / "out", tmp_path / "err"
    with (
        out.open("wb") as stdout,
        err.open("wb") as stderr,
        subprocess.Popen(
            [ORC, "service", "logs", "-f", "talk"], env=cluster.env, stdout=stdout, stderr=stderr
        ) as following,
    ):
        try:
            eventually(lambda: out.read_text().count("| 3\n") == 3)
            cluster.partition(away)
            # Those on other nodes flow, and one line says who does not.
            others = out.read_text().count("\n")
            eventually(lambda: out.read_text().count("\n") > others + 20)

            def says_so() -> bool:
                done = cluster.orc("service", "logs", "--tail", "1", "talk")
                notices = [line for line in done.stderr.splitlines() if line.startswith("orc: ")]
                assert len(notices) == 1, done.stderr
                assert f"node {away} " in notices[0]
                return len((done.stdout + done.stderr).splitlines()) >= 3

            eventually(says_so)
            cluster.heal()
            cluster.await_ready(away)
            # What ran there goes on being told, or has been replaced and is told as well.
            cluster.await_running("talk", 3)
            cluster.orc("service", "scale", "talk=4")
            eventually(lambda: "talk.4@" in out.read_text())
            # So does all when the manager has died that told it.
            cluster.kill9("manager1", "daemon")
            more = ("service", "scale", "-d", "talk=5")
            eventually(lambda: cluster.orc(*more, ok=False).returncode == 0)
            eventually(lambda: "talk.5@" in out.read_text())
        finally:
            following.terminate()
    for lines in (*by_task(out).values(), *by_task(err, "e").values()):
        assert lines == list(range(1, len(lines) + 1))


def by_task(path: Path, mark: str = "") -> dict[tuple[str, str], list[int]]:
    """The numbers that each task said, by name and node."""
    said: dict[tuple[str, str], list[int]] = defaultdict(list)
    for line in path.read_text().splitlines(keepends=True):
        if line.startswith("orc: ") or not line.endswith("\n"):
            continue
        prefix, text = line.strip().split("| ")
        name, node = prefix.strip().split("@")
        said[name, node].append(int(text.removeprefix(mark)))
    return said


def test_json_files_have_each_line_once_over_the_death_of_the_agent(
    cluster: Cluster, hello: str
) -> None:
    script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.1; done; sleep 1000"
    shell = ("--entrypoint", "/bin/busybox", hello, "sh", "-c", script)
    options = ("--log-driver", "json-file", "--log-opt", "tag={{.Name}}")
    task = cluster.orc("run", "-d", "--name", "shipped", "--node", "node1", *options, *shell)
    task_id = task.stdout.strip()
    path = cluster.data("node1") / "json-logs" / task_id / f"{task_id}-json.log"
    try:
        for count in (10, 30):
            eventually(lambda count=count: path.read_text().count("\n") > count)  # type: ignore[misc]
            cluster.kill9("node1", "daemon")
        rows = eventually(
            lambda: (lines := path.read_text().splitlines()) and len(lines) >= 60 and lines
        )
        found = [json.loads(row) for row in rows]
        assert [row["log"] for row in found] == [f"{number}\n" for number in range(1, 61)]
        assert {(row["stream"], row["attrs"]["tag"]) for row in found} == {("stdout", "shipped")}
        cluster.await_ready("node1")
        assert cluster.orc("logs", "--tail", "1", "shipped").stdout == "60\n"
        known = cluster.json("inspect", "shipped")[0]["spec"]["container"]["logging"]
        assert known == {"driver": "json-file", "options": {"tag": "{{.Name}}"}}
    finally:
        cluster.orc("rm", "-f", "shipped")
    eventually(lambda: not path.exists())


def test_logs_that_are_not_kept_and_drivers_that_a_node_lacks_are_refused(
    cluster: Cluster, hello: str
) -> None:
    shell = ("--entrypoint", "/bin/busybox", hello, "echo", "once")
    try:
        ran = cluster.orc("run", "--name", "untold", "--log-driver", "none", *shell)
        assert ran.stdout == "once\n"
        told = cluster.refused("logs", "untold")
        assert "the logging driver none of untold does not support reading" in told
        there = ("--log-driver", "syslog", "--log-opt", "syslog-address=unix:///nowhere/log")
        told = cluster.refused("run", "--name", "lost", *there, *shell)
        assert "logging driver syslog: this node has no socket /nowhere/log" in told
    finally:
        cluster.orc("rm", "-f", "untold", ok=False)
        cluster.orc("rm", "-f", "lost", ok=False)
