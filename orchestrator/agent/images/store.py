# SPDX-License-Identifier: Apache-2.0
"""The images of one node: blobs and unpacked layers by digest, and an index of names."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.agent.images import staging
from orchestrator.agent.images.blobstore import BlobStore
from orchestrator.agent.images.catalog import Catalog, Record, read_index
from orchestrator.agent.images.image_errors import ImageError, ImageInUse, NoSpace
from orchestrator.agent.images.image_names import full_name, hex_of, is_digest
from orchestrator.agent.images.image_spec import (
    ConfigFile,
    Descriptor,
    ImageConfig,
    Index,
    LocalImage,
    Manifest,
    Platform,
    check_platform,
    choose,
    node_platform,
    parse_config,
    parse_manifest,
)
from orchestrator.agent.images.layers import untar
from orchestrator.agent.images.layers.unpack import MAX_LAYER
from orchestrator.agent.images.staging import FetchBlob
from orchestrator.agent.images.transfer.archive import (
    MAX_DOCUMENT,
    ArchivedImage,
    open_archive,
    read_images,
)
from orchestrator.linux.atomicfile import write_file
from orchestrator.linux.trees import remove_tree
from orchestrator.model.objects import Image

log = logging.getLogger(__name__)

_PARALLEL = 3
"""Blobs of one image that are fetched or unpacked at a time."""


class ImageStore:
    """The content-addressed image store under `root`, which no other process may use meanwhile.

    An async context manager. `changed` is set whenever `inventory()` has changed; the reporter
    clears it first.
    """

    def __init__(
        self, root: Path, platform: Platform | None = None, max_layer: int = MAX_LAYER
    ) -> None:
        """`platform`: the platform of images to use; None: this machine's. `max_layer`: maximum
        bytes of an unpacked layer."""
        self._root = root
        self._index = root / "index.json"
        self._scratch = staging.Scratch(root / "tmp")
        self._blobs = BlobStore(root, self._scratch, max_layer)
        self.platform = platform or node_platform()
        self._catalog = Catalog()
        self._saving = asyncio.Lock()
        self._ready: dict[str, LocalImage] = {}
        self._busy = 0
        self._garbage = False
        self._closing = AsyncExitStack()
        self.changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._lock(stack)
            await asyncio.to_thread(self._open)
            await stack.enter_async_context(self._blobs)
            self._closing = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._closing.__aexit__(kind, error, trace)

    def inventory(self) -> tuple[Image, ...]:
        """All images of this node, sorted by id; the manager fills in `nodes`."""
        return self._catalog.images()

    def resolve(self, reference: str) -> str | None:
        """The manifest digest of an image, by name or digest; None if the store lacks it.

        Raises `ImageError` for an invalid reference.
        """
        digest = reference if is_digest(reference) else reference.partition("@")[2]
        if digest:
            return self._catalog.identified(digest) if hex_of(digest) else None
        return self._catalog.named(full_name(reference))

    def blob_path(self, digest: str) -> Path | None:
        """The file of a blob, complete and read-only; None if the store lacks it."""
        return self._blobs.find(digest)

    @property
    def swept(self) -> bool:
        """Whether all unneeded blobs and layers were removed, which waits for running work."""
        return not self._garbage

    def made_here(self, digest: str) -> bool:
        """Whether an image was built, loaded or imported on this node, and not fetched: it may be
        the only copy."""
        return self._catalog.made_here(digest)

    def touch(self, digest: str) -> None:
        """Record that an image is in use now."""
        if (path := self.blob_path(digest)) is not None:
            os.utime(path)

    def last_used(self, digest: str) -> float:
        """When an image was last made ready or touched, in seconds since the epoch."""
        return self._blobs.blob(digest).stat().st_mtime

    async def load(self, archive: Path, name: str = "") -> Image:
        """Like `load_all`, for an archive of one image."""
        return (await self.load_all(archive, name))[0]

    async def load_all(self, archive: Path, name: str = "") -> tuple[Image, ...]:
        """Load an image archive: a tar, compressed or not, or a folder in the OCI layout.

        `name` replaces the archive's own names. Raises `ImageError`, and then the store is
        unchanged.
        """
        given = full_name(name) if name else ""
        async with self._working():
            try:
                with self._scratch.folder() as folder:
                    images = await asyncio.to_thread(self._take, archive, folder)
                if given and len(images) > 1:
                    raise ImageError(
                        f"the archive holds {len(images)} images, so no single name can be given"
                    )
                records = [await asyncio.to_thread(self._record, i.digest) for i in images]
            except BaseException:
                self._garbage = True
                raise
            for image, record in zip(images, records, strict=True):
                self._catalog.add(record, (given,) if given else image.names)
                self._catalog.note_made(record.digest)
            loaded = tuple(self._catalog.image(image.digest) for image in images)
            await self._save()
        return loaded

    async def ensure(self, digest: str, fetch: FetchBlob, name: str = "") -> LocalImage:
        """The image of a manifest's or index's digest, ready to run: missing blobs are fetched and
        layers unpacked. With `name`, that name moves to this image.

        Concurrent callers share the work on common blobs and layers. Raises `ImageError`; complete
        blobs and layers are kept for the next attempt.
        """
        hex_of(digest)
        names = (full_name(name),) if name else ()
        if names and (here := self.resolve(digest)) is not None:
            await self.tag(here, names[0])
        if (ready := self._ready.get(self.resolve(digest) or digest)) is not None:
            self.touch(ready.digest)
            return ready
        indexes: list[str] = []
        async with self._working():
            await self._blobs.ensure_blob(digest, None, fetch)
            parsed = await asyncio.to_thread(self._manifest, digest)
            while not isinstance(parsed, Manifest):
                chosen = choose(parsed.manifests, self.platform)
                indexes.append(digest)
                digest = chosen.digest
                await self._blobs.ensure_blob(digest, chosen.size, fetch)
                parsed = await asyncio.to_thread(self._manifest, digest)
            await self._blobs.ensure_blob(parsed.config.digest, parsed.config.size, fetch)
            config = await asyncio.to_thread(self._config, parsed)
            check_platform(config, self.platform)
            slots = asyncio.Semaphore(_PARALLEL)

            async def layer(descriptor: Descriptor, diff_id: str) -> None:
                async with slots:
                    await self._blobs.ensure_layer(descriptor, diff_id, fetch)

            try:
                async with asyncio.TaskGroup() as tasks:
                    for descriptor, diff_id in zip(parsed.layers, config.diff_ids, strict=True):
                        tasks.create_task(layer(descriptor, diff_id))
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
            local = LocalImage(
                digest=digest,
                layers=self._blobs.stack(config.diff_ids),
                config=config.process,
            )
            record = await asyncio.to_thread(self._record, digest)
            self.touch(digest)
            # There is no await from here on at which the image could be removed.
            self._ready[digest] = local
            new = not self._catalog.has(digest)
            if new:
                self._catalog.add(record, names)
            if self._catalog.add_indexes(digest, indexes) or new:
                await self._save()
            return local

    async def config(self, digest: str) -> ImageConfig | None:
        """The process defaults of an image; None if the store lacks it or it is damaged. Fetches
        nothing. Raises OSError."""
        if (here := self.resolve(digest)) is None:
            return None
        if (ready := self._ready.get(here)) is not None:
            return ready.config

        def read() -> ImageConfig | None:
            manifest = self._manifest(here)
            return self._config(manifest).process if isinstance(manifest, Manifest) else None

        try:
            return await asyncio.to_thread(read)
        except (ImageError, FileNotFoundError) as error:
            log.warning("image is damaged", extra={"image": here, "error": str(error)})
            return None

    async def tag(self, reference: str, name: str) -> None:
        """Add a name to an image; any other image loses it. Raises `ImageError`."""
        digest = self._require(reference)
        self._catalog.add(self._catalog.record(digest), (full_name(name),))
        await self._save()

    async def remove(self, reference: str, in_use: Collection[str] = ()) -> None:
        """Remove a name, and with its last name the image and all parts that no other image needs.

        By digest, an image is removed with all of its names. `in_use`: digests of images with
        containers. Raises `ImageInUse` for those, `ImageError` for an unknown reference.
        """
        digest = self._require(reference)
        names = self._catalog.image(digest).names
        by_digest = is_digest(reference) or "@" in reference
        if not by_digest and len(names) > 1:
            self._catalog.drop_name(full_name(reference))
        elif digest in in_use:
            raise ImageInUse(
                f"image {reference} is used by a container on this node: remove that first"
            )
        else:
            self._catalog.drop(digest)
            self._ready.pop(digest, None)
            self._garbage = True
        await self._save()
        async with self._working():
            pass  # removes garbage at its end, unless other work is running: then that does

    async def untag(self, name: str, digest: str) -> None:
        """Remove a name from the image `digest`, which is kept; no-op if another image has it."""
        full = full_name(name)
        if self._catalog.named(full) == digest:
            self._catalog.drop_name(full)
            await self._save()

    def layers(self, digest: str) -> tuple[Path, ...]:
        """The unpacked layers of an image, lowest first. Raises `ImageError`."""
        record = self._catalog.record(self._require(digest))
        return self._blobs.stack(record.diff_ids)

    def parts(self, digest: str) -> tuple[Path, ...]:
        """The paths of the blobs and unpacked layers of an image, which images share. Raises
        `ImageError`."""
        record = self._catalog.record(self._require(digest))
        blobs = tuple(self._blobs.blob(blob) for blob in sorted(record.blobs))
        # Each layer once, including those hidden by a layer above.
        return blobs + tuple(self._blobs.layer(each) for each in dict.fromkeys(record.diff_ids))

    def _require(self, reference: str) -> str:
        digest = self.resolve(reference)
        if digest is None:
            raise ImageError(f"no such image on this node: {reference}")
        return digest

    # -- opening ---------------------------------------------------------------------------------

    def _lock(self, stack: AsyncExitStack) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = stack.enter_context((self._root / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImageError(f"another process uses the image store {self._root}") from None

    def _open(self) -> None:
        self._scratch.clear()
        self._blobs.open()
        index = read_index(self._index)
        for digest in index.images:
            try:
                record = self._record(digest)
            except (ImageError, OSError) as error:
                log.warning("dropping image %s, its blobs are incomplete: %s", digest, error)
            else:
                owned = tuple(name for name, owner in index.names.items() if owner == digest)
                self._catalog.add(record, owned)
                self._catalog.add_indexes(digest, index.indexes.get(digest, ()))
                if digest in index.made:
                    self._catalog.note_made(digest)
        _remove_all(self._hide_garbage())

    async def _save(self) -> None:
        """Write the index and notify of the change. Writes are serialized: the last is newest."""
        async with self._saving:
            data = self._catalog.dump()
            draft = self._scratch.path()
            await asyncio.to_thread(write_file, self._index, data, mode=0o644, temporary=draft)
        self.changed.set()

    # -- archives --------------------------------------------------------------------------------

    def _take(self, archive: Path, folder: Path) -> tuple[ArchivedImage, ...]:
        with open_archive(archive, folder) as files:
            images = read_images(files, self.platform)
            for image in images:
                for content in image.contents:
                    final = self._blobs.blob(content.digest)
                    if final.exists():
                        continue
                    made = self._scratch.path()
                    try:
                        if content.data:
                            write_file(final, content.data, mode=0o644, temporary=made)
                            continue
                        with files.open(content.path) as source:
                            staging.write_verified(source, made, content.digest, content.size)
                        staging.publish(made, final)
                    finally:
                        made.unlink(missing_ok=True)
        return images

    # -- reading ---------------------------------------------------------------------------------

    def _read(self, digest: str) -> bytes:
        with self._blobs.blob(digest).open("rb") as file:
            data = file.read(MAX_DOCUMENT + 1)
        if len(data) > MAX_DOCUMENT:
            raise ImageError(f"blob {digest} is over {MAX_DOCUMENT >> 20} MiB, so no manifest")
        return data

    def _manifest(self, digest: str) -> Manifest | Index:
        return parse_manifest(self._read(digest))

    def _config(self, manifest: Manifest) -> ConfigFile:
        config = parse_config(self._read(manifest.config.digest))
        if len(config.diff_ids) != len(manifest.layers):
            raise ImageError("the image's manifest and config disagree on the number of layers")
        return config

    def _record(self, digest: str) -> Record:
        manifest = parse_manifest(self._read(digest))
        if not isinstance(manifest, Manifest):
            raise ImageError(f"{digest} is an index, not an image")
        config = self._config(manifest)
        for part in (manifest.config, *manifest.layers):
            there = self._blobs.blob(part.digest).stat().st_size
            if there != part.size:
                raise ImageError(f"blob {part.digest} has {there} bytes instead of {part.size}")
        return Record.of(digest, len(self._read(digest)), manifest, config)

    # -- garbage ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        """Keep blobs that no image needs yet while an image is being collected. If the disk is too
        small for all of them, they are removed again: the image could never be used."""
        self._busy += 1
        try:
            yield
        except OSError as error:
            if not untar.disk_is_full(error):
                raise
            self._garbage = True
            raise NoSpace(untar.NO_SPACE) from error
        except ImageError as error:
            if str(error) == untar.NO_SPACE:
                self._garbage = True
                raise NoSpace(untar.NO_SPACE) from error
            raise
        finally:
            self._busy -= 1
            if self._garbage and not self._busy:
                await asyncio.to_thread(_remove_all, self._hide_garbage())

    def _hide_garbage(self) -> list[Path]:
        """Move unneeded blobs and layers out of the store. Only while no work is running."""
        self._garbage = False
        return self._blobs.hide_all_but(*self._catalog.needed())


def _remove_all(paths: list[Path]) -> None:
    for path in paths:
        remove_tree(path)
