# SPDX-License-Identifier: Apache-2.0
"""The managers of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.model.administration.backups import BackupStatus
from orchestrator.model.extensible import Extensible


@dataclass(frozen=True, slots=True)
class Manager(Extensible):
    """A manager of the cluster."""

    id: str = ""
    hostname: str = ""
    address: str = ""
    """Which other hosts reach."""
    port: int = 0
    """Of the API; joins: the next one, metrics and web page: the one after that."""
    peer_port: int = 0
    """Port of its etcd member for other members; 0: it has none."""
    member_id: str = ""
    """Id of its etcd member as etcdctl writes it, in hexadecimal digits; empty: it has none."""
    version: str = ""
    created_at: float = 0.0
    features: tuple[str, ...] = ()
    """What its version knows beyond the first one."""
    joining: bool = False
    """Its etcd member is a learner until it has caught up; it does not serve yet."""
    revision: int = 0
    data_keys: tuple[str, ...] = ()
    """Ids of the data keys that it has; it seals with the first."""
    unlock_key_id: str = ""
    """Of the unlock key that its key files are locked with; empty: they are not locked."""
    trusted_cas: tuple[str, ...] = ()
    """Key ids of the CAs that it and its etcd member trust."""
    certificate_ca: str = ""
    """Key id of the CA that issued its certificate."""
    backups: BackupStatus = field(default_factory=BackupStatus)

    @property
    def endpoint(self) -> str:
        """HOST:PORT of its API."""
        return host_port(self.address, self.port)


@dataclass(frozen=True, slots=True)
class ManagerPresence(Extensible):
    """Exists while a manager runs: its key is bound to a lease of that manager."""

    id: str = ""
    """Of the manager."""
    since: float = 0.0
    """When it started to serve, in seconds since 1970."""
    revision: int = 0


def host_port(host: str, port: int) -> str:
    """HOST:PORT, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
