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
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from orchestrator.agent.images.errors import ImageError
from orchestrator.agent.images.incoming import Fetch
from orchestrator.agent.images.registryblobs import BlobSource, LayerProgress
from orchestrator.agent.images.registryerrors import explain
from orchestrator.model.names import ImageName, parse_image

HUB = "docker.io"
"""The registry of a name that has none."""

_PATIENCE = 60.0
"""Seconds that a registry may take to tell what a name stands for."""


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

    async def resolve(self, name: str, auth: bytes = b"", within: float = _PATIENCE) -> str:
        """The digest of the manifest or index that `name` stands for now. Raises ImageError."""
        data = await self.document(name, "", auth, within)
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    async def document(
        self, name: str, digest: str, auth: bytes, within: float = _PATIENCE
    ) -> bytes:
        """A manifest or index as the registry has it, byte for byte: that of `digest` in the
        repository of `name`, or what the name stands for. Raises ImageError."""
        parsed = parse_image(name)
        with _in_memory(auth) as (options, fds):
            command = ("inspect", *options, "--raw", remote(parsed, digest))
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
                document=lambda wanted: self.document(name, wanted, auth),
                progress=progress,
                there=there,
            )
            async with blobs:
                blobs.learn(digest)
                yield blobs.fetch

    async def push(
        self, folder: Path, name: str, auth: bytes, progress: Callable[[str], None]
    ) -> str:
        """Copy an image to a registry from a folder as `layout.lay_out` makes it; its digest there.
        Raises ImageError."""
        parsed = parse_image(name)
        output = folder.parent / "digest"
        with _in_memory(auth) as (options, fds):
            command = ("copy", *options, "--preserve-digests", f"--digestfile={output}")
            command += (f"dir:{folder}", remote(parsed))
            await self._run(registry_of(parsed), name, command, fds, progress=progress)
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
        progress: Callable[[str], None] = lambda line: None,
    ) -> bytes:
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
        try:
            async with asyncio.timeout(within):
                process.stdin.write(stdin)
                process.stdin.close()
                # Its errors are few and short: they fit into the pipe until it ends.
                while piece := await process.stdout.read(1 << 16):
                    output.append(piece)
                    for line in piece.decode(errors="replace").splitlines():
                        progress(line)
                said = await process.stderr.read()
                await process.wait()
        except TimeoutError:
            raise ImageError(f"{registry} does not answer within {within:g} seconds") from None
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
        if process.returncode:
            raise explain(registry, name, said.decode(errors="replace"))
        return b"".join(output)


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
