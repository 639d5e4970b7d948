# SPDX-License-Identifier: Apache-2.0
"""A cluster from its only surviving manager: `orc cluster recover --force-new-cluster`.

Without a quorum, etcd accepts no write, so also no removal of the lost members. Its member here is
started once as a cluster of its own, with its data. What the lost members had agreed on without
it is gone, so the cluster gets a new incarnation, as after a restore from a backup.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator.backups.archive import BackupError
from orchestrator.identity.bootstrap import new_id
from orchestrator.identity.host_identity import ManagerIdentity, read_manager, remember
from orchestrator.manager.backup.store_dump import lasts
from orchestrator.manager.cluster.peering import peering_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.certificates import new_revocation
from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.keys import EVERYTHING, object_key, object_type
from orchestrator.manager.store.kv import Delete, Entry, Op, Put, StoreError
from orchestrator.model.convert import ConvertError, decode, encode
from orchestrator.model.managers import Manager
from orchestrator.model.objects import Cluster


def recover(data_dir: Path) -> tuple[ManagerIdentity, list[str]]:
    """Make the manager in `data_dir`, which is stopped, the only one of its cluster: its identity,
    and the ids of the managers that were removed. Can be repeated. Raises BackupError, NoIdentity.
    """
    identity = read_manager(data_dir)
    if not (data_dir / "etcd" / "data").exists():
        raise BackupError(
            f"{data_dir} has no etcd member: recover your external etcd with its own tools"
        )
    try:
        removed = asyncio.run(_recover(data_dir, identity))
    except StoreError as error:
        raise BackupError(f"cannot recover the etcd member: {error}") from error
    own = f"{identity.address}:{identity.port}"
    return remember(data_dir, initial_cluster="", managers=(own,)), removed


async def _recover(data_dir: Path, identity: ManagerIdentity) -> list[str]:
    peering = peering_of(data_dir, identity) if identity.peer_port else None
    async with (
        EtcdMember(data_dir / "etcd", peering=peering, force_new_cluster=True) as member,
        EtcdKv(member.endpoints, member.tls, max_txn_ops=member.max_txn_ops) as kv,
    ):
        entries = (await kv.list(EVERYTHING)).entries
        lost = [id for id in map(_manager, entries) if id and id != identity.manager_id]
        ops = list(_repairs(entries, lost, time.time()))
        for start in range(0, len(ops), kv.max_txn_ops):
            await kv.txn([], ops[start : start + kv.max_txn_ops])
    return lost


def _manager(entry: Entry) -> str:
    found = object_type(entry.key)
    return found[1] if found is not None and found[0] is Manager else ""


def _repairs(entries: tuple[Entry, ...], lost: list[str], now: float) -> Iterator[Op]:
    for entry in entries:
        found = object_type(entry.key)
        if not lasts(entry.key) or _manager(entry) in lost:
            yield Delete(entry.key)
        elif found is not None and found[0] is Cluster:
            try:
                cluster: Cluster = decode(Cluster, entry.value)
            except ConvertError as error:
                raise BackupError(f"{entry.key} cannot be decoded: {error}") from error
            yield Put(entry.key, encode(replace(cluster, incarnation=new_id())))
    for id in lost:
        revoked = new_revocation(
            ClusterView(),
            role="manager",
            name=id,
            now=now,
            reason="lost when the cluster was recovered",
            by="orc cluster recover",
        )
        yield Put(object_key(revoked), encode(revoked))
