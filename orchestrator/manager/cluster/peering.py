# SPDX-License-Identifier: Apache-2.0
"""How a manager's etcd member meets those of other managers."""

from __future__ import annotations

from pathlib import Path

from orchestrator.identity.certificates import MANAGER_NAME, TlsFiles
from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.manager.store.etcd_member import Peering
from orchestrator.manager.store.etcd_tls import EtcdTls


def peering_of(data_dir: Path, identity: ManagerIdentity) -> Peering:
    """With the manager's certificate in `data_dir`."""
    files = TlsFiles.of(data_dir, "manager")
    return Peering(
        name=identity.manager_id,
        address=identity.address,
        port=identity.peer_port,
        tls=EtcdTls(files.ca, files.pair.certificate, files.pair.key),
        allowed_name=MANAGER_NAME,
        initial_cluster=identity.initial_cluster,
    )
