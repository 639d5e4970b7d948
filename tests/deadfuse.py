# SPDX-License-Identifier: Apache-2.0
"""File systems that do not answer: FUSE with nobody behind it, or with a server that hangs."""

from __future__ import annotations

import os
import select
import struct
import threading
from pathlib import Path

from orchestrator.linux.libc import mount
from orchestrator.linux.mounts import unmount


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


class FrozenServer:
    """The server of a FUSE file system that takes each request and answers none: whoever asks
    cannot even be killed, as with a server that is stopped. Ends with `close`."""

    def __init__(self, fuse: int) -> None:
        """`fuse` is what the file system was mounted with, and is closed in the end."""
        self._fuse = fuse
        self._over = threading.Event()
        os.set_blocking(fuse, False)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            if not select.select([self._fuse], [], [], 0.02)[0]:
                continue
            try:
                request = os.read(self._fuse, 1 << 18)
            except BlockingIOError:
                continue
            except OSError:
                return  # it was unmounted
            _, kind, unique = struct.unpack_from("IIQ", request)
            if kind == 26:  # FUSE_INIT: version 7.31, and no feature
                answer = struct.pack("IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 1 << 17, 1, 32, 0, 0)
                os.write(self._fuse, struct.pack("IiQ", 16 + len(answer), 0, unique) + answer)

    def close(self) -> None:
        """End it, and with it what hangs."""
        self._over.set()
        self._thread.join()
        os.close(self._fuse)
