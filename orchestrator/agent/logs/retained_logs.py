# SPDX-License-Identifier: Apache-2.0
"""Logs of ended tasks.

While a container exists its log belongs to the runtime. Before the container is removed, its log
files move (a rename, which does not disturb readers) to `data-dir/logs/TASK/`, and stay there until
the manager forgets the task. So `orc service logs` shows why the last replica died for as long as
`orc service ps` lists it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

_NAME = "log"


class RetainedLogs:
    """The folder of ended tasks' logs: `ROOT/TASK/log`, older ones beside it as `.1`, `.2`, …"""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, task_id: str) -> Path:
        """The path of a task's newest log file after the removal of its container; it may not
        exist."""
        return self._root / task_id / _NAME

    def keep(self, task_id: str, live: Path) -> None:
        """Take over the files of a container that has ended and is about to be removed."""
        folder = self._root / task_id
        for path in live.parent.glob(f"{live.name}*"):
            suffix = path.name.removeprefix(live.name)
            if suffix and not suffix.removeprefix(".").isdigit():
                continue
            folder.mkdir(exist_ok=True)
            os.replace(path, folder / f"{_NAME}{suffix}")

    def forget(self, task_id: str) -> None:
        """Remove the logs of a task."""
        shutil.rmtree(self._root / task_id, ignore_errors=True)

    def retain(self, known: Collection[str]) -> None:
        """Remove the logs of all other tasks."""
        for folder in self._root.iterdir():
            if folder.name not in known:
                self.forget(folder.name)
