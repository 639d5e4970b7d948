# SPDX-License-Identifier: Apache-2.0
"""A cluster from its only surviving manager: `orc cluster recover --force-new-cluster`.

Without a quorum, etcd accepts no write, so also no removal of the lost members. Its member here is
started once as a cluster of its own, to read its data. These are written to a new etcd: a forced
member discards entries of its log that it may have applied already, so members that join it later
and replay the log would diverge from it. The former data stay beside it.

What the lost members had agreed on without it is gone, so the cluster gets a new incarnation, as
after a restore from a backup.
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
from orchestrator.manager.backup.restore import fill
from orchestrator.manager.backup.store_dump import lasts
from orchestrator.manager.cluster.peering import peering_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.certificates import new_revocation
from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.keys import EVERYTHING, object_key, object_type
from orchestrator.manager.store.kv import Entry, StoreError
from orchestrator.model.administration.managers import Manager
from orchestrator.model.convert import ConvertError, decode, encode
from orchestrator.model.objects import Cluster


def recover(data_dir: Path) -> tuple[ManagerIdentity, list[str]]:
    """Make the manager in `data_dir`, which is stopped, the only one of its cluster: its identity,
    and the ids of the managers that were removed. Can be repeated. Raises BackupError, NoIdentity.
    """
    identity = read_manager(data_dir)
    etcd, new = data_dir / "etcd", data_dir / "etcd.new"
    if new.exists() and not etcd.exists():
        new.rename(etcd)  # an earlier attempt ended between two renames
    if not (etcd / "data").exists():
        raise BackupError(
            f"{data_dir} has no etcd member: recover your external etcd with its own tools"
        )
    try:
        entries = asyncio.run(_read(etcd, identity))
        lost = [id for id in map(_manager, entries) if id and id != identity.manager_id]
        asyncio.run(fill(new.absolute(), _repaired(entries, lost, time.time())))
    except StoreError as error:
        raise BackupError(f"cannot recover the etcd member: {error}") from error
    etcd.rename(data_dir / f"etcd.{int(time.time())}")
    new.rename(etcd)
    own = f"{identity.address}:{identity.port}"
    return remember(data_dir, initial_cluster="", managers=(own,)), lost


async def _read(folder: Path, identity: ManagerIdentity) -> tuple[Entry, ...]:
    """All that the member in `folder` has."""
    peering = peering_of(folder.parent, identity) if identity.peer_port else None
    async with (
        EtcdMember(folder, peering=peering, force_new_cluster=True) as member,
        EtcdKv(member.endpoints, member.tls, max_txn_ops=member.max_txn_ops) as kv,
    ):
        return (await kv.list(EVERYTHING)).entries


def _manager(entry: Entry) -> str:
    found = object_type(entry.key)
    return found[1] if found is not None and found[0] is Manager else ""


def _repaired(
    entries: tuple[Entry, ...], lost: list[str], now: float
) -> Iterator[tuple[str, bytes]]:
    for entry in entries:
        found = object_type(entry.key)
        if not lasts(entry.key) or _manager(entry) in lost:
            continue
        if found is None or found[0] is not Cluster:
            yield entry.key, entry.value
            continue
        try:
            cluster: Cluster = decode(Cluster, entry.value)
        except ConvertError as error:
            raise BackupError(f"{entry.key} cannot be decoded: {error}") from error
        yield entry.key, encode(replace(cluster, incarnation=new_id()))
    for id in lost:
        revoked = new_revocation(
            ClusterView(),
            role="manager",
            name=id,
            now=now,
            reason="lost when the cluster was recovered",
            by="orc cluster recover",
        )
        yield object_key(revoked), encode(revoked)
