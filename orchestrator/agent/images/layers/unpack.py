"""The agent's side of unpacking: start the confined program, wait, pass on what it says."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from importlib.util import find_spec
from io import FileIO
from pathlib import Path

from orchestrator.agent.images.errors import ImageError
from orchestrator.daemon import bareprogram

_PROGRAM = bareprogram.command("orchestrator.agent.images.layers.untar", "-X", "utf8")
MAX_LAYER = 64 << 30
"""Bytes that a layer's content may have, unless told otherwise: more than any that is meant."""
MAX_ENTRIES = 4_000_000
"""Files and folders that a layer may have: each takes an inode of the node's disk."""


async def unpack_layer(
    blob: Path,
    folder: Path,
    diff_id: str,
    limit: int = MAX_LAYER,
    whole: asyncio.Event | None = None,
    entries: int = MAX_ENTRIES,
) -> None:
    """Unpack a layer blob (plain, gzip or zstd tar) for use as an overlay's lower folder.

    `folder` must exist and be empty; it is flushed to disk at the end. The content's digest must
    be `diff_id`, its size at most `limit` bytes, and its files and folders at most `entries`. With
    `whole`, the blob still grows, and is read as it does, until that is set. Raises `ImageError`;
    the folder is then to be thrown away.
    """
    await _run(blob, folder, diff_id, limit, whole, entries)


async def unpack_context(archive: Path, folder: Path) -> None:
    """Unpack a build context, a tar as a client sent it, confined like a layer.

    `folder` must exist and be empty. Raises `ImageError`; the folder is then to be thrown away.
    """
    await _run(archive, folder, "-", MAX_LAYER, None, MAX_ENTRIES)


async def _run(
    blob: Path,
    folder: Path,
    diff_id: str,
    limit: int,
    whole: asyncio.Event | None,
    entries: int,
) -> None:
    told, tell = os.pipe()
    with FileIO(tell, "wb") as news:
        try:
            with blob.open("rb") as source:
                process = await asyncio.create_subprocess_exec(
                    *_PROGRAM,
                    *(str(folder), diff_id, str(limit), str(entries), str(told), _packages()),
                    stdin=source,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(told,),
                )
        finally:
            os.close(told)
        said = await _said(process, news, whole)
    if process.returncode:
        lines = said.decode(errors="replace").splitlines()
        raise ImageError(lines[0] if lines else f"unpacking ended with status {process.returncode}")


async def _said(
    process: asyncio.subprocess.Process, news: FileIO, whole: asyncio.Event | None
) -> bytes:
    """What the program wrote of errors by its end; it is told when its blob is whole."""
    try:
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(_tell(news, whole))
            _, said = await process.communicate()
            telling.cancel()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            process.kill()
        news.close()
        # Its error pipe closes when all of its processes have ended, so that nobody writes into
        # the folder any more when it is removed.
        await asyncio.shield(process.communicate())
        raise
    return said


async def _tell(news: FileIO, whole: asyncio.Event | None) -> None:
    if whole is not None:
        await whole.wait()
    with suppress(BrokenPipeError):  # it has failed already, and says why
        news.write(b"w")


def _packages() -> str:
    """The folder of Python packages that `isal` is in; empty where it is not installed."""
    found = find_spec("isal")
    return str(Path(found.origin).parent.parent) if found and found.origin else ""
