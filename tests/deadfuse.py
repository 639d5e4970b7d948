"""A file system that never answers: FUSE with nobody behind it."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.agent.runtime.mounts import mount, unmount


class DeadFileSystem:
    """Mounted at a folder; whoever touches it hangs until `close`, after which it gives errors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0"
        mount("fuse", folder, "fuse.dead", 0, options)

    def close(self) -> None:
        """End it, and with it what hangs."""
        if self._fuse >= 0:
            os.close(self._fuse)
            self._fuse = -1

    def unmount(self) -> None:
        """Take it away."""
        self.close()
        unmount(self.folder)
