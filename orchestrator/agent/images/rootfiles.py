"""All files of a container as a tar, by a process that ends with its mounts; a program.

    python -m orchestrator.agent.images.rootfiles '{"root": FOLDER, "layers": [...], …}' > TAR

`root` is where a running container's root is mounted. Of one that does not run, `layers` (the
lowest first, its own the last) are mounted there for this process alone, read-only. `ids` are the
first of the host's ids that are the container's, and their number.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from orchestrator.agent.images.errors import ImageError
from orchestrator.agent.images.layerfiles import write_root
from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.agent.runtime.overlay import mount_layers

_CLONE_NEWNS = 0x00020000
_PRIVATE = ctypes.c_ulong(0x4000 | 0x40000)
"""Recursive and private, for mount(2)."""
_CHUNK = 1 << 20


async def read_root(root: Path, layers: Sequence[Path], ids: range) -> AsyncIterator[bytes]:
    """The tar, in pieces, as fast as they are taken. Raises ImageError."""
    words = {
        "root": str(root),
        "layers": [str(layer) for layer in layers],
        "ids": [ids.start, len(ids)],
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, json.dumps(words)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_CHUNK,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        while piece := await process.stdout.read(_CHUNK):
            yield piece
        said = (await process.stderr.read()).decode(errors="replace").splitlines()
        if await process.wait():
            raise ImageError(said[-1] if said else "the container's files cannot be read")
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())


def _mount(layers: list[Path], root: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for result in (libc.unshare(_CLONE_NEWNS), libc.mount(b"none", b"/", None, _PRIVATE, None)):
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mount_layers(layers, root)


def main(words: str) -> None:
    """Write the tar to stdout; see the module."""
    order = json.loads(words)
    root = Path(order["root"])
    if order["layers"]:
        _mount([Path(layer) for layer in order["layers"]], root)
    first, count = order["ids"]
    write_root(root, sys.stdout.buffer, range(first, first + count))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (OSError, RuntimeFailure) as error:
        sys.exit(str(error))
