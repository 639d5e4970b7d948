# SPDX-License-Identifier: Apache-2.0
"""Scheduled backups: every manager writes its own, into its own folder, and keeps the newest.

No manager depends on another one for it, and a host that is lost takes only its copies with it. A
file has a name that sorts by time, under the manager's hostname, so that managers can share a
folder on a file server:

    FOLDER/HOSTNAME/orc-CLUSTER-20261201T060000Z.orcbackup

The outcome is written to the manager's object, from which events, metrics and commands take it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.backups.archive import Archive, BackupError, pack
from orchestrator.backups.passphrase import encrypt
from orchestrator.backups.recipients import encrypt_to
from orchestrator.linux.atomicfile import write_file
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict, Kv, StoreError
from orchestrator.model.administration.backups import BackupSchedule, BackupStatus
from orchestrator.model.administration.managers import Manager

log = logging.getLogger(__name__)

SUFFIX = ".orcbackup"
RETRY = 300.0
"""Seconds after a failure until the next attempt, unless the schedule says less."""
_PERIOD = 1.0
"""Seconds between two looks at the clock."""
_CLUSTER_DIGITS = 8
"""Digits of the cluster's id in the name of a file."""


@dataclass(frozen=True, slots=True)
class Written:
    """A backup that was written."""

    file: str
    size: int
    """Bytes."""
    kept: int
    """Number of backups in the folder after it."""


def is_due(schedule: BackupSchedule, status: BackupStatus, now: float) -> bool:
    """Whether a manager with this status is to write a backup now."""
    if not schedule.every:
        return False
    # Compared for equality: another manager's clock may differ.
    if status.schedule_changed_at != schedule.changed_at:
        return True
    if max(status.succeeded_at, status.failed_at) > now:
        return True  # the clock was set back
    if status.error:
        return now >= status.failed_at + min(RETRY, schedule.every)
    return now >= status.succeeded_at + schedule.every


def folder_name(view: ClusterView, manager: Manager) -> str:
    """The name of a manager's folder: its hostname, with its id if others have that, too."""
    same = sum(each.hostname == manager.hostname for each in view.managers.values())
    return manager.hostname if same == 1 else f"{manager.hostname}-{manager.id}"


def write(archive: Archive, schedule: BackupSchedule, name: str) -> Written:
    """Write a backup to the folder with this name, then delete the oldest ones beyond those to
    keep. Blocks until it is on disk. Raises BackupError, and then has deleted none."""
    folder = Path(schedule.folder) / name
    manifest = archive.manifest
    prefix = f"orc-{manifest.cluster_id[:_CLUSTER_DIGITS]}-"
    time = dt.datetime.fromtimestamp(manifest.created_at, dt.UTC)
    file = folder / f"{prefix}{time:%Y%m%dT%H%M%SZ}{SUFFIX}"
    data = _encrypted(pack(archive), schedule)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(file, data)
    except OSError as error:
        raise BackupError(
            f"cannot write {file}: {error.strerror}; the manager's systemd unit allows "
            "/var/lib/orc/backups, and other folders by ReadWritePaths="
        ) from error
    written = sorted(folder.glob(f"{prefix}*{SUFFIX}"))
    try:
        for old in written[: -schedule.keep]:
            old.unlink(missing_ok=True)
        for draft in folder.glob(f".{prefix}*"):  # of a manager that was killed
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise BackupError(f"cannot delete old backups in {folder}: {error.strerror}") from error
    return Written(str(file), len(data), min(len(written), schedule.keep))


def _encrypted(data: bytes, schedule: BackupSchedule) -> bytes:
    if schedule.recipient:
        return encrypt_to(data, schedule.recipient)
    try:
        passphrase = Path(schedule.passphrase_file).read_text().strip("\r\n")
    except OSError as error:
        raise BackupError(
            f"cannot read the passphrase file {schedule.passphrase_file}: {error.strerror}; each "
            "manager's host needs it, readable by root"
        ) from error
    except UnicodeDecodeError as error:
        raise BackupError(
            f"the passphrase file {schedule.passphrase_file} is not text in UTF-8"
        ) from error
    return encrypt(data, passphrase)


class ScheduledBackups:
    """Writes the backups of one manager as the cluster's schedule says."""

    def __init__(
        self,
        kv: Kv,
        cache: Cache,
        manager_id: str,
        take: Callable[[str], Awaitable[Archive]],
        now: Callable[[], float],
        *,
        period: float = _PERIOD,
    ) -> None:
        """`take` reads the store and the keys of the cluster with this id; it raises StoreError and
        BackupError. `now` is the wall clock, which is read every `period` seconds."""
        self._period = period
        self._kv = kv
        self._cache = cache
        self._manager_id = manager_id
        self._take = take
        self._now = now
        self._outcome: BackupStatus | None = None
        """Of the last attempt, until the store has it."""
        self._complaint = ""
        """Why it could not be written to the store."""

    async def run(self) -> None:
        """Follow the schedule until cancelled."""
        while True:
            await asyncio.sleep(self._period)
            view = self._cache.view
            cluster, own = view.cluster, view.managers.get(self._manager_id)
            if cluster is None or own is None:
                continue
            schedule = cluster.backup_schedule
            if self._outcome is None and is_due(schedule, own.backups, self._now()):
                status = replace(own.backups, schedule_changed_at=schedule.changed_at)
                name = folder_name(view, own)
                self._outcome = await self._attempt(cluster.id, schedule, name, status)
            if self._outcome is not None:
                await self._record(self._outcome)

    async def _attempt(
        self, cluster_id: str, schedule: BackupSchedule, name: str, status: BackupStatus
    ) -> BackupStatus:
        began = self._now()
        try:
            archive = await self._take(cluster_id)
            done = await asyncio.to_thread(write, archive, schedule, name)
        except (BackupError, StoreError, OSError) as error:
            log.error("the scheduled backup failed", extra={"reason": error})
            return replace(status, failed_at=began, error=str(error), failures=status.failures + 1)
        log.info("scheduled backup written", extra={"file": done.file, "bytes": done.size})
        return replace(
            status, succeeded_at=began, file=done.file, size=done.size, kept=done.kept, error=""
        )

    async def _record(self, outcome: BackupStatus) -> None:
        """Write the outcome to this manager's object, if the store answers."""

        def change(before: BackupStatus) -> BackupStatus:
            return replace(outcome, downloaded_at=before.downloaded_at)

        try:
            await record_status(self._kv, self._cache, self._manager_id, change)
            self._outcome, self._complaint = None, ""
        except StoreError as error:
            if self._complaint != str(error):
                self._complaint = str(error)
                log.warning("cannot record the outcome of a backup", extra={"error": error})


async def record_status(
    kv: Kv, cache: Cache, manager_id: str, change: Callable[[BackupStatus], BackupStatus]
) -> None:
    """Change the status of a manager's backups in the store. Raises StoreError."""
    while (own := cache.view.managers.get(manager_id)) is not None:
        after = replace(own, backups=change(own.backups))
        try:
            await cache.wait_for(await commit(kv, [Change(own, after)]))
            return
        except Conflict:
            await cache.wait_for(cache.revision + 1)
