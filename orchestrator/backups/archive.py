# SPDX-License-Identifier: Apache-2.0
"""The content of a backup: a compressed tar archive of

    manifest.json   format, cluster, time, store revision, versions, number of keys
    store.jsonl     a line for each key of the store: {"key": …, "value": base64}
    ca.pem, ca.key, cluster.key   as in a manager's data folder

It is a logical dump and not a snapshot of etcd: it can be restored with another version of etcd, an
external etcd, another number of members, and while a single member is repaired.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

FORMAT = 1
MANIFEST, STORE = "manifest.json", "store.jsonl"
_LEVEL = 1
"""Of compression: higher levels take longer than they save."""


class BackupError(Exception):
    """A backup cannot be written or read; one line with the reason and the next step."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup contains."""

    cluster_id: str
    created_at: float
    """Seconds since the epoch."""
    revision: int
    """Of the store, at which all keys were read."""
    version: str
    """Of Orc."""
    keys: int
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Archive:
    """A backup without encryption."""

    manifest: Manifest
    store: tuple[tuple[str, bytes], ...]
    """Keys and values."""
    files: Mapping[str, bytes]
    """Files of the manager's data folder, by name."""


def pack(archive: Archive) -> bytes:
    """The archive as bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=_LEVEL) as tar:
        manifest = json.dumps(asdict(archive.manifest), indent=2)
        _add(tar, MANIFEST, manifest.encode(), archive.manifest.created_at)
        _add(tar, STORE, _lines(archive.store), archive.manifest.created_at)
        for name, data in sorted(archive.files.items()):
            _add(tar, name, data, archive.manifest.created_at)
    return target.getvalue()


def _lines(store: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(
        json.dumps({"key": key, "value": base64.b64encode(value).decode()}).encode() + b"\n"
        for key, value in store
    )


def _add(tar: tarfile.TarFile, name: str, data: bytes, modified: float) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(modified)
    tar.addfile(entry, io.BytesIO(data))


def unpack(data: bytes) -> Archive:
    """The archive from bytes. Raises BackupError."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            for entry in tar:
                if (content := tar.extractfile(entry)) is not None:
                    found[entry.name] = content.read()
        raw = json.loads(found.pop(MANIFEST))
        if raw["format"] > FORMAT:
            raise BackupError(
                f"this backup has format {raw['format']}, which a newer version of Orc wrote "
                f"({raw.get('version', 'unknown')}): restore it with that version"
            )
        known = {each.name for each in fields(Manifest)}
        manifest = Manifest(**{name: value for name, value in raw.items() if name in known})
        store = tuple(
            (line["key"], base64.b64decode(line["value"], validate=True))
            for line in map(json.loads, found.pop(STORE).splitlines())
        )
    except (
        tarfile.TarError,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        binascii.Error,
    ) as error:
        raise BackupError(f"this is not a backup, or it is damaged: {error}") from error
    if len(store) != manifest.keys:
        raise BackupError(
            f"the backup is damaged: it has {len(store)} keys of {manifest.keys}; use another one"
        )
    return Archive(manifest, store, found)
