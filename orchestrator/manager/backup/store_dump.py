# SPDX-License-Identifier: Apache-2.0
"""The store as the content of a backup, and its content after a restore."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator import __version__
from orchestrator.backups.archive import Archive, BackupError, Manifest
from orchestrator.manager.security.vault import KEY_FILE
from orchestrator.manager.store.keys import (
    EVERYTHING,
    LEADER,
    SEQUENCE,
    object_key,
    object_type,
)
from orchestrator.manager.store.kv import Kv
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.convert import ConvertError, decode, encode
from orchestrator.model.nodes import EndpointProgress, Node, NodeState, SessionRecord
from orchestrator.model.objects import Cluster

FILES = ("ca.pem", "ca.key", KEY_FILE)
"""Files of a manager's data folder that a backup has."""

_OF_MANAGERS = (ManagerPresence, SessionRecord, EndpointProgress)
"""Objects under the lease of a manager."""

NOT_RECONNECTED = "not reconnected since the cluster was restored"


async def dump(
    kv: Kv, data_dir: Path, cluster_id: str, now: float, keys: Callable[[], Mapping[str, str]]
) -> Archive:
    """The store at one revision, and the keys of a manager. `keys` has those of its key files by
    name, which may be locked in its data folder. Raises StoreError, BackupError."""
    while True:
        having = keys()
        snapshot = await kv.list(EVERYTHING)
        if keys() == having:
            break  # otherwise a rotation may have replaced what the store is sealed with
    store = tuple((entry.key, entry.value) for entry in snapshot.entries if lasts(entry.key))
    manifest = Manifest(cluster_id, now, snapshot.revision, __version__, len(store))
    files = {name: (data_dir / name).read_bytes() for name in FILES if (data_dir / name).exists()}
    files |= {name: text.encode() for name, text in having.items()}
    return Archive(manifest, store, files)


def lasts(key: str) -> bool:
    """Whether a key outlives the managers that run now."""
    if key in (LEADER, SEQUENCE):
        return False
    found = object_type(key)
    return found is None or found[0] not in _OF_MANAGERS


def cluster_of(archive: Archive) -> Cluster:
    """The cluster's object in a backup. Raises BackupError."""
    key = object_key(Cluster(id=archive.manifest.cluster_id))
    try:
        cluster: Cluster = decode(Cluster, dict(archive.store)[key])
    except (KeyError, ConvertError) as error:
        raise BackupError(f"the backup has no readable cluster: {error}") from error
    return cluster


def restored(archive: Archive, incarnation: str) -> Iterator[tuple[str, bytes]]:
    """The keys of a restored cluster: a new incarnation without managers, whose nodes are awaited.
    What this version cannot decode stays as it is. Raises BackupError."""
    cluster = cluster_of(archive)
    yield object_key(cluster), encode(replace(cluster, incarnation=incarnation))
    for key, value in archive.store:
        found = object_type(key)
        kind = found[0] if found else None
        if kind is Manager or key == object_key(cluster):
            continue
        if kind is Node:
            value = _awaited(value)
        yield key, value


def _awaited(value: bytes) -> bytes:
    try:
        node: Node = decode(Node, value)
    except ConvertError:
        return value
    return encode(awaited(node))


def awaited(node: Node) -> Node:
    """A node that has not reconnected since the cluster was restored: whatever its agent runs, it
    is not down until it was heard."""
    return replace(node, state=NodeState.UNKNOWN, message=NOT_RECONNECTED, awaited=True)
