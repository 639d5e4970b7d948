# SPDX-License-Identifier: Apache-2.0
"""Pulling an image's blobs from a registry, and pushing images to one.

Blobs come through skopeo's image proxy, one at a time and whole, so that the store shares, verifies
and unpacks them as it does those of nodes.

The protocol (skopeo, docs/skopeo-experimental-image-proxy.1.md; version 0.2): requests and answers
are JSON packets on a socket pair; a blob's bytes come through a pipe that travels with the answer.
The pipe ends only after FinishPipe, whose answer reports success. So one proxy carries one blob at
a time, and a few of them run in parallel.
"""

from __future__ import annotations

import array
import asyncio
import hashlib
import json
import os
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from orchestrator.agent.images.image_errors import ImageError, SourceGone
from orchestrator.agent.images.image_spec import Index, parse_manifest
from orchestrator.agent.images.staging import FetchBlob, IncomingBlob
from orchestrator.model.names import parse_image
from orchestrator.registries.skopeo import INSPECT_TIMEOUT, Skopeo, credentials, registry_of, remote

LayerProgress = Callable[[str, int, int], None]
"""Called with a blob's digest, its received bytes and its size."""

_PARALLEL = 3
"""Concurrent blobs of one image."""
_ATTEMPTS = 3
"""Attempts to fetch a blob whose transfer breaks off."""
_STALL = 30.0
"""Seconds without data after which a transfer has failed."""
_OPENING = 60.0
"""Seconds until a registry must have opened an image."""
_CHUNK = 1 << 20
_PACKET = 1 << 16
_GONE = "the pull that fetched this was cancelled"


class ProxyError(Exception):
    """An error response of the proxy."""


class Proxy:
    """One skopeo process with one image open."""

    def __init__(self, process: asyncio.subprocess.Process, link: socket.socket) -> None:
        self._process = process
        self._link = link
        # A separate thread, since a registry may take any time.
        self._thread = ThreadPoolExecutor(1, "registry")
        self._image: Any = None

    @classmethod
    async def started(cls, command: tuple[str, ...], fds: tuple[int, ...]) -> Self:
        """Start a process. Raises ImageError if skopeo is not installed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            process = await asyncio.create_subprocess_exec(
                *(*command, "--sockfd", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=(*fds, theirs.fileno()),
            )
        except FileNotFoundError:
            ours.close()
            raise ImageError("skopeo is not installed on this node: install skopeo") from None
        finally:
            theirs.close()
        return cls(process, ours)

    async def open(self, reference: str) -> None:
        """Open the image, if the node's policy allows it. Raises ProxyError."""
        await self._run(self._ask, "Initialize")
        self._image, _ = await self._run(self._ask, "OpenImage", reference)

    async def fetch_blob(self, blob: IncomingBlob, size: int) -> None:
        """Fetch a blob, or the rest of a partial one. Raises ProxyError."""
        await self._run(self._fetch_blob, blob, size)

    async def close(self) -> None:
        """Kill the process, with which its thread ends."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        # The thread sees the other end close; only then may the descriptor be closed and reused.
        await asyncio.to_thread(self._thread.shutdown)
        self._link.close()

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _fetch_blob(self, blob: IncomingBlob, size: int) -> None:
        _, (pipe, number) = self._ask("GetBlob", self._image, blob.digest, size)
        known = blob.received
        with open(pipe, "rb", buffering=0) as source:
            self._send("FinishPipe", number)
            while piece := source.read(_CHUNK):
                # skopeo always starts at the beginning. The digest is verified at the end, so data
                # that was received before need not be compared.
                if len(piece) > known:
                    blob.write(piece[known:])
                known = max(0, known - len(piece))
        self._answer()

    def _ask(self, method: str, *arguments: Any) -> tuple[Any, tuple[int, int]]:
        """The response's value, and the pipe with its id if there is one. Blocks."""
        self._send(method, *arguments)
        return self._answer()

    def _send(self, method: str, *arguments: Any) -> None:
        try:
            self._link.send(json.dumps({"method": method, "args": arguments}).encode())
        except OSError as error:
            raise ProxyError(f"skopeo ended: {error.strerror}") from error

    def _answer(self) -> tuple[Any, tuple[int, int]]:
        try:
            data, ancillary, _, _ = self._link.recvmsg(_PACKET, socket.CMSG_SPACE(4))
        except OSError as error:
            raise ProxyError(f"skopeo ended: {error.strerror}") from error
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        if not data:
            raise ProxyError("skopeo ended")
        answer = json.loads(data)
        if not answer["success"]:
            for fd in fds:
                os.close(fd)
            raise ProxyError(str(answer["error"]))
        return answer["value"], (fds[0] if fds else -1, answer["pipeid"])


class BlobSource:
    """Fetches manifests and blobs of one image; an async context manager that ends its proxies."""

    def __init__(
        self,
        *,
        command: tuple[str, ...],
        fds: tuple[int, ...],
        reference: str,
        failed: Callable[[str], ImageError],
        document: Callable[[str], Awaitable[bytes]],
        progress: LayerProgress,
        there: Callable[[str], Path | None],
        opening: float = _OPENING,
    ) -> None:
        """`document` fetches a manifest by its digest; `failed` converts a proxy's error; `there`
        returns the file of a blob that the node has; `opening`: seconds until the registry must
        have opened the image."""
        self._command = command
        self._fds = fds
        self._reference = reference
        self._failed = failed
        self._document = document
        self._progress = progress
        self._there = there
        self._opening = opening
        self._sizes: dict[str, int] = {}
        self._slots = asyncio.Semaphore(_PARALLEL)
        self._idle: list[Proxy] = []
        self._all: list[Proxy] = []
        self._ended = False

    async def __aenter__(self) -> Self:
        """Open the image, which checks policy, credentials and connection."""
        try:
            self._idle.append(await self._connect())
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    def learn(self, digest: str) -> None:
        """Read the blobs' sizes from a manifest that the node has."""
        path = self._there(digest)
        if path is not None:
            self._read(path.read_bytes())

    async def fetch(self, blob: IncomingBlob) -> None:
        """See `staging.FetchBlob`: a digest of unknown size is a manifest."""
        if (size := self._sizes.get(blob.digest)) is None:
            data = await self._document(blob.digest)
            await asyncio.to_thread(blob.write, data)
            self._read(data)
            return
        async with self._slots:
            for attempt in range(1, _ATTEMPTS + 1):
                if self._ended:
                    raise SourceGone(_GONE)
                proxy = self._idle.pop() if self._idle else await self._connect()
                try:
                    await self._watched(proxy, blob, size)
                except ProxyError as error:
                    if self._ended:
                        raise SourceGone(_GONE) from error
                    if blob.received == size:
                        blob.restart()  # received completely, but with another digest
                    if attempt == _ATTEMPTS or "unknown" in str(error):
                        raise self._failed(str(error)) from error
                else:
                    self._idle.append(proxy)
                    return

    def _read(self, data: bytes) -> None:
        manifest = parse_manifest(data)
        if isinstance(manifest, Index):
            for child in manifest.manifests:
                self.learn(child.digest)
            return
        for part in (manifest.config, *manifest.layers):
            self._sizes[part.digest] = part.size

    async def _watched(self, proxy: Proxy, blob: IncomingBlob, size: int) -> None:
        """Fetch a blob, report progress twice a second, and fail when it stalls."""
        work = asyncio.ensure_future(proxy.fetch_blob(blob, size))
        loop = asyncio.get_running_loop()
        last, moved = blob.received, loop.time()
        try:
            while not (await asyncio.wait([work], timeout=0.5))[0]:
                self._progress(blob.digest, blob.received, size)
                if blob.received != last:
                    last, moved = blob.received, loop.time()
                elif loop.time() - moved > _STALL:
                    raise ProxyError(f"timeout: no data for {_STALL:g} seconds")
            await work
            self._progress(blob.digest, size, size)
        except BaseException:
            await asyncio.shield(proxy.close())
            work.cancel()
            raise

    async def _connect(self) -> Proxy:
        proxy = await Proxy.started(self._command, self._fds)
        self._all.append(proxy)
        try:
            async with asyncio.timeout(self._opening):
                await proxy.open(self._reference)
        except TimeoutError:
            await asyncio.shield(proxy.close())  # otherwise its thread would continue to wait
            text = f"timeout: no answer within {self._opening:g} seconds"
            raise self._failed(text) from None
        except ProxyError as error:
            raise self._failed(str(error)) from error
        return proxy

    async def _end(self) -> None:
        self._ended = True
        for proxy in self._all:
            await asyncio.shield(proxy.close())


_CACHED = 4
"""Cached manifests of resolved names, for the pulls that follow immediately."""
_PUSH_POLL = 0.2
"""Seconds between updates of a push's progress."""
_SKIPPED = re.compile(r"Skipping blob (sha256:[0-9a-f]{64}) \(already present\)")
"""Log line of skopeo for a layer that the registry has."""


class Registry:
    """Client for all registries."""

    def __init__(self, scratch: Path, program: str = "skopeo") -> None:
        """`scratch`: an existing folder on a tmpfs, for skopeo's credentials file."""
        self._scratch = scratch
        self._skopeo = Skopeo(program)
        self._resolved: deque[tuple[str, bytes]] = deque(maxlen=_CACHED)

    async def resolve(self, name: str, auth: bytes = b"", within: float = INSPECT_TIMEOUT) -> str:
        """The present digest of the manifest or index of `name`. Raises ImageError."""
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
        """Verify credentials with a registry. Raises ImageError with its response."""
        await self._skopeo.login(registry, username, password, self._scratch)

    @asynccontextmanager
    async def source(
        self,
        name: str,
        digest: str,
        auth: bytes = b"",
        progress: LayerProgress = lambda digest, done, total: None,
        there: Callable[[str], Path | None] = lambda digest: None,
    ) -> AsyncIterator[FetchBlob]:
        """A fetcher of the blobs of an image, `digest` in the repository of `name`.

        The node's policy.json is checked before anything is fetched. `there` returns the file of a
        blob that the node has. Raises ImageError.
        """
        parsed = parse_image(name)
        async with credentials(registry_of(parsed), auth) as (options, fds):
            blobs = BlobSource(
                command=(self._skopeo.program, "experimental-image-proxy", *options),
                fds=fds,
                reference=remote(parsed, digest),
                failed=lambda stderr: self._skopeo.failed(registry_of(parsed), name, stderr),
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
        """Push an image from a folder of `layout.make_dir_layout`; returns its digest there.

        `there` is called with layers that the registry has already. Raises ImageError.
        """
        parsed = parse_image(name)
        output = folder.parent / "digest"

        blobs = _blobs(folder)

        def drop_skipped(line: str) -> None:
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
                await asyncio.sleep(_PUSH_POLL)

        async with credentials(registry_of(parsed), auth) as (options, fds):
            # No policy for the node's own images: it was checked when they were pulled.
            command = ("--debug", "--insecure-policy", "copy", *options, "--preserve-digests")
            command += (f"--digestfile={output}", f"dir:{folder}", remote(parsed))
            await self._skopeo.run(
                registry_of(parsed), name, command, fds, on_log_line=drop_skipped, watch=watch
            )
        for digest, size in blobs.values():
            progress(digest, size, size)
        return output.read_text().strip()


def _blobs(folder: Path) -> dict[str, tuple[str, int]]:
    """File of each blob of a layout → its digest and size."""
    return {
        str(path.resolve()): (f"sha256:{path.name}", path.stat().st_size)
        for path in folder.iterdir()
        if path.is_symlink() and path.name != "manifest.json"
    }


def _read_so_far(pid: int) -> dict[str, int]:
    """The open files of a process with their offsets (proc(5): fd, fdinfo)."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError, ValueError, IndexError):
                path = os.readlink(entry.path)
                if path.startswith("/"):
                    info = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
                    found[path] = max(int(info.split()[1]), found.get(path, 0))
    return found
