# SPDX-License-Identifier: Apache-2.0
"""The store's index: the images of a node and their names, in one small JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_names import hex_of
from orchestrator.agent.images.image_spec import ConfigFile, Manifest
from orchestrator.model.objects import Image


@dataclass(frozen=True, slots=True)
class Record:
    """Metadata of an image, and its parts."""

    digest: str
    config_digest: str
    size: int
    """Bytes of all blobs."""
    diff_ids: tuple[str, ...]
    created_at: float
    labels: dict[str, str]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    blobs: frozenset[str]
    """Digests of all blobs, including the manifest."""

    @classmethod
    def of(cls, digest: str, size: int, manifest: Manifest, config: ConfigFile) -> Self:
        """The record of a manifest of `size` bytes and its config."""
        sizes = {part.digest: part.size for part in (manifest.config, *manifest.layers)}
        return cls(
            digest=digest,
            config_digest=manifest.config.digest,
            size=size + sum(sizes.values()),
            diff_ids=config.diff_ids,
            created_at=config.created_at,
            labels=config.process.labels,
            entrypoint=config.process.entrypoint,
            command=config.process.command,
            blobs=frozenset((digest, *sizes)),
        )


class Catalog:
    """Images and names in memory. A name belongs to one image."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._names: dict[str, str] = {}
        self._indexes: dict[str, set[str]] = {}
        """Digest of an image → digests of the indexes that it was taken from."""
        self._made: set[str] = set()
        """Digests of the images that were built, loaded or imported on this node."""

    def has(self, digest: str) -> bool:
        """Whether the store has the image."""
        return digest in self._records

    def identified(self, digest: str) -> str | None:
        """The digest of the image with this digest of a manifest or index."""
        if digest in self._records:
            return digest
        return next((image for image, above in self._indexes.items() if digest in above), None)

    def add_indexes(self, digest: str, indexes: Iterable[str]) -> bool:
        """Record indexes that contain an image of the store; returns whether one is new."""
        known = self._indexes.setdefault(digest, set())
        before = len(known)
        known.update(indexes)
        return len(known) > before

    def note_made(self, digest: str) -> None:
        """Record that an image was built, loaded or imported on this node."""
        self._made.add(digest)

    def made_here(self, digest: str) -> bool:
        """Whether an image was built, loaded or imported on this node."""
        return digest in self._made

    def named(self, name: str) -> str | None:
        """The digest of the image with this full name."""
        return self._names.get(name)

    def record(self, digest: str) -> Record:
        """The record of an image of the store."""
        return self._records[digest]

    def image(self, digest: str) -> Image:
        """An image of the store, as reported to managers."""
        record = self._records[digest]
        return Image(
            id=digest,
            names=tuple(sorted(n for n, owner in self._names.items() if owner == digest)),
            config_digest=record.config_digest,
            size=record.size,
            layers=record.diff_ids,
            created_at=record.created_at,
            labels=record.labels,
            entrypoint=record.entrypoint,
            command=record.command,
            indexes=tuple(sorted(self._indexes.get(digest, ()))),
        )

    def images(self) -> tuple[Image, ...]:
        """All images, sorted by id."""
        return tuple(self.image(digest) for digest in sorted(self._records))

    def add(self, record: Record, names: tuple[str, ...]) -> None:
        """Add an image and give it names, which others lose."""
        self._records[record.digest] = record
        self._names.update(dict.fromkeys(names, record.digest))

    def drop(self, digest: str) -> None:
        """Remove an image and its names."""
        self._records.pop(digest, None)
        self._indexes.pop(digest, None)
        self._made.discard(digest)
        for name in [name for name, owner in self._names.items() if owner == digest]:
            del self._names[name]

    def drop_name(self, name: str) -> None:
        """Remove a name from its image."""
        del self._names[name]

    def needed(self) -> tuple[frozenset[str], frozenset[str]]:
        """Hex digits of the digests of all blobs, and of all layers, that an image needs."""
        records = self._records.values()
        return (
            frozenset(hex_of(blob) for record in records for blob in record.blobs)
            | {hex_of(index) for above in self._indexes.values() for index in above},
            frozenset(hex_of(layer) for record in records for layer in record.diff_ids),
        )

    def dump(self) -> bytes:
        """The content of the index file."""
        document = {
            "version": 1,
            "images": sorted(self._records),
            "names": self._names,
            "indexes": {image: sorted(above) for image, above in self._indexes.items() if above},
            "made": sorted(self._made),
        }
        return json.dumps(document, sort_keys=True, indent=1).encode()


@dataclass(frozen=True, slots=True)
class IndexFile:
    """The content of the index file; empty if there is none."""

    images: tuple[str, ...] = ()
    """Digests."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Name → digest."""
    indexes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Digest of an image → digests of the indexes that it was taken from."""
    made: frozenset[str] = frozenset()
    """Digests of the images that were built, loaded or imported on this node."""


def read_index(path: Path) -> IndexFile:
    """Read the index file. Raises `ImageError` if this version cannot read it."""
    try:
        document = json.loads(path.read_bytes())
        if document["version"] != 1:
            raise ImageError(f"{path} was written by a newer version: upgrade the agent")
        return IndexFile(
            images=tuple(document["images"]),
            names=dict(document["names"]),
            indexes=dict(document.get("indexes", {})),
            # A file of an older version has no such field: no other node may have its images.
            made=frozenset(document.get("made", document["images"])),
        )
    except FileNotFoundError:
        return IndexFile()
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(
            f"{path} is damaged ({error!r}): remove it, and load the images again"
        ) from error
