# SPDX-License-Identifier: Apache-2.0
"""The managers' backups as commands show them."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.cli.output.listings import Row, rfc3339
from orchestrator.model.units import format_ago, format_duration
from orchestrator.pb import backup_pb2


def backup_row(
    manager: backup_pb2.ManagerBackups, overview: backup_pb2.BackupOverview, now: float
) -> Row:
    """The backups of a manager as a row of listings."""
    status = manager.status
    overdue = status.succeeded_at + 2 * overview.schedule.every < now
    if not overview.HasField("schedule"):
        state = "unscheduled"
    elif status.error:
        state = "failed"
    else:
        state = "overdue" if overdue else "ok"
    return {
        "id": manager.id,
        "manager": manager.hostname,
        "state": state,
        "newest_at": rfc3339(status.succeeded_at) if status.succeeded_at else None,
        "file": status.file,
        "size": status.size,
        "kept": status.kept,
        "failed_at": rfc3339(status.failed_at) if status.failed_at else None,
        "error": status.error if overview.HasField("schedule") else "",
        "failures": status.failures,
        "_newest": status.succeeded_at,
    }


def ago(moment: float, now: float) -> str:
    """`3 hours ago`, or `never` for 0."""
    return format_ago(moment, now) if moment else "never"


def backup_fields(overview: backup_pb2.BackupOverview, now: float) -> Iterator[tuple[str, str]]:
    """The backups of a cluster, as `orc cluster info` shows them."""
    newest = newest_backup(overview)
    schedule = overview.schedule
    if overview.HasField("schedule"):
        when = f"every {format_duration(schedule.every)} to {schedule.folder}, keep {schedule.keep}"
    else:
        when = "not scheduled"
    yield "Backups", f"{when}; newest: {ago(newest, now)}"
    for each in overview.managers:
        if overview.HasField("schedule") and each.status.error:
            when = ago(each.status.failed_at, now)
            yield "Backup failed", f"{each.hostname}, {when}: {each.status.error}"


def backup_document(overview: backup_pb2.BackupOverview) -> Row:
    """The backups of a cluster as a document."""
    newest = newest_backup(overview)
    schedule = overview.schedule
    return {
        "every": schedule.every,
        "keep": schedule.keep,
        "folder": schedule.folder,
        "newest_at": rfc3339(newest) if newest else None,
        "failed": [
            {"manager": each.hostname, "error": each.status.error}
            for each in overview.managers
            if overview.HasField("schedule") and each.status.error
        ],
    }


def newest_backup(overview: backup_pb2.BackupOverview) -> float:
    """When the newest backup was made, scheduled or not; 0: never."""
    return max(
        (max(each.status.succeeded_at, each.status.downloaded_at) for each in overview.managers),
        default=0.0,
    )
