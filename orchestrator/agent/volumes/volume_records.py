# SPDX-License-Identifier: Apache-2.0
"""Durable records of volumes and of the containers that use them.

A record that cannot be read (after damage to the disk, or written by a release that did not flush
it) is moved aside as `NAME.corrupt` and logged; it never stops the agent, and the volume's data
stays. The record of a volume is written again when the volume is next used.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.linux.atomicfile import flush_folder, write_file

log = logging.getLogger(__name__)

_RECORD = "volume.json"
_DRAFT, _GONE = ".new-", ".gone-"


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """One volume of this node."""

    name: str
    driver: str
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    created_at: float = 0.0
    owner: str = ""
    """The task of an anonymous volume."""
    shared: bool = False
    """Its driver serves it to other nodes as well, so it is recorded only while it is used here."""
    filling: bool = False
    """It is being filled from an image, or that was interrupted: its content is invalid."""
    maps_ids: bool = True
    """Its file system supports idmapped mounts."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one container has mounted, or may have."""

    container_id: str
    volumes: dict[str, str] = field(default_factory=dict)
    """Volume → its driver."""
    leaving: bool = False
    """The container is gone; only plugins have not been called yet."""


class VolumeRecords:
    """The volumes' folder: `by-name/NAME/volume.json`, and `uses/CONTAINER.json`."""

    def __init__(self, folder: Path) -> None:
        self._volumes, self._uses = folder / "by-name", folder / "uses"
        for each in (self._volumes, self._uses):
            each.mkdir(parents=True, exist_ok=True, mode=0o711)

    def folder(self, name: str) -> Path:
        """The volume's own folder."""
        return self._volumes / name

    def volume(self, name: str) -> VolumeRecord | None:
        """The record of a volume; None if it does not exist or its record is unreadable."""
        return _read(VolumeRecord, self.folder(name) / _RECORD)

    def has_data(self, name: str) -> bool:
        """Whether the volume has a folder, with or without a readable record."""
        return self.folder(name).is_dir()

    def volumes(self) -> Iterator[VolumeRecord]:
        """All volumes, by name."""
        for name in sorted(os.listdir(self._volumes)):
            if not name.startswith(".") and (record := self.volume(name)) is not None:
                yield record

    def create(self, record: VolumeRecord) -> None:
        """Create a volume's folder, with its record and an empty `_data`. A folder that has lost
        its record gets this one and keeps its data."""
        if self.has_data(record.name):
            if self.volume(record.name) is None:
                log.warning("volume record restored", extra={"volume": record.name})
            self.update(record)
            return
        draft = self._volumes / f"{_DRAFT}{record.name}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o711)
        (draft / "_data").mkdir(mode=0o755)
        (draft / "_data").chmod(0o755)
        _write(draft / _RECORD, asdict(record))
        draft.rename(self.folder(record.name))
        flush_folder(self._volumes)

    def update(self, record: VolumeRecord) -> None:
        """Update the record of a volume."""
        _write(self.folder(record.name) / _RECORD, asdict(record))

    def retire(self, name: str) -> Path | None:
        """Remove a volume from the records atomically; return its folder to delete, if any."""
        gone = self._volumes / f"{_GONE}{name}"
        shutil.rmtree(gone, ignore_errors=True)
        try:
            self.folder(name).rename(gone)
        except FileNotFoundError:
            return None
        return gone

    def leftovers(self) -> list[Path]:
        """The remains of interrupted creations and removals."""
        return [p for p in self._volumes.iterdir() if p.name.startswith((_DRAFT, _GONE))]

    def uses(self) -> dict[str, Use]:
        """All uses, by container. An unreadable record counts as a use of no volume, so that other
        resources of the container are released when it is gone."""
        found: dict[str, Use] = {}
        for path in sorted(self._uses.glob("*.json")):
            use = _read(Use, path)
            found[path.stem] = Use(path.stem) if use is None else use
        return found

    def put_use(self, use: Use) -> None:
        """Record the use of a container."""
        _write(self._uses / f"{use.container_id}.json", asdict(use))

    def drop_use(self, container_id: str) -> None:
        """Remove the record of a container's use."""
        (self._uses / f"{container_id}.json").unlink(missing_ok=True)


_R = TypeVar("_R", VolumeRecord, Use)


def _read(kind: type[_R], path: Path) -> _R | None:
    """The record at `path`; None when there is none, or when it was unreadable and moved aside.
    Fields of later releases are ignored."""
    try:
        document = json.loads(path.read_bytes())
        known = {field.name for field in fields(kind)}
        return kind(**{name: value for name, value in document.items() if name in known})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        aside = path.with_name(f"{path.name}.corrupt")
        path.replace(aside)
        log.error(
            "unreadable record moved aside; data of volumes is kept",
            extra={"record": str(path), "moved_to": str(aside), "error": str(error)},
        )
        return None


def _write(path: Path, document: Mapping[str, Any]) -> None:
    write_file(path, json.dumps(document))
