"""The agent's side of unpacking: start the confined program, wait, pass on what it says."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from orchestrator.agent.images import untar
from orchestrator.agent.images.errors import ImageError

MAX_LAYER = 64 << 30
"""Bytes that a layer's content may have, unless told otherwise: more than any that is meant."""


async def unpack_layer(blob: Path, folder: Path, diff_id: str, limit: int = MAX_LAYER) -> None:
    """Unpack a layer blob (plain, gzip or zstd tar) for use as an overlay's lower folder.

    `folder` must exist and be empty; it is flushed to disk at the end. The content's digest must
    be `diff_id`, and its size at most `limit` bytes. Raises `ImageError`; the folder is then to
    be thrown away.
    """
    await _run(blob, folder, diff_id, limit)


async def unpack_context(archive: Path, folder: Path) -> None:
    """Unpack a build context, a tar as a client sent it, confined like a layer.

    `folder` must exist and be empty. Raises `ImageError`; the folder is then to be thrown away.
    """
    await _run(archive, folder, "-", MAX_LAYER)


async def _run(blob: Path, folder: Path, diff_id: str, limit: int) -> None:
    with blob.open("rb") as source:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", "-X", "utf8", untar.__file__, str(folder), diff_id, str(limit)),
            stdin=source,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        # Its error pipe closes when both of its processes have ended, so that nobody writes into
        # the folder any more when it is removed.
        await asyncio.shield(process.communicate())
        raise
    if process.returncode:
        lines = said.decode(errors="replace").splitlines()
        raise ImageError(lines[0] if lines else f"unpacking ended with status {process.returncode}")
