# SPDX-License-Identifier: Apache-2.0
"""Backups that a client asks for, and the schedule of those that managers write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.backups.archive import BackupError, pack
from orchestrator.backups.recipients import encrypt_to, is_age_recipient
from orchestrator.manager.backup.scheduled import record_status
from orchestrator.manager.backup.store_dump import dump
from orchestrator.manager.errors import RequestError, invalid_argument, not_ready
from orchestrator.manager.event_loop import offload
from orchestrator.manager.operations.context import ManagerContext, Operations, on_current_state
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import StoreError
from orchestrator.model.administration.backups import BackupSchedule
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.objects import Cluster
from orchestrator.pb import backup_pb2

_CHUNK = 1 << 20
"""Bytes of one message."""
SHORTEST_PERIOD = 60.0
"""Seconds from one scheduled backup to the next, at least."""


class BackupOperations(Operations):
    """Operations of `orc cluster backup` and `backups`."""

    def __init__(self, ctx: ManagerContext, data_dir: Path) -> None:
        super().__init__(ctx)
        self._data_dir = data_dir

    def _cluster(self) -> Cluster:
        cluster = self.ctx.view.cluster
        if cluster is None:
            raise not_ready("the manager has not read its store yet; try again in a moment")
        return cluster

    async def create(
        self, request: backup_pb2.CreateBackupRequest
    ) -> AsyncIterator[backup_pb2.BackupChunk]:
        """Stream a backup of the store at one revision and of the cluster's keys."""
        ctx, cluster = self.ctx, self._cluster()
        archive = await dump(ctx.kv, self._data_dir, cluster.id, ctx.now(), ctx.keys)
        data = await offload(pack, archive)
        for start in range(0, len(data), _CHUNK):
            yield backup_pb2.BackupChunk(data=data[start : start + _CHUNK])
        taken = archive.manifest.created_at
        with suppress(StoreError):  # the client has its backup
            await record_status(
                ctx.kv,
                ctx.cache,
                ctx.identity.manager_id,
                lambda before: replace(before, downloaded_at=taken),
            )

    @on_current_state
    async def set_schedule(
        self, request: backup_pb2.SetBackupScheduleRequest
    ) -> backup_pb2.BackupOverview:
        """Have every manager write backups on a schedule, or end that."""
        schedule: BackupSchedule = from_proto(request.schedule)
        if schedule.every:
            check_schedule(schedule)
            if schedule.recipient:
                try:
                    await offload(encrypt_to, b"", schedule.recipient)
                except BackupError as error:
                    raise invalid_argument(
                        f"nothing was changed: cannot encrypt to the recipient: {error}"
                    ) from error
            schedule = replace(schedule, changed_at=self.ctx.now())
        else:
            schedule = BackupSchedule()
        cluster = self._cluster()
        after = replace(cluster, backup_schedule=schedule)
        if after != cluster:
            revision = await commit(self.ctx.kv, [Change(cluster, after)])
            await self.ctx.cache.wait_for(revision)
        return overview(self.ctx.view)

    async def get_overview(
        self, request: backup_pb2.GetBackupOverviewRequest
    ) -> backup_pb2.BackupOverview:
        """The schedule, and the backups of each manager."""
        return overview(self.ctx.view)


def overview(view: ClusterView) -> backup_pb2.BackupOverview:
    """The schedule, and the backups of each manager."""
    schedule = view.cluster.backup_schedule if view.cluster is not None else BackupSchedule()
    managers: list[Any] = [
        backup_pb2.ManagerBackups(
            id=each.id,
            hostname=each.hostname,
            running=each.id in view.manager_presence,
            status=to_proto(each.backups),
        )
        for each in sorted(view.managers.values(), key=lambda each: (each.hostname, each.id))
        if not each.joining
    ]
    return backup_pb2.BackupOverview(
        schedule=to_proto(schedule) if schedule.every else None, managers=managers
    )


def check_schedule(schedule: BackupSchedule) -> None:
    """Raise RequestError if managers cannot follow a schedule."""
    if (reason := _refusal(schedule)) is not None:
        raise reason


def _refusal(schedule: BackupSchedule) -> RequestError | None:
    if schedule.every < SHORTEST_PERIOD:
        return invalid_argument("backups can be scheduled every minute at most: '--every 6h'")
    if schedule.keep < 1:
        return invalid_argument("at least one backup must be kept: '--keep 10'")
    if not schedule.folder.startswith("/"):
        return invalid_argument(
            f"{schedule.folder!r} is not an absolute path: it is of the managers' hosts, such as "
            "/var/lib/orc/backups"
        )
    if bool(schedule.recipient) == bool(schedule.passphrase_file):
        return invalid_argument("a schedule needs either a recipient or a passphrase file")
    if schedule.recipient and not is_age_recipient(schedule.recipient):
        return invalid_argument(
            "managers encrypt to recipients of age only (age1…, ssh-ed25519 …, ssh-rsa …)"
        )
    if schedule.passphrase_file and not schedule.passphrase_file.startswith("/"):
        return invalid_argument(
            f"{schedule.passphrase_file!r} is not an absolute path: the passphrase file is on each "
            "manager's host"
        )
    return None
