# SPDX-License-Identifier: Apache-2.0
"""When a manager writes a scheduled backup, and which files it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backups.archive import Archive, BackupError, Manifest, unpack
from orchestrator.backups.passphrase import decrypt
from orchestrator.daemon.background import background
from orchestrator.manager.backup.scheduled import (
    RETRY,
    ScheduledBackups,
    folder_name,
    is_due,
    write,
)
from orchestrator.manager.errors import RequestError
from orchestrator.manager.operations.administration.backups import check_schedule
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import StoreUnavailable
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.administration.backups import BackupSchedule, BackupStatus
from orchestrator.model.administration.managers import Manager
from orchestrator.model.objects import Cluster

HOUR = 3600.0
HOURLY = BackupSchedule(
    every=HOUR, keep=2, folder="/backups", passphrase_file="/etc/orc/passphrase", changed_at=100.0
)
FAILED = BackupStatus(failed_at=200, error="x", schedule_changed_at=100)
ARCHIVE = Archive(Manifest("0123456789abcdef", 0.0, 42, "0.1.0", 1), (("/orc/a", b"1"),), {})


@pytest.mark.parametrize(
    ("schedule", "status", "now", "due"),
    [
        pytest.param(BackupSchedule(), BackupStatus(), 1e6, False, id="not scheduled"),
        pytest.param(HOURLY, BackupStatus(), 101, True, id="new"),
        pytest.param(
            HOURLY,
            BackupStatus(succeeded_at=150, schedule_changed_at=50),
            101,
            True,
            id="changed since",
        ),
        pytest.param(
            HOURLY, BackupStatus(succeeded_at=200, schedule_changed_at=100), 3799, False, id="early"
        ),
        pytest.param(
            HOURLY, BackupStatus(succeeded_at=200, schedule_changed_at=100), 3800, True, id="due"
        ),
        pytest.param(
            HOURLY,
            BackupStatus(200, failed_at=150, failures=1, schedule_changed_at=100),
            300,
            False,
            id="failed before",
        ),
        pytest.param(HOURLY, FAILED, 199 + RETRY, False, id="failed"),
        pytest.param(HOURLY, FAILED, 200 + RETRY, True, id="tried again"),
        pytest.param(
            HOURLY, BackupStatus(50, schedule_changed_at=100), 60, False, id="clock is behind"
        ),
        pytest.param(
            HOURLY, BackupStatus(1e6, schedule_changed_at=100), 101, True, id="clock was set back"
        ),
    ],
)
def test_a_backup_is_due(
    schedule: BackupSchedule, status: BackupStatus, now: float, due: bool
) -> None:
    assert is_due(schedule, status, now) is due


def _schedule(folder: Path) -> BackupSchedule:
    words = folder / "passphrase"
    words.write_text("correct horse battery\n")
    return replace(HOURLY, folder=str(folder / "backups"), passphrase_file=str(words))


def _at(seconds: float) -> Archive:
    return replace(ARCHIVE, manifest=replace(ARCHIVE.manifest, created_at=seconds))


def test_the_newest_backups_of_this_manager_are_kept(tmp_path: Path) -> None:
    schedule = _schedule(tmp_path)
    folder = tmp_path / "backups" / "m1"
    folder.mkdir(parents=True)
    others = [
        folder / "orc-ffffffff-19700101T000000Z.orcbackup",  # of another cluster
        folder / "notes",
    ]
    for other in others:
        other.write_text("")
    (folder / ".orc-01234567-19700101T000000Z.orcbackup.new").write_text("half")
    written = [write(_at(seconds), schedule, "m1") for seconds in (0.0, HOUR, 2 * HOUR)]
    elsewhere = write(_at(0.0), schedule, "m2")
    assert [each.kept for each in written] == [1, 2, 2]
    names = ["orc-01234567-19700101T010000Z.orcbackup", "orc-01234567-19700101T020000Z.orcbackup"]
    assert sorted(folder.iterdir()) == sorted([*others, *(folder / name for name in names)])
    assert Path(elsewhere.file).parent.name == "m2"
    plain = decrypt(Path(written[-1].file).read_bytes(), "correct horse battery")
    assert unpack(plain) == _at(2 * HOUR)


def test_a_failed_backup_deletes_none(tmp_path: Path) -> None:
    schedule = _schedule(tmp_path)
    kept = [write(_at(seconds), schedule, "m1").file for seconds in (0.0, HOUR)]
    Path(schedule.passphrase_file).unlink()
    with pytest.raises(
        BackupError, match=r"cannot read the passphrase file .*: No such file .*host needs it"
    ):
        write(_at(2 * HOUR), schedule, "m1")
    assert all(Path(file).exists() for file in kept)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    schedule = _schedule(tmp_path)
    (tmp_path / "backups").write_text("a file")
    with pytest.raises(BackupError, match=r"cannot write .*ReadWritePaths"):
        write(_at(0.0), schedule, "m1")


def test_managers_with_the_same_hostname_have_their_own_folders() -> None:
    one, other, third = (Manager(id=id, hostname=f"host{id[0]}") for id in ("a1", "a2", "b1"))
    view = ClusterView.of([one, other, third])
    names = [folder_name(view, each) for each in (one, other, third)]
    assert names == ["hosta-a1", "hosta-a2", "hostb"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"every": 5.0}, "every minute at most"),
        ({"keep": 0}, "at least one"),
        ({"folder": "backups"}, "not an absolute path"),
        ({"passphrase_file": "passphrase"}, "not an absolute path"),
        ({"recipient": "age1x"}, "either a recipient or a passphrase file"),
        ({"passphrase_file": ""}, "either a recipient or a passphrase file"),
        ({"passphrase_file": "", "recipient": "ops@example.org"}, "of age only"),
    ],
)
def test_a_schedule_that_managers_cannot_follow_is_refused(
    wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        check_schedule(replace(HOURLY, **wrong))  # type: ignore[arg-type]


async def test_a_backup_is_written_as_the_schedule_says_and_its_outcome_recorded(
    tmp_path: Path,
) -> None:
    kv, now = MemoryKv(lambda: 0.0), 1000.0
    cache = Cache(kv)
    schedule = replace(_schedule(tmp_path), changed_at=now)
    cluster = Cluster(id="0123456789abcdef", backup_schedule=schedule)
    await commit(kv, [Change(None, cluster), Change(None, Manager(id="m1", hostname="host1"))])

    async def take(cluster_id: str) -> Archive:
        if now == 1000.0:
            raise StoreUnavailable("no quorum")
        return replace(ARCHIVE, manifest=replace(ARCHIVE.manifest, created_at=now))

    def status() -> BackupStatus:
        return cache.view.managers["m1"].backups

    backups = ScheduledBackups(kv, cache, "m1", take, lambda: now, period=0.001)
    async with background(cache.follow()), background(backups.run()):
        await until(cache, lambda: "m1" in cache.view.managers and status().failures == 1)
        assert (status().failed_at, status().error) == (1000.0, "no quorum")
        now += RETRY
        await until(cache, lambda: status().succeeded_at == now)
        assert (status().error, status().failures, status().kept) == ("", 1, 1)
        assert Path(status().file).parent == tmp_path / "backups" / "host1"
        written = now
        now += HOUR
        await until(cache, lambda: status().succeeded_at == written + HOUR)
        assert status().kept == 2


async def until(cache: Cache, ask: Callable[[], bool]) -> None:
    """Wait until the store's content is so."""
    async with asyncio.timeout(30), cache.subscribe() as feed:
        while not ask():
            await feed.next()
