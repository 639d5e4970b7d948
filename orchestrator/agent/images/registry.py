"""Registries, by skopeo: what a name stands for, an image's blobs, and pushing.

skopeo is the ecosystem's own client, so registries.conf, certs.d, policy.json, credential helpers
and this node's auth.json mean what they mean to Podman. Blobs come through its image proxy, one at
a time and whole, so that the store shares, verifies and unpacks them as it does those of nodes.

Credentials of the cluster are given to skopeo as a file in memory that has no name and ends with
its last user; without any, skopeo looks for the node's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.agent.images.errors import ImageError
from orchestrator.agent.images.incoming import Fetch
from orchestrator.agent.images.registryblobs import BlobSource, LayerProgress
from orchestrator.agent.images.registryerrors import explain
from orchestrator.model.names import ImageName, parse_image

HUB = "docker.io"
"""The registry of a name that has none."""

_PATIENCE = 60.0
"""Seconds that a registry may take to tell what a name stands for."""
_REMEMBERED = 4
"""Manifests that are kept of names that were looked up, for the pulls that follow at once."""
_LOOK = 0.2
"""Seconds between looks at how far a push is."""
_SLOW_DOWN = b"Too many requests"
"""In skopeo's log when a registry answers with status 429."""
_SKIPPED = re.compile(r"Skipping blob (sha256:[0-9a-f]{64}) \(already present\)")
"""In its log when a registry has a layer."""


def registry_of(name: ImageName) -> str:
    """The registry that has the name."""
    return name.registry or HUB


def remote(name: ImageName, digest: str = "") -> str:
    """The name as skopeo wants it: complete, with `digest` in place of the tag where given."""
    repository = name.repository
    if not name.registry and "/" not in repository:
        repository = f"library/{repository}"
    chosen = digest or name.digest
    return f"docker://{registry_of(name)}/{repository}" + (
        f"@{chosen}" if chosen else f":{name.tag or 'latest'}"
    )


class Registry:
    """This node's way to all registries."""

    def __init__(self, scratch: Path, program: str = "skopeo") -> None:
        """`scratch`: an existing folder on a tmpfs, for the one file that skopeo must write."""
        self._scratch = scratch
        self._program = program
        self._resolved: deque[tuple[str, bytes]] = deque(maxlen=_REMEMBERED)

    async def resolve(self, name: str, auth: bytes = b"", within: float = _PATIENCE) -> str:
        """The digest of the manifest or index that `name` stands for now. Raises ImageError."""
        data = await self._inspect(name, "", auth, within)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._resolved.append((digest, data))
        return digest

    async def _document(self, name: str, digest: str, auth: bytes) -> bytes:
        """The manifest or index of `digest` in the repository of `name`. Raises ImageError."""
        for known, data in self._resolved:
            if known == digest:
                return data
        return await self._inspect(name, digest, auth, _PATIENCE)

    async def _inspect(self, name: str, digest: str, auth: bytes, within: float) -> bytes:
        """A manifest or index as the registry has it, byte for byte: that of `digest`, or, where
        that is empty, what the name stands for."""
        parsed = parse_image(name)
        with _in_memory(auth) as (options, fds):
            # It waits for half a minute where a registry asks it to slow down, and says so here.
            command = ("--debug", "inspect", *options, "--raw", remote(parsed, digest))
            return await self._run(registry_of(parsed), name, command, fds, within=within)

    async def login(self, registry: str, username: str, password: str) -> None:
        """Prove credentials to a registry. Raises ImageError with its answer."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            options = ("--authfile", f"{folder}/auth.json", "--username", username)
            command = ("login", *options, "--password-stdin", registry)
            await self._run(registry, "", command, (), within=_PATIENCE, stdin=password.encode())

    @asynccontextmanager
    async def source(
        self,
        name: str,
        digest: str,
        auth: bytes = b"",
        progress: LayerProgress = lambda digest, done, total: None,
        there: Callable[[str], Path | None] = lambda digest: None,
    ) -> AsyncIterator[Fetch]:
        """A fetcher of the blobs of an image, `digest` in the repository of `name`.

        The node's policy.json is asked before anything is fetched. `there` tells which blobs the
        node has already. Raises ImageError.
        """
        parsed = parse_image(name)
        with _in_memory(auth) as (options, fds):
            blobs = BlobSource(
                command=(self._program, "experimental-image-proxy", *options),
                fds=fds,
                reference=remote(parsed, digest),
                failed=lambda said: explain(registry_of(parsed), name, said),
                document=lambda wanted: self._document(name, wanted, auth),
                progress=progress,
                there=there,
            )
            async with blobs:
                blobs.learn(digest)
                yield blobs.fetch

    async def push(
        self,
        folder: Path,
        name: str,
        auth: bytes,
        progress: LayerProgress,
        there: Callable[[str], None] = lambda digest: None,
    ) -> str:
        """Copy an image to a registry from a folder as `layout.lay_out` makes it; its digest there.

        `there` is told of layers that the registry has already. Raises ImageError.
        """
        parsed = parse_image(name)
        output = folder.parent / "digest"

        blobs = _blobs(folder)

        def said(line: str) -> None:
            if (skipped := _SKIPPED.search(line)) is not None:
                for path in [path for path, (digest, _) in blobs.items() if digest == skipped[1]]:
                    del blobs[path]
                there(skipped[1])

        async def watch(pid: int) -> None:
            while True:
                for path, offset in _read_so_far(pid).items():
                    if path in blobs:
                        digest, size = blobs[path]
                        progress(digest, offset, size)
                await asyncio.sleep(_LOOK)

        with _in_memory(auth) as (options, fds):
            # What is pushed is this node's own: whether to trust it was asked when it came.
            command = ("--debug", "--insecure-policy", "copy", *options, "--preserve-digests")
            command += (f"--digestfile={output}", f"dir:{folder}", remote(parsed))
            await self._run(registry_of(parsed), name, command, fds, said=said, watch=watch)
        for digest, size in blobs.values():
            progress(digest, size, size)
        return output.read_text().strip()

    async def _run(
        self,
        registry: str,
        name: str,
        arguments: tuple[str, ...],
        fds: tuple[int, ...],
        *,
        within: float | None = None,
        stdin: bytes = b"",
        said: Callable[[str], None] = lambda line: None,
        watch: Callable[[int], Coroutine[Any, Any, None]] | None = None,
    ) -> bytes:
        """Run skopeo; what it wrote. `said` is told the lines of its log, and `watch`, given its
        pid, goes on beside it until it ends."""
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=fds,
            )
        except FileNotFoundError:
            raise ImageError("skopeo is not installed on this node: install skopeo") from None
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        output: list[bytes] = []
        errors: list[bytes] = []
        try:
            async with asyncio.timeout(within), asyncio.TaskGroup() as group:
                watching = group.create_task(watch(process.pid)) if watch is not None else None
                group.create_task(_collect(process.stdout, output))
                process.stdin.write(stdin)
                process.stdin.close()
                async for line in _lines(process.stderr, errors):
                    said(line)
                await process.wait()
                if watching is not None:
                    watching.cancel()
        except TimeoutError:
            if _SLOW_DOWN in b"".join(errors):
                raise explain(registry, name, "toomanyrequests") from None
            raise ImageError(f"{registry} does not answer within {within:g} seconds") from None
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
        if process.returncode:
            raise explain(registry, name, b"".join(errors).decode(errors="replace"))
        return b"".join(output)


async def _collect(stream: asyncio.StreamReader, into: list[bytes]) -> None:
    while piece := await stream.read(1 << 16):
        into.append(piece)


async def _lines(stream: asyncio.StreamReader, into: list[bytes]) -> AsyncIterator[str]:
    """Whole lines as they come; all that came is in `into`."""
    rest = b""
    while piece := await stream.read(1 << 16):
        into.append(piece)
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")


def _blobs(folder: Path) -> dict[str, tuple[str, int]]:
    """Of each blob that is laid out, its file: digest and bytes."""
    return {
        str(path.resolve()): (f"sha256:{path.name}", path.stat().st_size)
        for path in folder.iterdir()
        if path.is_symlink() and path.name != "manifest.json"
    }


def _read_so_far(pid: int) -> dict[str, int]:
    """The files that a process has open, and how far it is in each (proc(5): fd, fdinfo)."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError, ValueError, IndexError):
                path = os.readlink(entry.path)
                if path.startswith("/"):
                    info = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
                    found[path] = max(int(info.split()[1]), found.get(path, 0))
    return found


@contextmanager
def _in_memory(auth: bytes) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Options and descriptors that show an auth.json to skopeo; none for an empty one."""
    if not auth:
        yield (), ()
        return
    fd = os.memfd_create("auth")
    try:
        os.write(fd, auth)
        yield ("--authfile", f"/proc/self/fd/{fd}"), (fd,)
    finally:
        os.close(fd)
