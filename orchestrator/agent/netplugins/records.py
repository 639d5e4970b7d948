"""What other people's plugins were asked to make on this node and were not yet asked to take back.

A file for each network and each attachment. It is on the disk before a plugin is called, since what
plugins keep themselves, such as addresses that they gave out, outlives a power loss, too.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.agent.network.helper import NetworkError
from orchestrator.linux.atomicfile import write_file

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """A container in a network."""

    network: str
    """Id."""
    container: str
    ifname: str
    netns: str
    """Path of the container's namespace."""
    stamp: int = 0
    """Which namespace that was; see `namespace_stamp`."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """What the driver keeps."""

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by."""
        return self.network, self.container


def namespace_stamp(netns: str) -> int:
    """A number that tells a namespace from one that was at the same path before; 0: there is
    none."""
    try:
        return os.stat(netns).st_ino
    except OSError:
        return 0


class Records:
    """The records of one kind of network, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._networks, self._attachments = folder / "networks", folder / "attachments"
        self._locks = folder / "locks"
        for each in (self._networks, self._attachments, self._locks):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.networks: dict[str, Mapping[str, Any]] = dict(_read_all(self._networks))
        """Network id → what the driver keeps of it."""
        self._known: dict[tuple[str, str], Record] = {}
        for _, raw in _read_all(self._attachments):
            with suppress(TypeError):
                record = Record(**raw)
                self._known[record.key] = record

    def get(self, network: str, container: str) -> Record | None:
        """The record of a container in a network."""
        return self._known.get((network, container))

    def of_container(self, container: str) -> list[Record]:
        """A container's, the one that was written first before the others."""
        return [record for record in self._known.values() if record.container == container]

    def of_network(self, network: str) -> list[Record]:
        """Those of a network."""
        return [record for record in self._known.values() if record.network == network]

    def all(self) -> list[Record]:
        """All of them."""
        return list(self._known.values())

    def put(self, record: Record) -> None:
        """Write one down, in place of what is known of the same. Raises NetworkError."""
        _write(self._attachments / _file(*record.key), asdict(record))
        self._known[record.key] = record

    def drop(self, record: Record) -> None:
        """Forget one. Raises NetworkError."""
        _unlink(self._attachments / _file(*record.key))
        self._known.pop(record.key, None)

    def checks(self, network: str) -> bool:
        """Whether source addresses are checked in a network."""
        return bool(self.networks.get(network, {}).get("source_check", True))

    def allowed(self, network: str) -> tuple[str, ...]:
        """The subnets of which containers may have source addresses besides their own."""
        return tuple(self.networks.get(network, {}).get("allowed_sources", ()))

    def put_network(self, network: str, body: Mapping[str, Any]) -> None:
        """Write down what the driver keeps of a network. Raises NetworkError."""
        if self.networks.get(network) != body:
            _write(self._networks / f"{network}.json", body)
            self.networks[network] = body

    def drop_network(self, network: str) -> None:
        """Forget a network. Raises NetworkError."""
        _unlink(self._networks / f"{network}.json")
        self.networks.pop(network, None)

    @contextmanager
    def lock(self, container: str) -> Iterator[int | None]:
        """The lock of a container, as a descriptor that programs inherit and so hold on to; None:
        one that an earlier agent started still has it. Raises NetworkError."""
        try:
            lock = os.open(self._locks / container, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(self._locks / container, error) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                try:
                    yield lock
                finally:
                    if not self.of_container(container):
                        _unlink(self._locks / container)
        finally:
            os.close(lock)


def _file(network: str, container: str) -> str:
    return f"{network}.{container}.json"


def _read_all(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name without suffix → document, the oldest file first."""
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            raw = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            log.error("%s cannot be read, and is passed over: %s", path, error)
            continue
        if isinstance(raw, dict):
            yield path.stem, raw


def _write(path: Path, document: Mapping[str, Any]) -> None:
    try:
        write_file(path, json.dumps(document))
    except OSError as error:
        raise _unwritable(path, error) from error


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> NetworkError:
    return NetworkError(f"{path} cannot be written: {error.strerror}")
