# SPDX-License-Identifier: Apache-2.0
"""Backups that a client asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from orchestrator.backups.archive import pack
from orchestrator.manager.backup.store_dump import dump
from orchestrator.manager.errors import unavailable
from orchestrator.manager.event_loop import offload
from orchestrator.manager.operations.context import ManagerContext, Operations
from orchestrator.pb import backup_pb2

_CHUNK = 1 << 20
"""Bytes of one message."""


class BackupOperations(Operations):
    """Operations of `orc cluster backup`."""

    def __init__(self, ctx: ManagerContext, data_dir: Path) -> None:
        super().__init__(ctx)
        self._data_dir = data_dir

    async def create(
        self, request: backup_pb2.CreateBackupRequest
    ) -> AsyncIterator[backup_pb2.BackupChunk]:
        """Stream a backup of the store at one revision and of the cluster's keys."""
        cluster = self.ctx.view.cluster
        if cluster is None:
            raise unavailable("the manager has not read its store yet; try again in a moment")
        ctx = self.ctx
        archive = await dump(ctx.kv, self._data_dir, cluster.id, ctx.now(), ctx.keys)
        data = await offload(pack, archive)
        for start in range(0, len(data), _CHUNK):
            yield backup_pb2.BackupChunk(data=data[start : start + _CHUNK])
