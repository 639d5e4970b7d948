"""An image's blobs from a registry, over skopeo's image proxy.

The protocol (skopeo, docs/skopeo-experimental-image-proxy.1.md; version 0.2): requests and answers
are JSON packets on a socket pair; a blob's bytes come through a pipe that travels with the answer.
The pipe ends only once FinishPipe was asked for, and that answer says whether all went well. So one
proxy carries one blob at a time, and a few of them run side by side.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from orchestrator.agent.images.errors import ImageError, SourceGone
from orchestrator.agent.images.incoming import Incoming
from orchestrator.agent.images.manifest import Index, parse_manifest

LayerProgress = Callable[[str, int, int], None]
"""Is told a blob's digest, how many bytes of it have come, and how many there are."""

_PARALLEL = 3
"""Blobs of one image that are on their way at a time."""
_ATTEMPTS = 3
"""How often a blob that breaks off is asked for."""
_STALL = 30.0
"""Seconds without a byte after which a blob is given up."""
_OPENING = 60.0
"""Seconds that a registry may take until an image can be fetched from it."""
_CHUNK = 1 << 20
_PACKET = 1 << 16
_GONE = "the pull that fetched this was cancelled"


class ProxyError(Exception):
    """What the proxy answered instead of doing what it was asked."""


class Proxy:
    """One skopeo process with one image open."""

    def __init__(self, process: asyncio.subprocess.Process, link: socket.socket) -> None:
        self._process = process
        self._link = link
        # Of its own: it waits for a registry for as long as that takes.
        self._thread = ThreadPoolExecutor(1, "registry")
        self._image: Any = None

    @classmethod
    async def started(cls, command: tuple[str, ...], fds: tuple[int, ...]) -> Self:
        """A new process. Raises ImageError where there is no skopeo."""
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

    async def bring(self, blob: Incoming, size: int) -> None:
        """Bring a blob, or the rest of one that has begun to come. Raises ProxyError."""
        await self._run(self._bring, blob, size)

    async def close(self) -> None:
        """End the process. Threads that wait for it end with it."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        # The thread sees the other end close; only then may the descriptor's number be reused.
        await asyncio.to_thread(self._thread.shutdown)
        self._link.close()

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _bring(self, blob: Incoming, size: int) -> None:
        _, (pipe, number) = self._ask("GetBlob", self._image, blob.digest, size)
        known = blob.received
        with open(pipe, "rb", buffering=0) as source:
            self._send("FinishPipe", number)
            while piece := source.read(_CHUNK):
                # skopeo always begins at the beginning. Its digest is checked at the end, so what
                # came before need not be compared.
                if len(piece) > known:
                    blob.write(piece[known:])
                known = max(0, known - len(piece))
        self._answer()

    def _ask(self, method: str, *arguments: Any) -> tuple[Any, tuple[int, int]]:
        """The answer's value, and the pipe with its number if one came. Blocks."""
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
        """`document` brings a manifest by its digest; `failed` words what a proxy says; `opening`:
        seconds that the registry may take until an image can be fetched."""
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
        """Opens the image: policy, credentials and the way there are in order then."""
        try:
            self._idle.append(await self._connect())
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    def learn(self, digest: str) -> None:
        """Know what a manifest names, if it is here already."""
        path = self._there(digest)
        if path is not None:
            self._read(path.read_bytes())

    async def fetch(self, blob: Incoming) -> None:
        """See `incoming.Fetch`: what is not known to be a blob is a manifest."""
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
                        blob.restart()  # all of it came, and is something else
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

    async def _watched(self, proxy: Proxy, blob: Incoming, size: int) -> None:
        """Bring a blob, tell of it about twice a second, and give up one that stands still."""
        work = asyncio.ensure_future(proxy.bring(blob, size))
        loop = asyncio.get_running_loop()
        last, moved = blob.received, loop.time()
        try:
            while not (await asyncio.wait([work], timeout=0.5))[0]:
                self._progress(blob.digest, blob.received, size)
                if blob.received != last:
                    last, moved = blob.received, loop.time()
                elif loop.time() - moved > _STALL:
                    raise ProxyError(f"timeout: nothing came for {_STALL:g} seconds")
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
            await asyncio.shield(proxy.close())  # else its thread would wait on
            text = f"timeout: no answer within {self._opening:g} seconds"
            raise self._failed(text) from None
        except ProxyError as error:
            raise self._failed(str(error)) from error
        return proxy

    async def _end(self) -> None:
        self._ended = True
        for proxy in self._all:
            await asyncio.shield(proxy.close())
