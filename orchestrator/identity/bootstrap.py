# SPDX-License-Identifier: Apache-2.0
"""Bootstrapping a cluster and a host: the first files in a data folder."""

from __future__ import annotations

import datetime as dt
import secrets
from pathlib import Path

from orchestrator.identity import ca, join_tokens
from orchestrator.identity.authority import Authority, write_external
from orchestrator.identity.certificates import KeyPair, TlsFiles
from orchestrator.identity.host_identity import (
    REMOVED,
    REMOVED_MANAGER,
    ManagerIdentity,
    NodeIdentity,
    NoIdentity,
    read_manager,
    write_identity,
)
from orchestrator.identity.join import Joined
from orchestrator.identity.key_files import CA_KEY, EXTERNAL_KEY
from orchestrator.linux.atomicfile import write_file


class AlreadyThere(Exception):
    """The folder already holds an identity; one line that says what to do."""


def new_id() -> str:
    """A fresh object id: 12 characters, lower case and digits, a letter first."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    return secrets.choice(alphabet[:26]) + "".join(secrets.choice(alphabet) for _ in range(11))


def init_cluster(
    data_dir: Path,
    address: str,
    port: int,
    network_cidr: str,
    lifetime: dt.timedelta = ca.LIFETIME,
    authority: Authority | None = None,
) -> tuple[ManagerIdentity, str, KeyPair]:
    """Make a CA, unless `authority` is given, this manager's certificate and an administrator's:
    (manager, CA PEM, admin). `lifetime` is that of all certificates but the CA's.

    Raises `AlreadyThere` rather than replace a cluster, and CannotSign.
    """
    if (data_dir / "manager.json").exists():
        raise AlreadyThere(
            f"there is already a cluster in {data_dir}; "
            "run 'orc manager', or choose another --data-dir"
        )
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = dt.datetime.now(dt.UTC)
    identity = ManagerIdentity(
        manager_id=new_id(),
        cluster_id=new_id(),
        address=address,
        port=port,
        network_cidr=network_cidr,
        worker_token=join_tokens.new_secret(),
        manager_token=join_tokens.new_secret(),
        certificate_lifetime=lifetime.total_seconds(),
    )
    authority = authority or Authority.local(ca.new_ca(identity.cluster_id, now))
    admin = store_first_manager(data_dir, identity, authority, now, lifetime)
    return identity, authority.certificate, admin


def store_first_manager(
    data_dir: Path,
    identity: ManagerIdentity,
    authority: Authority,
    now: dt.datetime,
    lifetime: dt.timedelta = ca.LIFETIME,
) -> KeyPair:
    """Write what the only manager of a new or restored cluster needs; an administrator's
    certificate. Raises CannotSign."""
    manager = authority.issue(
        common_name=identity.manager_id,
        role="manager",
        cluster_id=identity.cluster_id,
        now=now,
        addresses=[identity.address, "127.0.0.1"],
        lifetime=lifetime,
    )
    admin = new_admin(authority, identity.cluster_id, now, lifetime)
    write_file(data_dir / "ca.pem", authority.certificate, mode=0o644)
    write_external(data_dir, authority.external)
    for name, key in ((CA_KEY, authority.key), (EXTERNAL_KEY, authority.auth_key)):
        if key:
            write_file(data_dir / name, key)
    TlsFiles.of(data_dir, "manager").pair.replace(manager)
    # Last: its presence marks the folder as complete.
    write_identity(data_dir / "manager.json", identity)
    (data_dir / REMOVED_MANAGER).unlink(missing_ok=True)
    return admin


def new_admin(
    authority: Authority,
    cluster_id: str,
    now: dt.datetime,
    lifetime: dt.timedelta = ca.LIFETIME,
    name: str = "admin",
) -> KeyPair:
    """An administrator's certificate. Raises CannotSign."""
    return authority.issue(
        common_name=name,
        role="admin",
        cluster_id=cluster_id,
        now=now,
        lifetime=lifetime,
    )


def check_new_node(data_dir: Path) -> None:
    """Raise `AlreadyThere` if this host has joined a cluster before."""
    if (data_dir / "node.json").exists():
        raise AlreadyThere(
            f"this host has already joined a cluster ({data_dir}/node.json); "
            "run 'orc agent', or remove that folder to join anew"
        )


def resumable_manager(data_dir: Path) -> ManagerIdentity | None:
    """The manager whose join was cut off after it got its certificate; None if there is none."""
    try:
        identity = read_manager(data_dir)
    except NoIdentity:
        return None
    return identity if identity.joining else None


def store_manager(data_dir: Path, joined: Joined, address: str, port: int) -> ManagerIdentity:
    """Write what a joining manager got; it is to be enrolled next (`enrolment`)."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = ManagerIdentity(
        manager_id=joined.node_id,
        cluster_id=joined.cluster_id,
        address=address,
        port=port,
        network_cidr="",
        worker_token="",
        manager_token="",
        joining=True,
        managers=joined.managers,
    )
    write_file(data_dir / "ca.pem", joined.ca_certificate, mode=0o644)
    TlsFiles.of(data_dir, "manager").pair.replace(KeyPair(joined.certificate, joined.key))
    write_identity(data_dir / "manager.json", identity)
    (data_dir / REMOVED_MANAGER).unlink(missing_ok=True)
    return identity


def store_node(data_dir: Path, joined: Joined, address: str) -> NodeIdentity:
    """Write what a host got when it joined; `address` is its own on the underlay."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = NodeIdentity(
        node_id=joined.node_id,
        cluster_id=joined.cluster_id,
        role=joined.role,
        address=address or joined.own_address,
        managers=joined.managers,
    )
    write_file(data_dir / "ca.pem", joined.ca_certificate, mode=0o644)
    TlsFiles.of(data_dir, "node").pair.replace(KeyPair(joined.certificate, joined.key))
    write_identity(data_dir / "node.json", identity)
    (data_dir / REMOVED).unlink(missing_ok=True)
    return identity
