"""The buildah command, on a storage of its own and with nothing of it left when it ends."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from orchestrator.agent.images.errors import ImageError

Progress = Callable[[str], None]
"""Is told each line of output, without its newline."""

_CHUNK = 64 << 10

# Its mounts and processes are made in namespaces that end with it, however it ends: with a kill,
# be it the agent's own, nothing stays mounted in the agent's view and no RUN goes on.
_CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)

_OFFLINE = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")


class Buildah:
    """Runs buildah on the storage under `root`, which is this object's alone."""

    def __init__(self, root: Path) -> None:
        self._storage = (
            *("--root", str(root / "root"), "--runroot", str(root / "run")),
            *("--storage-driver", "overlay"),
        )

    async def run(
        self,
        work: Path,
        *arguments: str,
        progress: Progress | None = None,
        offline: bool = False,
    ) -> str:
        """Run one command in the folder `work`, which also takes its temporary files; its output.

        `offline`: with no network but a loopback of its own.
        Raises `ImageError` with its error when it fails.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *_CONTAINED,
                *(_OFFLINE if offline else ()),
                *("buildah", *self._storage, *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(work)},
                cwd=work,
            )
        except FileNotFoundError:
            raise ImageError("unshare is not installed on this node: install util-linux") from None
        lines: list[str] = []
        assert process.stdout is not None
        output = _lines(process.stdout)
        try:
            async for line in output:
                lines = [*lines[-200:], line]
                if progress is not None:
                    progress(line)
            status = await process.wait()
        except BaseException:
            if process.returncode is None:
                process.kill()
            await asyncio.shield(_ended(process))
            raise
        if status == 0:
            return "\n".join(lines)
        if status in (126, 127) and any("buildah" in line for line in lines[-1:]):
            raise ImageError("buildah is not installed on this node: install buildah")
        raise ImageError(_error(lines) or f"buildah ended with status {status}")


def limits() -> tuple[str, ...]:
    """The agent's own limits, for RUN: buildah's default may be more than it is allowed to set."""
    most = 1 << 20
    found = []
    for key, which in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(which)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        found.append(f"--ulimit={key}={value}:{value}")
    return tuple(found)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Until every process of the command is gone: then its output ends."""
    assert process.stdout is not None
    while await process.stdout.read(_CHUNK):
        pass
    await process.wait()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines without their ends. One of more than 64 KiB comes in pieces."""
    rest = b""
    while data := await stream.read(_CHUNK):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
        if len(rest) >= _CHUNK:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")


def _error(lines: list[str]) -> str:
    """buildah's last error, as one line (it repeats an instruction with its line breaks)."""
    starts = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    text = lines[starts[-1] :] if starts else lines[-1:]
    return " ".join(" ".join(text).removeprefix("Error: ").split())
