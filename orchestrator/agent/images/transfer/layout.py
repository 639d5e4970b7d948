# SPDX-License-Identifier: Apache-2.0
"""Image layouts of other tools, over the store's blobs: for push, build, save, commit, import."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_names import hex_of
from orchestrator.agent.images.image_spec import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from orchestrator.agent.images.layers.layercontent import BadLayer, Blob, content
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer import config_changes as dockerfile
from orchestrator.model.specs import ContainerSpec

_CHUNK = 1 << 20
_VERSION = b'{"imageLayoutVersion":"1.0.0"}'


def make_dir_layout(folder: Path, manifest: Path, blobs: Path | None = None) -> None:
    """Make a folder for the transport `dir:` of skopeo and buildah, with links to the blobs of one
    image; `blobs` is the path of the store's blobs for the tool, if it is another.

    That transport accepts any manifest; `oci:` rejects Docker's.
    """
    blobs = blobs or manifest.resolve().parent
    folder.mkdir()
    document = json.loads(manifest.read_bytes())
    (folder / "version").write_text("Directory Transport Version: 1.1\n")
    (folder / "manifest.json").symlink_to(blobs / manifest.name)
    for part in (document["config"], *document["layers"]):
        name = hex_of(part["digest"])
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(blobs / name)


def convert_dir_layout(folder: Path, layout: Path) -> None:
    """Convert a folder that a tool wrote by `dir:`, which is consumed, to an OCI layout."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    manifest = (folder / "manifest.json").read_bytes()
    document = json.loads(manifest)
    for part in (document["config"], *document["layers"]):
        name = hex_of(part["digest"])
        if not (blobs / name).exists():
            (folder / name).rename(blobs / name)
    (layout / _path(_digest(manifest))).write_bytes(manifest)
    index = {"schemaVersion": 2, "manifests": [_entry(manifest, {})]}
    (layout / "index.json").write_text(json.dumps(index))


def _entry(manifest: bytes, annotations: dict[str, str]) -> dict[str, Any]:
    return {
        "mediaType": json.loads(manifest).get("mediaType", OCI_MANIFEST),
        "digest": _digest(manifest),
        "size": len(manifest),
        "annotations": annotations,
    }


@dataclass(frozen=True, slots=True)
class SavedSoFar:
    """The state of a partially written archive, whose images come from several nodes."""

    index: tuple[dict[str, Any], ...] = ()
    """Entries of its index.json."""
    docker: tuple[dict[str, Any], ...] = ()
    """Entries of its manifest.json."""
    blobs: frozenset[str] = frozenset()
    """Digests."""

    @classmethod
    def parse(cls, data: bytes) -> SavedSoFar:
        """From the output of `dump`; an empty state from empty data."""
        if not data:
            return cls()
        words = json.loads(data)
        return cls(tuple(words["index"]), tuple(words["docker"]), frozenset(words["blobs"]))

    def dump(self) -> bytes:
        """As JSON, for the node that continues."""
        words = {"index": self.index, "docker": self.docker, "blobs": sorted(self.blobs)}
        return json.dumps(words).encode()


def with_images(
    store: ImageStore, images: Sequence[tuple[str, Sequence[str]]], before: SavedSoFar
) -> SavedSoFar:
    """The state of an archive after adding images (digest, names) of this node.

    Raises ImageError when the store lacks one.
    """
    index, docker, blobs = list(before.index), list(before.docker), set(before.blobs)
    for digest, names in images:
        data = _blob(store, digest).read_bytes()
        document = json.loads(data)
        config, layers = document["config"]["digest"], [x["digest"] for x in document["layers"]]
        for name in names or [""]:
            tag = name.rpartition(":")[2]
            marks = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}
            index.append(_entry(data, marks if name else {}))
        docker.append(
            {
                "Config": _path(config),
                "RepoTags": list(names),
                "Layers": [_path(layer) for layer in layers],
            }
        )
        blobs.update([*layers, config, digest])
    return SavedSoFar(tuple(index), tuple(docker), frozenset(blobs))


def save_blobs(store: ImageStore, digests: Iterable[str]) -> Iterator[bytes]:
    """The bytes of blobs as parts of an archive. Raises ImageError. Blocks."""
    for blob in sorted(digests):
        path = _blob(store, blob)
        yield _header(_path(blob), path.stat().st_size)
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                yield piece
            if padding := bytes(-file.tell() % tarfile.BLOCKSIZE):
                yield padding


def save_end(saved: SavedSoFar) -> bytes:
    """The end of an archive, which `docker load`, podman, skopeo and this store can read."""
    index = {"schemaVersion": 2, "manifests": saved.index}
    end = b""
    for name, text in (
        ("manifest.json", json.dumps(saved.docker).encode()),
        ("index.json", json.dumps(index).encode()),
        ("oci-layout", _VERSION),
    ):
        end += _header(name, len(text)) + text + bytes(-len(text) % tarfile.BLOCKSIZE)
    return end + bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf()


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _blob(store: ImageStore, digest: str) -> Path:
    path = store.blob_path(digest)
    if path is None:
        raise ImageError(f"this node lacks the blob {digest}")
    return path


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A new image's top layer, and its description in the image's history."""

    archive: Path
    """A tar, plain or compressed, on the store's file system."""
    changes: Sequence[str] = ()
    """Instructions of a Dockerfile that change the config."""
    author: str = ""
    comment: str = ""
    created_by: str = ""
    container: ContainerSpec | None = None
    """Of the container that the layer comes from; its settings become the image's."""


def compose(store: ImageStore, base: str, new: NewLayer, layout: Path) -> None:
    """Make a layout of an image: `base` (a digest here; empty: nothing) and a layer on top.

    Raises ImageError for a broken archive or a change that makes no sense. Blocks.
    """
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    diff_id, kind = _content(new.archive)
    with new.archive.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        size = file.tell()
    (layout / _path(digest)).hardlink_to(new.archive)
    layers: list[Any] = []
    config: dict[str, Any] = {"architecture": store.platform.architecture, "os": "linux"}
    if base:
        document = json.loads(_blob(store, base).read_bytes())
        layers = document["layers"]
        config = json.loads(_blob(store, document["config"]["digest"]).read_bytes())
    now = datetime.now(UTC).isoformat()
    history = {"created": now, "created_by": new.created_by, "comment": new.comment}
    config["created"] = now
    if new.author:
        config["author"] = history["author"] = new.author
    process = config.get("config") or {}
    if new.container is not None:
        process = dockerfile.of_container(process, new.container)
    config["config"] = dockerfile.apply(process, new.changes)
    config["rootfs"] = {
        "type": "layers",
        "diff_ids": [*(config.get("rootfs") or {}).get("diff_ids", []), diff_id],
    }
    config["history"] = [
        *(config.get("history") or []),
        {key: value for key, value in history.items() if value},
    ]
    data = json.dumps(config).encode()
    (layout / _path(_digest(data))).write_bytes(data)
    # Layers of Docker's kinds are the same bytes under other names; one manifest has one family.
    layers = [{**layer, "mediaType": _oci_kind(layer["mediaType"])} for layer in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": _digest(data), "size": len(data)},
        "layers": [*layers, {"mediaType": kind, "digest": digest, "size": size}],
    }
    text = json.dumps(manifest).encode()
    (layout / _path(_digest(text))).write_bytes(text)
    index = {"schemaVersion": 2, "manifests": [_entry(text, {})]}
    (layout / "index.json").write_text(json.dumps(index))


def _oci_kind(kind: str) -> str:
    if kind.startswith("application/vnd.docker."):
        return f"{OCI_LAYER}+gzip" if kind.endswith("gzip") else OCI_LAYER
    return kind


def _content(archive: Path) -> tuple[str, str]:
    """The digest of the uncompressed layer, and its media type."""
    found = hashlib.sha256()
    with archive.open("rb", buffering=0) as file:
        magic = file.read(4)
        file.seek(0)
        try:
            for piece in content(Blob(file.fileno())):
                found.update(piece)
        except BadLayer as error:
            raise ImageError(str(error).replace("the layer", "the archive")) from error
        if not magic:
            raise ImageError("the archive is empty")
    kind = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}.get(magic[:2], "")
    if not kind:
        with archive.open("rb") as file:
            if len(block := file.read(512)) < 512 or not _is_tar(block):
                raise ImageError("this is not a tar archive")
    return f"sha256:{found.hexdigest()}", OCI_LAYER + kind


def _is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
