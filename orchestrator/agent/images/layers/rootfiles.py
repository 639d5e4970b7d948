# SPDX-License-Identifier: Apache-2.0
"""Exporting a container's files: starts the confined program `rootreader`."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO, Any

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.daemon import bareprogram

_PROGRAM = bareprogram.command("orchestrator.agent.images.layers.rootreader", "-X", "utf8")
_CHUNK = 1 << 20


async def read_root(root: Path, layers: Sequence[Path], ids: range) -> AsyncIterator[bytes]:
    """All files of a container as a tar, in pieces, at the speed of the reader.

    `root` is the mount point of a running container's root. Of a stopped one, `layers` (lowest
    first, its own the last) are mounted there, read-only, in the program's mount namespace. `ids`
    are the host's ids of the container's users 0, 1, …. Raises ImageError.
    """
    request = {"verb": "root", "root": str(root), "layers": _paths(layers), "ids": _pair(ids)}
    async for piece in _output(request):
        yield piece


async def read_changes(
    upper: Path, layers: Sequence[Path], mounts: frozenset[str]
) -> list[tuple[str, str]]:
    """See `rootreader.changes`. Raises ImageError."""
    request = {
        "verb": "changes",
        "upper": str(upper),
        "layers": _paths(layers),
        "mounts": sorted(mounts),
    }
    output = b"".join([piece async for piece in _output(request)])
    names = (os.fsdecode(entry) for entry in output.split(b"\0")[:-1])
    return [(name[0], name[1:]) for name in names]


async def write_layer(upper: Path, target: IO[bytes], mounts: frozenset[str], ids: range) -> None:
    """See `rootreader.write_layer`; `target` is a file. Raises ImageError."""
    request = {"verb": "layer", "upper": str(upper), "mounts": sorted(mounts), "ids": _pair(ids)}
    async for _ in _output(request, target.fileno()):
        pass


def _paths(layers: Sequence[Path]) -> list[str]:
    return [str(layer) for layer in layers]


def _pair(ids: range) -> list[int]:
    return [ids.start, len(ids)]


async def _output(request: dict[str, Any], stdout: int = PIPE) -> AsyncIterator[bytes]:
    """The output of the program, unless it writes to a descriptor `stdout`. Raises ImageError."""
    process = await asyncio.create_subprocess_exec(
        *_PROGRAM, json.dumps(request), stdin=DEVNULL, stdout=stdout, stderr=PIPE, limit=_CHUNK
    )
    assert process.stderr is not None
    try:
        if process.stdout is not None:
            while piece := await process.stdout.read(_CHUNK):
                yield piece
        lines = (await process.stderr.read()).decode(errors="replace").splitlines()
        if await process.wait():
            raise ImageError(lines[-1] if lines else "the container's files cannot be read")
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
