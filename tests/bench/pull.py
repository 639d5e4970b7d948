"""Pull and unpack beside skopeo and tar by hand, from one registry in one run.

python -m tests.bench.pull NAME   (HOST:PORT/REPOSITORY:TAG at a registry that serves it)
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.agent.images.registry import Registry
from orchestrator.agent.images.store import ImageStore

ROUNDS = 3


def by_hand(name: str, folder: Path) -> float:
    """Seconds of `skopeo copy` into a folder and `tar` of each layer in turn."""
    begun = time.perf_counter()
    layout = folder / "hand"
    subprocess.run(["skopeo", "copy", "-q", f"docker://{name}", f"oci:{layout}:image"], check=True)
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = index["manifests"][0]["digest"].removeprefix("sha256:")
    for number, layer in enumerate(json.loads((blobs / manifest).read_text())["layers"]):
        into = folder / f"hand-{number}"
        into.mkdir()
        blob = blobs / layer["digest"].removeprefix("sha256:")
        subprocess.run(["tar", "-xf", blob, "-C", into], check=True)
    subprocess.run(["sync", "-f", folder], check=True)
    return time.perf_counter() - begun


async def by_orc(name: str, folder: Path) -> float:
    """Seconds of the same by the node's image store."""
    registry = Registry(folder)
    async with ImageStore(folder / "store") as store:
        begun = time.perf_counter()
        digest = await registry.resolve(name)
        async with registry.source(name, digest, there=store.blob_path) as fetch:
            await store.ensure(digest, fetch, name)
        return time.perf_counter() - begun


def main(name: str) -> None:
    """Print the best of a few rounds of each, and their ratio."""
    hand, orc = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            hand.append(by_hand(name, Path(folder)))
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            orc.append(asyncio.run(by_orc(name, Path(folder))))
    print(f"skopeo and tar {min(hand):.2f} s, orc {min(orc):.2f} s: {min(orc) / min(hand):.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
