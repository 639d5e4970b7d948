"""Registries as this node's store needs them: an image's blobs, and pushing.

Blobs come through skopeo's image proxy, one at a time and whole, so that the store shares, verifies
and unpacks them as it does those of nodes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from orchestrator.agent.images.incoming import Fetch
from orchestrator.agent.images.registryblobs import BlobSource, LayerProgress
from orchestrator.model.names import parse_image
from orchestrator.registries.skopeo import PATIENCE, Skopeo, credentials, registry_of, remote

_REMEMBERED = 4
"""Manifests that are kept of names that were looked up, for the pulls that follow at once."""
_LOOK = 0.2
"""Seconds between looks at how far a push is."""
_SKIPPED = re.compile(r"Skipping blob (sha256:[0-9a-f]{64}) \(already present\)")
"""In its log when a registry has a layer."""


class Registry:
    """This node's way to all registries."""

    def __init__(self, scratch: Path, program: str = "skopeo") -> None:
        """`scratch`: an existing folder on a tmpfs, for the one file that skopeo must write."""
        self._scratch = scratch
        self._skopeo = Skopeo(program)
        self._resolved: deque[tuple[str, bytes]] = deque(maxlen=_REMEMBERED)

    async def resolve(self, name: str, auth: bytes = b"", within: float = PATIENCE) -> str:
        """The digest of the manifest or index that `name` stands for now. Raises ImageError."""
        data = await self._skopeo.inspect(name, "", auth, within)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._resolved.append((digest, data))
        return digest

    async def _document(self, name: str, digest: str, auth: bytes) -> bytes:
        """The manifest or index of `digest` in the repository of `name`. Raises ImageError."""
        for known, data in self._resolved:
            if known == digest:
                return data
        return await self._skopeo.inspect(name, digest, auth)

    async def login(self, registry: str, username: str, password: str) -> None:
        """Prove credentials to a registry. Raises ImageError with its answer."""
        await self._skopeo.login(registry, username, password, self._scratch)

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
        async with credentials(registry_of(parsed), auth) as (options, fds):
            blobs = BlobSource(
                command=(self._skopeo.program, "experimental-image-proxy", *options),
                fds=fds,
                reference=remote(parsed, digest),
                failed=lambda said: self._skopeo.failed(registry_of(parsed), name, said),
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

        async with credentials(registry_of(parsed), auth) as (options, fds):
            # What is pushed is this node's own: whether to trust it was asked when it came.
            command = ("--debug", "--insecure-policy", "copy", *options, "--preserve-digests")
            command += (f"--digestfile={output}", f"dir:{folder}", remote(parsed))
            await self._skopeo.run(registry_of(parsed), name, command, fds, said=said, watch=watch)
        for digest, size in blobs.values():
            progress(digest, size, size)
        return output.read_text().strip()


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
