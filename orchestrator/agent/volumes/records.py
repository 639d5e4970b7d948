"""What is on disk of volumes and of their users. Nothing here is ever half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
    """The task that it belongs to, of one that no user has named."""
    shared: bool = False
    """Its driver serves it to other nodes too, so it is on record only while it is used here."""
    filling: bool = False
    """It is being filled from an image, or a kill ended that; what is in it is worth nothing."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one container has mounted, or may have."""

    container_id: str
    volumes: dict[str, str] = field(default_factory=dict)
    """Volume → its driver."""
    leaving: bool = False
    """The container is gone, and only plugins have not yet been told."""


class Records:
    """The volumes' folder: `by-name/NAME/volume.json`, and `uses/CONTAINER.json`."""

    def __init__(self, folder: Path) -> None:
        self._volumes, self._uses = folder / "by-name", folder / "uses"
        for each in (self._volumes, self._uses):
            each.mkdir(parents=True, exist_ok=True, mode=0o711)

    def folder(self, name: str) -> Path:
        """The volume's own folder."""
        return self._volumes / name

    def volume(self, name: str) -> VolumeRecord | None:
        """What is known of a volume; None when it is not here."""
        document = _read(self.folder(name) / _RECORD)
        return None if document is None else VolumeRecord(**document)

    def volumes(self) -> Iterator[VolumeRecord]:
        """All volumes, by name."""
        for name in sorted(os.listdir(self._volumes)):
            if not name.startswith(".") and (record := self.volume(name)) is not None:
                yield record

    def create(self, record: VolumeRecord) -> None:
        """Make a volume's folder, with its record and an empty `_data`."""
        draft = self._volumes / f"{_DRAFT}{record.name}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o711)
        (draft / "_data").mkdir(mode=0o755)
        (draft / "_data").chmod(0o755)
        _write(draft / _RECORD, asdict(record))
        draft.rename(self.folder(record.name))

    def update(self, record: VolumeRecord) -> None:
        """Write what has changed of a volume."""
        _write(self.folder(record.name) / _RECORD, asdict(record))

    def retire(self, name: str) -> Path | None:
        """Take a volume out of the list in one step; what is to be deleted of it, if anything."""
        gone = self._volumes / f"{_GONE}{name}"
        shutil.rmtree(gone, ignore_errors=True)
        try:
            self.folder(name).rename(gone)
        except FileNotFoundError:
            return None
        return gone

    def leftovers(self) -> list[Path]:
        """What creations and removals that were cut short have left."""
        return [p for p in self._volumes.iterdir() if p.name.startswith((_DRAFT, _GONE))]

    def uses(self) -> dict[str, Use]:
        """All uses, by container."""
        found: dict[str, Use] = {}
        for path in sorted(self._uses.glob("*.json")):
            document = _read(path)
            if document is not None:
                found[path.stem] = Use(**document)
        return found

    def put_use(self, use: Use) -> None:
        """Write down what a container uses."""
        _write(self._uses / f"{use.container_id}.json", asdict(use))

    def drop_use(self, container_id: str) -> None:
        """Forget what a container used."""
        (self._uses / f"{container_id}.json").unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return document


def _write(path: Path, document: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(document))
    draft.replace(path)
