# SPDX-License-Identifier: Apache-2.0
"""A manager on a new host, made from a backup: `orc cluster restore`.

The store is written by a temporary etcd, before `manager.json` marks the data folder as complete.
The cluster keeps its id, CA and keys, so the certificates of nodes and admins stay valid. It gets
a new incarnation, by which agents know that the store may have less than they run.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from orchestrator.backups.archive import Archive, BackupError
from orchestrator.identity import ca
from orchestrator.identity.authority import Authority, CannotSign
from orchestrator.identity.bootstrap import new_id, store_first_manager
from orchestrator.identity.certificates import KeyPair
from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.identity.key_files import EXTERNAL_KEY
from orchestrator.linux.atomicfile import write_file
from orchestrator.manager.backup.store_dump import cluster_of, restored
from orchestrator.manager.security.certificates import lifetime
from orchestrator.manager.security.vault import KEY_FILE
from orchestrator.manager.store.commit import MAX_BYTES
from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.etcd_process import find_orphan
from orchestrator.manager.store.kv import Kv, Op, Put, StoreError
from orchestrator.model.objects import Cluster

MARK = "restoring"
"""File in a data folder whose restore has begun and may be repeated."""

RESTORE_QUOTA = 64 << 30
"""Bytes. Data of any size are restored: the manager that starts has a quota of its own."""


def restore(
    archive: Archive, data_dir: Path, address: str, port: int
) -> tuple[ManagerIdentity, str, KeyPair]:
    """Make a manager's data folder from a backup: (manager, CA PEM, admin). An interrupted restore
    can be repeated. Raises BackupError."""
    if (data_dir / "manager.json").exists():
        raise BackupError(
            f"there is already a manager in {data_dir}; stop it and remove that folder, or give "
            "another --data-dir"
        )
    mark, etcd = data_dir / MARK, data_dir / "etcd"
    if etcd.exists() and not mark.exists():
        raise BackupError(
            f"{etcd} holds another cluster's data; remove it, or give another --data-dir"
        )
    cluster = cluster_of(archive)
    authority = _authority(archive, cluster)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file(mark, f"{archive.manifest.cluster_id} {time.time()}\n")
    try:
        asyncio.run(fill(etcd.absolute(), restored(archive, new_id())))
    except StoreError as error:
        raise BackupError(f"cannot write the store: {error}") from error
    if KEY_FILE in archive.files:
        write_file(data_dir / KEY_FILE, archive.files[KEY_FILE])
    identity = ManagerIdentity(
        manager_id=new_id(),
        cluster_id=cluster.id,
        address=address,
        port=port,
        network_cidr=cluster.network_cidr,
        worker_token=cluster.worker_token,
        manager_token=cluster.manager_token,
        certificate_lifetime=cluster.certificate_lifetime,
    )
    validity = lifetime(cluster.certificate_lifetime) or ca.LIFETIME
    try:
        now = dt.datetime.now(dt.UTC)
        admin = store_first_manager(data_dir, identity, authority, now, validity)
    except CannotSign as error:
        raise BackupError(f"{error}; then repeat this command") from error
    mark.unlink()  # without it, the folder cannot be overwritten
    return identity, authority.certificate, admin


def _authority(archive: Archive, cluster: Cluster) -> Authority:
    """The CA in a backup. Raises BackupError."""
    needed = ("ca.pem",) if cluster.external_ca.url else ("ca.pem", "ca.key")
    for name in needed:
        if name not in archive.files:
            raise BackupError(f"the backup has no {name}; use another one")
    certificate = archive.files["ca.pem"].decode()
    if cluster.external_ca.url:
        auth_key = archive.files.get(EXTERNAL_KEY, b"").decode()
        return Authority(certificate, external=cluster.external_ca, auth_key=auth_key)
    return Authority(certificate, archive.files["ca.key"].decode())


async def fill(folder: Path, keys: Iterable[tuple[str, bytes]]) -> None:
    """Write the keys to a new etcd in `folder`, in place of what an interrupted restore left."""
    if (orphan := find_orphan(folder)) is not None:
        await orphan.stop()
    shutil.rmtree(folder, ignore_errors=True)
    async with (
        EtcdMember(folder, quota=RESTORE_QUOTA) as member,
        EtcdKv(member.endpoints, member.tls, max_txn_ops=member.max_txn_ops) as kv,
    ):
        await put_all(kv, keys)


async def put_all(kv: Kv, keys: Iterable[tuple[str, bytes]]) -> None:
    """Write keys, in as few transactions as possible. Raises StoreError."""
    for batch in _batches(keys, kv.max_txn_ops):
        await kv.txn([], batch)


def _batches(keys: Iterable[tuple[str, bytes]], most: int) -> Iterator[Sequence[Op]]:
    batch: list[Op] = []
    size = 0
    for key, value in keys:
        if batch and (len(batch) == most or size + len(value) > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(Put(key, value))
        size += len(key) + len(value)
    if batch:
        yield batch
