# SPDX-License-Identifier: Apache-2.0
"""Layers and archives built entry by entry, including malicious ones."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.agent.images.image_spec import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, node_platform


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def entry(
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    mtime: float = 1_000_000_000,
    device: tuple[int, int] = (0, 0),
    xattrs: dict[str, bytes] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, mtime
    info.size = len(data)
    info.uid, info.gid = owner
    info.devmajor, info.devminor = device
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
        for key, value in (xattrs or {}).items()
    }
    return info, data


def folder(name: str, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.DIRTYPE, **{"mode": 0o755, **more})


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.LNKTYPE, link=target)


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
    ) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@dataclass
class Layout:
    """An OCI layout in the making: a folder of blobs and an index."""

    root: Path
    entries: list[dict[str, Any]] = field(default_factory=list)

    def blob(self, data: bytes) -> dict[str, Any]:
        folder = self.root / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        digest = digest_of(data)
        (folder / digest.removeprefix("sha256:")).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def path(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def image(
        self,
        layers: Sequence[bytes],
        name: str = "",
        *,
        blobs: Sequence[bytes] | None = None,
        architecture: str = "",
        listed: bool = True,
        process: dict[str, Any] | None = None,
    ) -> str:
        """Add an image of these (uncompressed) layers; `blobs`: as they are stored instead."""
        config = {
            "os": "linux",
            "architecture": architecture or node_platform().architecture,
            "created": "2024-05-06T07:08:09.123456789Z",
            "config": process or {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, **self.blob(json.dumps(config).encode())},
            "layers": [{"mediaType": OCI_LAYER, **self.blob(blob)} for blob in blobs or layers],
        }
        descriptor = {"mediaType": OCI_MANIFEST, **self.blob(json.dumps(manifest).encode())}
        if name:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        if listed:
            self.entries.append(descriptor)
        return str(descriptor["digest"])

    def finish(self) -> Path:
        """Write the index; the folder can be loaded now."""
        (self.root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "manifests": self.entries}
        (self.root / "index.json").write_text(json.dumps(index))
        return self.root

    def archive(self) -> Path:
        """The layout as a tar file."""
        self.finish()
        path = self.root.with_suffix(".tar")
        with tarfile.open(path, "w") as out:
            out.add(self.root, arcname=".")
        return path


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own, mounted for the length of the block."""
    backing, mounted = folder / "disk.img", folder / "disk"
    with backing.open("wb") as file:
        file.truncate(mebibytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", backing], check=True)
    mounted.mkdir()
    subprocess.run(["mount", "-o", "loop", backing, mounted], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)
