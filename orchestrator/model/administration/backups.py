# SPDX-License-Identifier: Apache-2.0
"""Scheduled backups: what an operator set, and what each manager has written."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.model.extensible import Extensible


@dataclass(frozen=True, slots=True)
class BackupSchedule(Extensible):
    """When and where every manager writes backups."""

    every: float = 0.0
    """Seconds from one backup to the next; 0: no backups are scheduled."""
    keep: int = 0
    """Number of backups that each manager keeps."""
    folder: str = ""
    """Absolute path on the managers' hosts. Each manager has a folder in it, with its hostname."""
    recipient: str = ""
    """Public key of age that backups are encrypted to; empty: to a passphrase."""
    passphrase_file: str = ""
    """Absolute path on the managers' hosts."""
    changed_at: float = 0.0
    """When an operator set it, in seconds since the epoch: every manager then writes a backup."""


@dataclass(frozen=True, slots=True)
class BackupStatus(Extensible):
    """The backups of one manager. Times are in seconds since the epoch; 0: never."""

    succeeded_at: float = 0.0
    """When the store was read for the newest scheduled backup."""
    file: str = ""
    """Path of the newest scheduled backup on the manager's host."""
    size: int = 0
    """Of that file, in bytes."""
    kept: int = 0
    """Number of scheduled backups in its folder."""
    failed_at: float = 0.0
    """When the newest scheduled backup failed."""
    error: str = ""
    """Why it failed; empty once one has succeeded."""
    failures: int = 0
    """Number of scheduled backups that failed."""
    downloaded_at: float = 0.0
    """When the store was read for the newest backup that a client received."""
    schedule_changed_at: float = 0.0
    """`BackupSchedule.changed_at` of the schedule that the newest attempt followed."""

    @property
    def newest(self) -> float:
        """When the newest backup was made, of either kind."""
        return max(self.succeeded_at, self.downloaded_at)
