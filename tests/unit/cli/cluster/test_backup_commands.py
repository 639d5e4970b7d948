# SPDX-License-Identifier: Apache-2.0
"""`orc cluster backup` with a schedule, `backups`, and what `cluster info` says of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from orchestrator.pb import backup_pb2 as pb
from orchestrator.pb import control_pb2, types_pb2

Run = Callable[..., Result]
HOUR = 3600.0


def overview(*managers: Any, every: float = HOUR, changed_at: float = 5.0) -> Any:
    schedule = types_pb2.BackupSchedule(
        every=every, keep=10, folder="/backups", changed_at=changed_at
    )
    return pb.BackupOverview(schedule=schedule if every else None, managers=managers)


def of(hostname: str, *, running: bool = True, **status: Any) -> Any:
    status = {"schedule_changed_at": 5.0, **status}
    return pb.ManagerBackups(id=hostname, hostname=hostname, running=running, status=status)


def test_a_schedule_waits_for_the_first_backup_of_each_running_manager(
    manager: Any, run: Run
) -> None:
    waits = [of("host1", schedule_changed_at=4.0), of("host2", running=False)]
    done = [of("host1", file="/backups/host1/a", size=7), of("host2", running=False)]
    manager.script.answers["SetSchedule"] = overview(*waits)
    answers = iter([overview(*waits), overview(*done)])
    manager.script.answers["GetOverview"] = lambda request: next(answers)
    result = run("cluster", "backup", "--every", "1h", "--recipient", "age1x", "/backups")
    assert (result.exit_code, result.stdout) == (0, "host1: /backups/host1/a, 7 bytes\n")
    sent = manager.script.request("SetSchedule").schedule
    assert (sent.every, sent.keep, sent.folder, sent.recipient) == (HOUR, 10, "/backups", "age1x")


def test_a_first_backup_that_fails_is_an_error(manager: Any, refused: Callable[..., str]) -> None:
    failed = [of(host, error="disk full", failed_at=6.0) for host in ("host1", "host3")]
    manager.script.answers["SetSchedule"] = overview(*failed, of("host2", running=False))
    words = ("--every", "1h", "--passphrase-file", "/etc/p", "/backups")
    assert refused("cluster", "backup", *words) == (
        "backups are scheduled, but the first one failed: host1, host3: disk full. Managers try "
        "again every five minutes; repeat the command to change the schedule, or end it by "
        "--unschedule"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--every", "1h", "/backups"), "--recipient"),
        (("--keep", "3", "file"), "--keep needs --every"),
        (("--unschedule", "/backups"), "--unschedule takes no other"),
        ((), "give the FILE"),
    ],
)
def test_contradictory_flags_are_refused(
    words: tuple[str, ...], said: str, manager: Any, refused: Callable[..., str]
) -> None:
    assert said in refused("cluster", "backup", *words, status=2)


def test_managers_are_listed_with_the_state_of_their_backups(manager: Any, run: Run) -> None:
    now = time.time()
    manager.script.answers["GetOverview"] = overview(
        of("host1", succeeded_at=now - 60, size=2048, kept=3, file="/backups/host1/a"),
        of("host2", succeeded_at=now - 3 * HOUR),
        of("host3", succeeded_at=now - 60, failed_at=now, error="disk full", failures=2),
    )
    rows = json.loads(run("cluster", "backups", "--format", "json").stdout)
    assert [row["state"] for row in rows] == ["ok", "overdue", "failed"]
    assert rows[2].items() >= {"error": "disk full", "failures": 2}.items()
    table = run("cluster", "backups").stdout.splitlines()
    assert "3 hours ago" in table[2]
    assert "disk full" in table[3]
    manager.script.answers["GetOverview"] = overview(of("host1"), every=0.0)
    [row] = json.loads(run("cluster", "backups", "--format", "json").stdout)
    assert (row["state"], row["newest_at"]) == ("unscheduled", None)


def test_info_shows_the_schedule_and_failures(manager: Any, run: Run) -> None:
    now = time.time()
    backups = overview(
        of("host1", downloaded_at=now - 120), of("host2", failed_at=now - 60, error="disk full")
    )
    manager.script.answers["GetCluster"] = control_pb2.ClusterInfo(id="c1", backups=backups)
    text = run("cluster", "info").stdout
    assert "every 1h to /backups, keep 10; newest: 2 minutes ago" in text
    assert "host2, about a minute ago: disk full" in text
    manager.script.answers["GetCluster"] = control_pb2.ClusterInfo(id="c1")
    assert "Backups" not in run("cluster", "info").stdout, "an older manager does not say"
