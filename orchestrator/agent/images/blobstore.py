"""Blobs and unpacked layers by their digests: whole or not there, and made once."""

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
from orchestrator.agent.images.errors import ImageError, SourceGone
from orchestrator.agent.images.image_spec import Descriptor
from orchestrator.agent.images.layers import untar
from orchestrator.agent.images.layers.unpack import unpack_layer
from orchestrator.agent.images.names import hex_of
from orchestrator.agent.images.singleflight import SingleFlight
from orchestrator.agent.images.staging import FetchBlob, IncomingBlob
from orchestrator.agent.images.transfer.archive import MAX_DOCUMENT

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Faulty:
    """A whole blob that does not unpack to what it was said to be."""

    diff_id: str
    error: ImageError


class BlobStore:
    """The folders `blobs` and `layers` of a store; an async context manager that ends its work."""

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
        """See that the folders exist."""
        for folder in (self._blobs, self._layers):
            folder.mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """Where a blob is, or would be. Raises ImageError for what is no digest."""
        return self._blobs / hex_of(digest)

    def layer(self, diff_id: str) -> Path:
        """Where a layer is unpacked, or would be."""
        return self._layers / hex_of(diff_id)

    def stack(self, diff_ids: Sequence[str]) -> tuple[Path, ...]:
        """The folders of unpacked layers as they are mounted, lowest first.

        Of a layer that occurs more than once only the topmost is mounted, since overlayfs takes no
        folder twice. The tree is the same, whatever is in between. A lower occurrence would show
        a name only where the layers above have folders, neither opaque nor removed, on the whole
        path to it, so the topmost occurrence is looked at first; that has the same entry at that
        name and either shows it or hides what is below.

        A layer whose root is opaque hides all below it, which overlayfs does not see: it merges
        roots whatever they say.
        """
        topmost = list(dict.fromkeys(reversed(diff_ids)))
        folders = [self.layer(diff_id) for diff_id in reversed(topmost)]
        lowest = max((n for n, folder in enumerate(folders) if untar.is_opaque(folder)), default=0)
        return tuple(folders[lowest:])

    def find(self, digest: str) -> Path | None:
        """The file of a blob; None if it is not here."""
        path = self.blob(digest)
        return path if path.exists() else None

    async def fetched(self, digest: str, size: int | None, fetch: FetchBlob) -> None:
        """See that a blob is here; a `size` of None is any that a document may have."""
        if self.find(digest) is None:
            await self._shared(digest, partial(self._fetch, digest, size, fetch))

    async def unpacked(self, layer: Descriptor, diff_id: str, fetch: FetchBlob) -> None:
        """See that a layer is here, as its blob and as a folder."""
        if self.find(layer.digest) is None or not self.layer(diff_id).exists():
            key = f"{layer.digest} as {diff_id}"
            await self._shared(key, partial(self._make_layer, layer, diff_id, fetch))

    def hide_all_but(self, blobs: Collection[str], layers: Collection[str]) -> list[Path]:
        """Take all but what is named (digits of digests) out of the store, each at once and whole,
        to where it may be removed slowly. Only while nothing is fetched or unpacked."""
        return [
            path.rename(self._scratch.path())
            for folder, needed in ((self._blobs, blobs), (self._layers, layers))
            for path in folder.iterdir()
            if path.name not in needed
        ]

    async def _shared(
        self, key: str, work: Callable[[], Awaitable[_Faulty | None]]
    ) -> _Faulty | None:
        """Do work, or wait for those who do it; what they fetch with may go with them. Only for
        callers from outside: they are here, and so is what they fetch with."""
        while True:
            try:
                return await self._flights.run(key, work)
            except SourceGone as error:
                log.info("a fetch is begun anew: %s", error, extra={"blob": key})

    async def _fetch(self, digest: str, size: int | None, fetch: FetchBlob) -> None:
        with self._incoming(digest, size) as blob:
            await self._arrived(blob, fetch)

    async def _make_layer(self, layer: Descriptor, diff_id: str, fetch: FetchBlob) -> None:
        if self.find(layer.digest) is None:
            work = partial(self._fetch_layer, layer, diff_id, fetch)
            found = await self._flights.run(layer.digest, work)
            # Of another image that says something else of this blob, the fault is its own.
            if found is not None and found.diff_id == diff_id:
                raise found.error
        if not self.layer(diff_id).exists():
            await self._unpack(layer, diff_id, fetch)

    async def _fetch_layer(
        self, layer: Descriptor, diff_id: str, fetch: FetchBlob
    ) -> _Faulty | None:
        """Get the blob of a layer, and unpack it as it comes unless another blob was the same.
        The blob is here then; what is wrong with its content is the result."""
        with self._incoming(layer.digest, layer.size) as blob, self._scratch.folder() as made:
            if self.layer(diff_id).exists():
                await self._arrived(blob, fetch)
                return None
            try:
                async with asyncio.TaskGroup() as tasks:
                    unpacking = tasks.create_task(self._followed(blob, made, diff_id))
                    await self._arrived(blob, fetch)
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
            error = unpacking.result()
            if error is None:
                self._publish_layer(made, diff_id)
            elif not blob.restarts:
                return _Faulty(diff_id, error)
            # Else what it read may have been thrown away since, and the whole blob is unpacked.
            return None

    async def _followed(self, blob: IncomingBlob, made: Path, diff_id: str) -> ImageError | None:
        """Unpack a blob that is coming. What is wrong with it counts only if it comes whole, for
        else it is wrong for being damaged."""
        try:
            await unpack_layer(blob.path, made, diff_id, self._max_layer, blob.whole)
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
                    if again or not await asyncio.to_thread(_rotten, blob, layer):
                        raise
                else:
                    self._publish_layer(made, diff_id)
                    return
            # The disk has damaged the blob since it was verified: get it once more.
            blob.unlink(missing_ok=True)
            work = partial(self._fetch, layer.digest, layer.size, fetch)
            await self._flights.run(layer.digest, work)

    def _publish_layer(self, made: Path, diff_id: str) -> None:
        final = self.layer(diff_id)
        if not final.exists():  # blobs that differ may unpack to the same layer
            staging.publish(made, final)

    @contextmanager
    def _incoming(self, digest: str, size: int | None) -> Iterator[IncomingBlob]:
        made = self._scratch.path()
        try:
            with IncomingBlob(made, digest, size, MAX_DOCUMENT) as blob:
                yield blob
        finally:
            made.unlink(missing_ok=True)

    async def _arrived(self, blob: IncomingBlob, fetch: FetchBlob) -> None:
        await fetch(blob)
        blob.check()
        await asyncio.to_thread(blob.flush)
        staging.publish(blob.path, self.blob(blob.digest))
        blob.whole.set()


def _rotten(blob: Path, layer: Descriptor) -> bool:
    try:
        staging.verify(blob, layer.digest, layer.size)
    except ImageError:
        return True
    return False
