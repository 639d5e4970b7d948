# SPDX-License-Identifier: Apache-2.0
"""Blobs and unpacked layers by digest: complete or absent, and fetched once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.agent.images import staging
from orchestrator.agent.images.image_errors import ImageError, SourceGone
from orchestrator.agent.images.image_names import hex_of
from orchestrator.agent.images.image_spec import Descriptor
from orchestrator.agent.images.layers import untar
from orchestrator.agent.images.layers.unpack import unpack_layer
from orchestrator.agent.images.singleflight import SingleFlight
from orchestrator.agent.images.staging import FetchBlob, IncomingBlob
from orchestrator.agent.images.transfer.archive import MAX_DOCUMENT

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Faulty:
    """A complete blob whose unpacked content is not as declared."""

    diff_id: str
    error: ImageError


class BlobStore:
    """The folders `blobs` and `layers` of a store; an async context manager."""

    def __init__(self, root: Path, scratch: staging.Scratch, max_layer: int) -> None:
        """`max_layer`: bytes that a layer may unpack to."""
        self._blobs = root / "blobs" / "sha256"
        self._layers = root / "layers"
        self._scratch = scratch
        self._max_layer = max_layer
        self._flights: SingleFlight[str, _Faulty | None] = SingleFlight()

    async def __aenter__(self) -> Self:
        await self._flights.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._flights.__aexit__(kind, error, trace)

    def open(self) -> None:
        """Create the folders."""
        for folder in (self._blobs, self._layers):
            folder.mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """The path of a blob, whether it exists or not. Raises ImageError for an invalid one."""
        return self._blobs / hex_of(digest)

    def layer(self, diff_id: str) -> Path:
        """The path of an unpacked layer, also if it does not exist."""
        return self._layers / hex_of(diff_id)

    def stack(self, diff_ids: Sequence[str]) -> tuple[Path, ...]:
        """The folders of unpacked layers to mount, lowest first.

        Of a layer that occurs more than once only the topmost is mounted, since overlayfs accepts
        no folder twice. The resulting tree is the same: a lower occurrence would show a name only
        where the layers above have folders, neither opaque nor removed, on the whole path to it, so
        the lookup reaches the topmost occurrence first, which has the same entry at that name and
        either shows it or hides those below.

        A layer whose root is opaque hides all layers below it, which overlayfs ignores: it always
        merges roots.
        """
        topmost = list(dict.fromkeys(reversed(diff_ids)))
        folders = [self.layer(diff_id) for diff_id in reversed(topmost)]
        lowest = max((n for n, folder in enumerate(folders) if untar.is_opaque(folder)), default=0)
        return tuple(folders[lowest:])

    def find(self, digest: str) -> Path | None:
        """The file of a blob; None if the store lacks it."""
        path = self.blob(digest)
        return path if path.exists() else None

    async def ensure_blob(self, digest: str, size: int | None, fetch: FetchBlob) -> None:
        """Fetch a blob unless the store has it; `size` None: any up to the limit of a document."""
        if self.find(digest) is None:
            await self._shared(digest, partial(self._fetch, digest, size, fetch))

    async def ensure_layer(self, layer: Descriptor, diff_id: str, fetch: FetchBlob) -> None:
        """Fetch and unpack a layer unless the store has its blob and folder."""
        if self.find(layer.digest) is None or not self.layer(diff_id).exists():
            key = f"{layer.digest} as {diff_id}"
            await self._shared(key, partial(self._make_layer, layer, diff_id, fetch))

    def hide_all_but(self, blobs: Collection[str], layers: Collection[str]) -> list[Path]:
        """Move everything except the named blobs and layers (hex digits of digests) out of the
        store, each atomically, and return the new paths, to be removed later. Only while nothing is
        fetched or unpacked."""
        return [
            path.rename(self._scratch.path())
            for folder, needed in ((self._blobs, blobs), (self._layers, layers))
            for path in folder.iterdir()
            if path.name not in needed
        ]

    async def _shared(
        self, key: str, work: Callable[[], Awaitable[_Faulty | None]]
    ) -> _Faulty | None:
        """Run shared work. It uses the first caller's source, which ends with that caller; then
        the work starts again with the source of another. Only for calls from outside this class."""
        while True:
            try:
                return await self._flights.run(key, work)
            except SourceGone as error:
                log.info("restarting a fetch: %s", error, extra={"blob": key})

    async def _fetch(self, digest: str, size: int | None, fetch: FetchBlob) -> None:
        with self._incoming(digest, size) as blob:
            await self._receive(blob, fetch)

    async def _make_layer(self, layer: Descriptor, diff_id: str, fetch: FetchBlob) -> None:
        if self.find(layer.digest) is None:
            work = partial(self._fetch_layer, layer, diff_id, fetch)
            found = await self._flights.run(layer.digest, work)
            # An error with the diff id of another image is an error of that image only.
            if found is not None and found.diff_id == diff_id:
                raise found.error
        if not self.layer(diff_id).exists():
            await self._unpack(layer, diff_id, fetch)

    async def _fetch_layer(
        self, layer: Descriptor, diff_id: str, fetch: FetchBlob
    ) -> _Faulty | None:
        """Fetch the blob of a layer, and unpack it while it arrives, unless the layer was unpacked
        from another blob. Returns an error of its content; the blob is in the store then."""
        with self._incoming(layer.digest, layer.size) as blob, self._scratch.folder() as made:
            if self.layer(diff_id).exists():
                await self._receive(blob, fetch)
                return None
            try:
                async with asyncio.TaskGroup() as tasks:
                    unpacking = tasks.create_task(self._unpack_arriving(blob, made, diff_id))
                    await self._receive(blob, fetch)
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
            error = unpacking.result()
            if error is None:
                self._publish_layer(made, diff_id)
            elif not blob.restarts:
                return _Faulty(diff_id, error)
            # Otherwise it may have read discarded content, and the complete blob is unpacked again.
            return None

    async def _unpack_arriving(
        self, blob: IncomingBlob, made: Path, diff_id: str
    ) -> ImageError | None:
        """Unpack a blob while it arrives. The returned error counts only if the blob is complete;
        otherwise damage in transfer may be the cause."""
        try:
            await unpack_layer(blob.path, made, diff_id, self._max_layer, blob.complete)
        except ImageError as error:
            return error
        return None

    async def _unpack(self, layer: Descriptor, diff_id: str, fetch: FetchBlob) -> None:
        blob = self.blob(layer.digest)
        for again in (False, True):
            with self._scratch.folder() as made:
                try:
                    await unpack_layer(blob, made, diff_id, self._max_layer)
                except ImageError:
                    if again or not await asyncio.to_thread(_is_damaged, blob, layer):
                        raise
                else:
                    self._publish_layer(made, diff_id)
                    return
            # The disk has damaged the blob since it was verified: fetch it again.
            blob.unlink(missing_ok=True)
            work = partial(self._fetch, layer.digest, layer.size, fetch)
            await self._flights.run(layer.digest, work)

    def _publish_layer(self, made: Path, diff_id: str) -> None:
        final = self.layer(diff_id)
        if not final.exists():  # different blobs may unpack to the same layer
            staging.publish(made, final)

    @contextmanager
    def _incoming(self, digest: str, size: int | None) -> Iterator[IncomingBlob]:
        made = self._scratch.path()
        try:
            with IncomingBlob(made, digest, size, MAX_DOCUMENT) as blob:
                yield blob
        finally:
            made.unlink(missing_ok=True)

    async def _receive(self, blob: IncomingBlob, fetch: FetchBlob) -> None:
        await fetch(blob)
        blob.check()
        await asyncio.to_thread(blob.flush)
        staging.publish(blob.path, self.blob(blob.digest))
        blob.complete.set()


def _is_damaged(blob: Path, layer: Descriptor) -> bool:
    try:
        staging.verify(blob, layer.digest, layer.size)
    except ImageError:
        return True
    return False
