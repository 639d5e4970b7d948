# SPDX-License-Identifier: Apache-2.0
"""Reading image archives: OCI layouts and what `docker save` writes, as tar files or folders.

Formats: OCI image-spec 1.1 (image-layout.md); moby's image spec v1.2 for `manifest.json`. What
Docker has written since version 25 is both at once; the OCI side is taken for the blobs and
`manifest.json` for the names.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import posixpath
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError
from typing import IO, Any, Protocol

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_names import full_name, hex_of
from orchestrator.agent.images.image_spec import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    check_platform,
    choose,
    parse_config,
    parse_manifest,
)

MAX_DOCUMENT = 8 << 20
"""Maximum bytes of a JSON document: no real manifest or config is close to it."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """One blob of an archive: its path there, or its bytes."""

    digest: str
    size: int
    path: str = ""
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """One image of an archive, for the wanted platform."""

    digest: str
    """Of its manifest."""
    names: tuple[str, ...]
    contents: tuple[Content, ...] = field(repr=False)
    """All of its blobs, the manifest last."""


class Files(Protocol):
    """The files inside an archive."""

    def has(self, path: str) -> bool: ...

    def open(self, path: str) -> IO[bytes]:
        """Raises `ImageError` when there is no such file."""
        ...


class FolderFiles:
    """An archive that is a folder, as `skopeo copy … oci:FOLDER` makes it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, path: str) -> bool:
        return (self._root / path).is_file()

    def open(self, path: str) -> IO[bytes]:
        try:
            return (self._root / path).open("rb")
        except OSError as error:
            raise ImageError(f"the archive lacks its file {path}") from error


class TarFiles:
    """An archive that is a tar file. Its index is read once; members are read in place."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._members = {posixpath.normpath(m.name): m for m in tar.getmembers()}

    def has(self, path: str) -> bool:
        return path in self._members

    def open(self, path: str) -> IO[bytes]:
        member = self._members.get(posixpath.normpath(path))
        try:
            file = self._tar.extractfile(member) if member else None
        except (KeyError, RecursionError):
            file = None
        if file is None:
            raise ImageError(f"the archive lacks its file {path}")
        return file


@contextmanager
def open_archive(path: Path, scratch: Path) -> Iterator[Files]:
    """The files of an archive: a folder, or a tar, which may be compressed (it is then decompressed
    to the folder `scratch` first, since members are read in any order).

    Raises `ImageError` when it is neither.
    """
    if path.is_dir():
        yield FolderFiles(path)
        return
    try:
        plain = decompressed(path, scratch)
        tar = tarfile.open(plain, "r:")  # noqa: SIM115 (closed below, errors are not told apart)
    except FileNotFoundError as error:
        raise ImageError(f"no such file: {error.filename}") from error
    except (tarfile.TarError, *NOT_COMPRESSED) as error:
        raise not_an_archive() from error
    with tar:
        try:
            files = TarFiles(tar)
        except (tarfile.TarError, EOFError) as error:
            raise ImageError(f"the archive is cut off or damaged: {error}") from error
        yield files


NOT_COMPRESSED = (EOFError, lzma.LZMAError, zlib.error, CalledProcessError)
"""Errors of `decompressed`, in addition to OSError, for a file that is damaged."""


def decompressed(path: Path, scratch: Path) -> Path:
    """Decompress a file (gzip, zstd, bzip2 or xz) to the folder `scratch`; returns the file itself
    if it is not compressed."""
    with path.open("rb") as file:
        magic = file.read(6)
    plain = scratch / "decompressed"
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        subprocess.run(["zstd", "-dqf", "-o", plain, path], check=True, capture_output=True)
        return plain
    openers: tuple[tuple[bytes, Any], ...] = (
        (b"\x1f\x8b", gzip.open),
        (b"BZh", bz2.open),
        (b"\xfd7zXZ\x00", lzma.open),
    )
    opener = next((each for begin, each in openers if magic.startswith(begin)), None)
    if opener is None:
        return path
    try:
        with opener(path) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
    except OSError as error:
        if error.errno is None:  # bz2 reports damage like this
            raise EOFError(str(error)) from error
        raise
    return plain


def not_an_archive() -> ImageError:
    """The error for a file that is no archive."""
    return ImageError(
        "this is not an image archive: "
        "make one with `docker save`, `podman save` or `skopeo copy … oci-archive:FILE`"
    )


def read_images(files: Files, wanted: Platform) -> tuple[ArchivedImage, ...]:
    """All images of an archive for the wanted platform, at least one.

    Raises `ImageError` when there is none, or when the archive is invalid. Blobs are verified
    later, while they are copied.
    """
    if files.has("index.json"):
        images = _oci_images(files, wanted)
    elif files.has("manifest.json"):
        images = tuple(_docker_image(files, e, wanted) for e in _docker_entries(files))
    else:
        raise not_an_archive()
    if not images:
        raise ImageError("the archive holds no image")
    return images


def _oci_images(files: Files, wanted: Platform) -> tuple[ArchivedImage, ...]:
    index = parse_manifest(read_document(files, "index.json"))
    if not isinstance(index, Index):
        raise ImageError("the archive's index.json is not an index")
    by_config = _docker_names(files)
    # Entries with the same name and different platforms are one image; all others are one each.
    groups: dict[tuple[str, str], list[Descriptor]] = {}
    for descriptor in index.manifests:
        key = (descriptor.name, "" if descriptor.platform else descriptor.digest)
        groups.setdefault(key, []).append(descriptor)
    found: dict[str, ArchivedImage] = {}
    for (name, _), candidates in groups.items():
        image = _oci_image(files, choose(candidates, wanted), wanted, by_config)
        # A tag alone, as `skopeo copy … oci:FOLDER:TAG` leaves it, is not a name.
        names = {*image.names, *_names([name] if set(name) & set(":/") else [])}
        if image.digest in found:
            names |= set(found[image.digest].names)
        found[image.digest] = ArchivedImage(image.digest, tuple(sorted(names)), image.contents)
    return tuple(found.values())


def _oci_image(
    files: Files, descriptor: Descriptor, wanted: Platform, by_config: dict[str, list[str]]
) -> ArchivedImage:
    for _ in range(4):  # indexes may be nested, in practice less deeply
        data = read_document(files, _blob(descriptor.digest))
        _verify(data, descriptor.digest)
        manifest = parse_manifest(data)
        if isinstance(manifest, Manifest):
            break
        descriptor = choose(manifest.manifests, wanted)
    else:
        raise ImageError("the archive's indexes are nested too deeply")
    config_data = read_document(files, _blob(manifest.config.digest))
    check_platform(parse_config(config_data), wanted)
    parts = (*manifest.layers, manifest.config)
    return ArchivedImage(
        digest=descriptor.digest,
        names=_names(by_config.get(manifest.config.digest, [])),
        contents=(
            *(Content(p.digest, p.size, _blob(p.digest)) for p in parts),
            Content(descriptor.digest, len(data), data=data),
        ),
    )


def _docker_image(files: Files, entry: dict[str, Any], wanted: Platform) -> ArchivedImage:
    """`docker save` writes no manifest, so one is made, deterministically."""
    config_data = read_document(files, entry["Config"])
    config = parse_config(config_data)
    check_platform(config, wanted)
    if len(config.diff_ids) != len(entry["Layers"]):
        raise ImageError("the archive's manifest.json and config disagree on the layers")
    layers = []
    for path, diff_id in zip(entry["Layers"], config.diff_ids, strict=True):
        with files.open(path) as file:
            identity, kind = _digest_and_size(file), _layer_type(file)
        # The only digest of a layer in such an archive. A compressed layer is verified when it is
        # unpacked.
        if kind == OCI_LAYER and identity[0] != diff_id:
            raise ImageError(
                f"the archive is damaged: layer {diff_id} has the digest {identity[0]}"
            )
        layers.append((identity, path, kind))
    config_digest = f"sha256:{hashlib.sha256(config_data).hexdigest()}"
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": len(config_data)},
        "layers": [
            {"mediaType": kind, "digest": digest, "size": size}
            for (digest, size), _, kind in layers
        ],
    }
    data = json.dumps(manifest, separators=(",", ":")).encode()
    manifest_digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return ArchivedImage(
        digest=manifest_digest,
        names=_names(entry.get("RepoTags") or []),
        contents=(
            *(Content(digest, size, path) for (digest, size), path, _ in layers),
            Content(config_digest, len(config_data), data=config_data),
            Content(manifest_digest, len(data), data=data),
        ),
    )


def _docker_entries(files: Files) -> list[dict[str, Any]]:
    try:
        entries = json.loads(read_document(files, "manifest.json"))
        for entry in entries:
            if not (isinstance(entry["Config"], str) and isinstance(entry["Layers"], list)):
                raise TypeError("Config or Layers")
    except (ValueError, TypeError, KeyError) as error:
        raise ImageError(f"the archive's manifest.json is malformed: {error!r}") from error
    return list(entries)


def _docker_names(files: Files) -> dict[str, list[str]]:
    """Config digest → names, of an OCI archive that Docker wrote."""
    if not files.has("manifest.json"):
        return {}
    return {
        f"sha256:{Path(entry['Config']).name.removesuffix('.json')}": entry.get("RepoTags") or []
        for entry in _docker_entries(files)
    }


def _names(texts: list[str]) -> tuple[str, ...]:
    return tuple(sorted({full_name(text) for text in texts}))


def _blob(digest: str) -> str:
    return f"blobs/sha256/{hex_of(digest)}"


def read_document(files: Files, path: str) -> bytes:
    """The content of a small JSON file of the archive."""
    with files.open(path) as file:
        data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise ImageError(f"the archive's {path} is over {MAX_DOCUMENT >> 20} MiB")
    return data


def _verify(data: bytes, digest: str) -> None:
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if found != digest:
        raise ImageError(f"the archive is damaged: blob {digest} has the digest {found}")


def _digest_and_size(file: IO[bytes]) -> tuple[str, int]:
    digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
    return f"sha256:{digest.hexdigest()}", file.tell()


def _layer_type(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_SET)
    magic = file.read(4)
    if magic[:2] == b"\x1f\x8b":
        return f"{OCI_LAYER}+gzip"
    return f"{OCI_LAYER}+zstd" if magic == b"\x28\xb5\x2f\xfd" else OCI_LAYER
