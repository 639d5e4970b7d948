# SPDX-License-Identifier: Apache-2.0
"""A small disk of a test that can be full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from orchestrator.linux.libc import mount


class Disk:
    """A tmpfs; in a mount namespace of the test, see `volumekit.private`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no room at all."""
        with self._filler.open("ab", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    return

    def free(self) -> None:
        """Give the room back."""
        os.truncate(self._filler, 0)


def small_disk(folder: Path, size: int = 1 << 20) -> Disk:
    """A disk of `size` bytes, mounted at `folder`, which is made."""
    folder.mkdir()
    mount("tmpfs", folder, "tmpfs", 0, f"size={size}")
    return Disk(folder)
