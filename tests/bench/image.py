# SPDX-License-Identifier: Apache-2.0
"""The image that all containers of the benchmark run: static busybox and nothing else.

As an archive that both `orc load` and Docker take, so that both run the same bytes.
Format: moby's image specification v1.2 (`manifest.json`, a config, a layer).
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path

NAME = "orc-bench:1"
COMMAND = ("/bin/busybox", "sleep", "100000")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write(path: Path) -> None:
    """Write the archive. Raises FileNotFoundError when busybox is not installed."""
    found = shutil.which("busybox")
    if found is None:
        raise FileNotFoundError("busybox is not installed: apt install busybox-static")
    layer = _tar({"bin/busybox": Path(found).read_bytes()})
    machine = platform.machine()
    config = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {"Cmd": list(COMMAND), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    path.write_bytes(
        _tar(
            {
                "manifest.json": json.dumps(manifest).encode(),
                "config.json": json.dumps(config).encode(),
                "layer.tar": layer,
            }
        )
    )


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
