# SPDX-License-Identifier: Apache-2.0
"""Unpacking layers and build contexts: starts the confined program `untar`, reports its error."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from importlib.util import find_spec
from io import FileIO
from pathlib import Path

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.daemon import bareprogram

_PROGRAM = bareprogram.command("orchestrator.agent.images.layers.untar", "-X", "utf8")
MAX_LAYER = 64 << 30
"""Default maximum of bytes of an unpacked layer: more than any legitimate one has."""
MAX_ENTRIES = 4_000_000
"""Maximum of files and folders of a layer: each takes an inode of the node's disk."""


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
    `whole`, the blob is still growing until that is set, and is read as it does. Raises
    `ImageError`; the folder must then be removed.
    """
    await _run(blob, folder, diff_id, limit, whole, entries)


async def unpack_context(archive: Path, folder: Path) -> None:
    """Unpack a build context, a tar from a client, confined like a layer.

    `folder` must exist and be empty. Raises `ImageError`; the folder must then be removed.
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
    complete_read, complete_write = os.pipe()
    with FileIO(complete_write, "wb") as completion:
        try:
            with blob.open("rb") as source:
                process = await asyncio.create_subprocess_exec(
                    *_PROGRAM,
                    *(
                        str(folder),
                        diff_id,
                        str(limit),
                        str(entries),
                        str(complete_read),
                        _packages(),
                    ),
                    stdin=source,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(complete_read,),
                )
        finally:
            os.close(complete_read)
        output = await _error_output(process, completion, whole)
    if process.returncode:
        lines = output.decode(errors="replace").splitlines()
        raise ImageError(lines[0] if lines else f"unpacking ended with status {process.returncode}")


async def _error_output(
    process: asyncio.subprocess.Process, completion: FileIO, whole: asyncio.Event | None
) -> bytes:
    """Wait for the program's end and return its stderr; signal to it when its blob is complete."""
    try:
        async with asyncio.TaskGroup() as tasks:
            signalling = tasks.create_task(_signal_complete(completion, whole))
            _, output = await process.communicate()
            signalling.cancel()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            process.kill()
        completion.close()
        # Its error pipe closes when all of its processes have ended, so that nothing writes to the
        # folder any more when it is removed.
        await asyncio.shield(process.communicate())
        raise
    return output


async def _signal_complete(completion: FileIO, whole: asyncio.Event | None) -> None:
    if whole is not None:
        await whole.wait()
    with suppress(BrokenPipeError):  # it has failed already, and reports why
        completion.write(b"w")


def _packages() -> str:
    """The folder of Python packages that has `isal`; empty if it is not installed."""
    found = find_spec("isal")
    return str(Path(found.origin).parent.parent) if found and found.origin else ""
