"""The agent's side of reading a container's files: starts the program `rootreader`."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO, Any

from orchestrator.agent.images.errors import ImageError
from orchestrator.daemon import bareprogram

_PROGRAM = bareprogram.command("orchestrator.agent.images.layers.rootreader", "-X", "utf8")
_CHUNK = 1 << 20


async def read_root(root: Path, layers: Sequence[Path], ids: range) -> AsyncIterator[bytes]:
    """All files of a container as a tar, in pieces, as fast as they are taken.

    `root` is where a running container's root is mounted. Of one that does not run, `layers` (the
    lowest first, its own the last) are mounted there for the program alone, read-only. `ids` are
    the host's ids of the container's users, 0 and on. Raises ImageError.
    """
    order = {"verb": "root", "root": str(root), "layers": _paths(layers), "ids": _pair(ids)}
    async for piece in _output(order):
        yield piece


async def read_changes(
    upper: Path, layers: Sequence[Path], mounts: frozenset[str]
) -> list[tuple[str, str]]:
    """See `layerfiles.changes`. Raises ImageError."""
    order = {
        "verb": "changes",
        "upper": str(upper),
        "layers": _paths(layers),
        "mounts": sorted(mounts),
    }
    output = b"".join([piece async for piece in _output(order)])
    names = (os.fsdecode(entry) for entry in output.split(b"\0")[:-1])
    return [(name[0], name[1:]) for name in names]


async def write_layer(upper: Path, target: IO[bytes], mounts: frozenset[str], ids: range) -> None:
    """See `layerfiles.write_layer`; `target` is a file. Raises ImageError."""
    order = {"verb": "layer", "upper": str(upper), "mounts": sorted(mounts), "ids": _pair(ids)}
    async for _ in _output(order, target.fileno()):
        pass


def _paths(layers: Sequence[Path]) -> list[str]:
    return [str(layer) for layer in layers]


def _pair(ids: range) -> list[int]:
    return [ids.start, len(ids)]


async def _output(order: dict[str, Any], stdout: int = PIPE) -> AsyncIterator[bytes]:
    """What the program writes, unless it writes to a descriptor `stdout`. Raises ImageError."""
    process = await asyncio.create_subprocess_exec(
        *_PROGRAM, json.dumps(order), stdin=DEVNULL, stdout=stdout, stderr=PIPE, limit=_CHUNK
    )
    assert process.stderr is not None
    try:
        if process.stdout is not None:
            while piece := await process.stdout.read(_CHUNK):
                yield piece
        said = (await process.stderr.read()).decode(errors="replace").splitlines()
        if await process.wait():
            raise ImageError(said[-1] if said else "the container's files cannot be read")
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
