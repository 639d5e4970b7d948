# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus (Debian's) on this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster import PATIENCE

from tests.freeports import free_ports


@contextmanager
def local_prometheus(config: str, folder: Path) -> Iterator[int]:
    """Run it with this configuration for the length of the block; its port on loopback."""
    file = folder / "prometheus.yml"
    file.write_text(config)
    subprocess.run(["promtool", "check", "config", "--lint=none", file], check=True)
    port = free_ports()
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log
        ) as process,
    ):
        try:
            yield port
        finally:
            process.terminate()
            process.wait(PATIENCE)
