# SPDX-License-Identifier: Apache-2.0
"""Durable records of the attachments that plugins may hold on this node, and retries of releases.

There is one file per network and per attachment, written before a plugin is called, because a
plugin's own state, such as leased addresses, survives a power loss as well. A failed release is
retried with backoff, and abandoned when the container's namespace is gone, since some plugins never
succeed.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.linux.atomicfile import write_file

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AttachmentRecord:
    """A container in a network."""

    network: str
    """Id."""
    container: str
    ifname: str
    netns: str
    """Path of the container's namespace."""
    stamp: int = 0
    """The identity of the namespace; see `namespace_stamp`."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """State of the driver."""

    @property
    def key(self) -> tuple[str, str]:
        """Its key."""
        return self.network, self.container


def namespace_stamp(netns: str) -> int:
    """The namespace's inode number; 0: there is none. The kernel gives it again once the namespace
    has ended, so it identifies a namespace only with `namespace_created`."""
    try:
        return os.stat(netns).st_ino
    except OSError:
        return 0


def namespace_created(netns: str) -> int:
    """When the namespace's inode was made, in nanoseconds since the epoch; 0: there is none. Kept
    in a record's body as `created`."""
    try:
        return os.stat(netns).st_ctime_ns
    except OSError:
        return 0


def same_namespace(known: AttachmentRecord, wanted: AttachmentRecord) -> bool:
    """Whether two records are of one namespace. Those of former releases have no `created`."""
    created = wanted.body["created"]
    return known.stamp == wanted.stamp and known.body.get("created", created) == created


class AttachmentRecords:
    """The records of one kind of network, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._networks, self._attachments = folder / "networks", folder / "attachments"
        self._locks = folder / "locks"
        for each in (self._networks, self._attachments, self._locks):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.networks: dict[str, Mapping[str, Any]] = dict(_read_all(self._networks))
        """Network id → state of the driver."""
        self._known: dict[tuple[str, str], AttachmentRecord] = {}
        for _, raw in _read_all(self._attachments):
            with suppress(TypeError):
                record = AttachmentRecord(**raw)
                self._known[record.key] = record

    def get(self, network: str, container: str) -> AttachmentRecord | None:
        """The record of a container in a network."""
        return self._known.get((network, container))

    def of_container(self, container: str) -> list[AttachmentRecord]:
        """The records of a container, oldest first."""
        return [record for record in self._known.values() if record.container == container]

    def of_network(self, network: str) -> list[AttachmentRecord]:
        """The records of a network."""
        return [record for record in self._known.values() if record.network == network]

    def all(self) -> list[AttachmentRecord]:
        """All records."""
        return list(self._known.values())

    def put(self, record: AttachmentRecord) -> None:
        """Write a record, replacing that of the same key. Raises NetworkError."""
        _write(self._attachments / _file(*record.key), asdict(record))
        self._known[record.key] = record

    def drop(self, record: AttachmentRecord) -> None:
        """Delete a record. Raises NetworkError."""
        _unlink(self._attachments / _file(*record.key))
        self._known.pop(record.key, None)

    def checks(self, network: str) -> bool:
        """Whether source addresses are checked in a network."""
        return bool(self.networks.get(network, {}).get("source_check", True))

    def allowed(self, network: str) -> tuple[str, ...]:
        """Subnets of additional source addresses that containers may use."""
        return tuple(self.networks.get(network, {}).get("allowed_sources", ()))

    def put_network(self, network: str, body: Mapping[str, Any]) -> None:
        """Record the driver's state of a network. Raises NetworkError."""
        if self.networks.get(network) != body:
            _write(self._networks / f"{network}.json", body)
            self.networks[network] = body

    def drop_network(self, network: str) -> None:
        """Delete the record of a network. Raises NetworkError."""
        _unlink(self._networks / f"{network}.json")
        self.networks.pop(network, None)

    @contextmanager
    def lock(self, container: str) -> Iterator[int | None]:
        """The lock of a container, as a descriptor that programs inherit and so keep; None: a
        program of an earlier agent still holds it. Raises NetworkError."""
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
            log.error("unreadable record %s ignored: %s", path, error)
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


RETRY_FIRST, RETRY_MOST = 1.0, 300.0
"""Seconds between two attempts, doubled after each failure."""

AttachmentKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Retry:
    due: float = 0.0
    """Loop time of the next attempt."""
    pause: float = RETRY_FIRST


class ReleaseRetries:
    """Schedules the release of removed containers' attachments, with backoff."""

    def __init__(self, records: AttachmentRecords) -> None:
        self._records = records
        self._retries: dict[AttachmentKey, _Retry] = {}
        self.changed = asyncio.Event()
        """Set when `run` of the networks must check again."""

    def __contains__(self, key: AttachmentKey) -> bool:
        return key in self._retries

    def note(self, key: AttachmentKey) -> None:
        """Schedule an immediate release of the attachment of this record."""
        self._retries[key] = _Retry()
        self.changed.set()

    def forget(self, key: AttachmentKey) -> None:
        """Drop a record: it is released, or in use again."""
        self._retries.pop(key, None)

    def due(self) -> list[AttachmentKey]:
        """The records that are due."""
        now = asyncio.get_running_loop().time()
        return [key for key, retry in self._retries.items() if retry.due <= now]

    def failed(self, key: AttachmentKey, error: NetworkError) -> None:
        """Schedule another attempt after a failure, or give up."""
        record = self._records.get(*key)
        earlier = self._retries.get(key, _Retry())
        network, container = key
        if record is not None and self._hopeless(record, earlier):
            log.error(
                "release from network %s abandoned; its plugin may still hold resources: %s",
                network,
                error,
                extra={"task": container},
            )
            self._records.drop(record)
            self.forget(key)
            return
        if not earlier.due:
            log.error(
                "not released from network %s yet: %s",
                network,
                error,
                extra={"task": container},
            )
        due = asyncio.get_running_loop().time() + earlier.pause
        self._retries[key] = _Retry(due, min(2 * earlier.pause, RETRY_MOST))
        self.changed.set()

    async def wait(self, period: float) -> None:
        """Wait until a record is due or the set has changed, at most for that many seconds."""
        due = [retry.due for retry in self._retries.values()]
        try:
            async with asyncio.timeout_at(min((asyncio.get_running_loop().time() + period, *due))):
                await self.changed.wait()
        except TimeoutError:
            pass

    def _hopeless(self, record: AttachmentRecord, retry: _Retry) -> bool:
        return retry.pause >= RETRY_MOST and not namespace_stamp(record.netns)
