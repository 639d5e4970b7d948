# SPDX-License-Identifier: Apache-2.0
"""The identity folder of a host: its certificate, its key (0600), and what it belongs to."""

from __future__ import annotations

import dataclasses
import json
import shutil
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.identity.certificates import TlsFiles
from orchestrator.linux.atomicfile import write_file


class NoIdentity(Exception):
    """The folder has no identity; the text is one line with the remedy."""


REMOVED = "node.removed.json"
"""The `node.json` of a node that was removed from its cluster."""


MEMBERSHIP = "membership.json"
"""What a manager knows of the other managers and of its etcd member's peers."""

REMOVED_MANAGER = "manager.removed.json"
"""The `manager.json` of a manager that was removed from its cluster."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """The identity of a joined host (`node.json`)."""

    node_id: str
    cluster_id: str
    role: str
    address: str
    managers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ManagerIdentity:
    """The identity of a manager (`manager.json`)."""

    manager_id: str
    cluster_id: str
    address: str
    port: int
    """Of the control API; the join port is the next one."""
    network_cidr: str
    worker_token: str
    manager_token: str
    """Secrets of the initial tokens; the store has the current ones."""
    certificate_lifetime: float = 0.0
    """Initial certificate lifetime in seconds; the store has the current one. 0: the default."""
    peer_port: int = 0
    """Port of its etcd member for other managers' members; 0: it listens on loopback only."""
    initial_cluster: str = ""
    """etcd's `--initial-cluster` of a manager that joined; empty: its member began the cluster."""
    joining: bool = False
    """It has a certificate, but has not served yet: joining can be repeated or undone."""
    managers: tuple[str, ...] = ()
    """HOST:PORT of the managers that it last knew."""


_MEMBERSHIP = ("peer_port", "initial_cluster", "joining", "managers")
"""Fields of a manager's identity in a file of their own, since version 0.1 refuses others than its
own in `manager.json`, and must be able to start after a downgrade."""


def write_identity(path: Path, identity: NodeIdentity | ManagerIdentity) -> None:
    """Write `node.json`, or `manager.json` with `membership.json` beside it."""
    fields = asdict(identity)
    if isinstance(identity, ManagerIdentity):
        # First: a `manager.json` counts, and must not be without what belongs to it.
        membership = {name: fields.pop(name) for name in _MEMBERSHIP}
        _write(path.with_name(MEMBERSHIP), membership)
    _write(path, fields)


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    text = json.dumps(fields, indent=2) + "\n"
    if not path.exists() or path.read_text() != text:
        write_file(path, text)


def _read(path: Path, remedy: str) -> dict[str, Any]:
    """The fields in a file. Raises FileNotFoundError; NoIdentity if it is damaged."""
    try:
        fields = json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise ValueError("it holds no fields")
    except ValueError as error:
        raise NoIdentity(
            f"{path} is damaged ({error}): restore it from a copy, or {remedy}"
        ) from error
    return fields


_REJOIN_MANAGER = (
    "remove this manager at another one with 'orc manager rm', delete this folder, and join again"
)
_REJOIN_NODE = (
    "remove this node at a manager with 'orc node rm --force', delete that file, and join again"
)


def read_manager(data_dir: Path) -> ManagerIdentity:
    """The manager's identity in `data_dir`. Raises `NoIdentity`."""
    try:
        fields = _read(data_dir / "manager.json", _REJOIN_MANAGER)
    except FileNotFoundError:
        raise NoIdentity(
            "this host's manager was removed from its cluster; run 'orc cluster join --token TOKEN "
            "ADDRESS' to join again"
            if (data_dir / REMOVED_MANAGER).exists()
            else f"there is no cluster in {data_dir}; run 'orc cluster init' first"
        ) from None
    with suppress(FileNotFoundError):
        fields |= _read(data_dir / MEMBERSHIP, _REJOIN_MANAGER)
    known = {each.name for each in dataclasses.fields(ManagerIdentity)}
    # A newer version may have written more.
    own = {name: value for name, value in fields.items() if name in known}
    return ManagerIdentity(**{**own, "managers": tuple(own.get("managers", ()))})


def read_node(data_dir: Path) -> NodeIdentity:
    """The node's identity in `data_dir`. Raises `NoIdentity`."""
    try:
        fields = _read(data_dir / "node.json", _REJOIN_NODE)
    except FileNotFoundError:
        if (data_dir / REMOVED).exists():
            raise NoIdentity(
                "this host's node was removed from its cluster, or its certificate was revoked; "
                "run 'orc cluster join --token TOKEN ADDRESS' to join again"
            ) from None
        raise NoIdentity(
            f"this host has not joined a cluster (nothing in {data_dir}); "
            "run 'orc cluster join --token TOKEN ADDRESS' first"
        ) from None
    known = {each.name for each in dataclasses.fields(NodeIdentity)}
    own = {name: value for name, value in fields.items() if name in known}
    return NodeIdentity(**{**own, "managers": tuple(own["managers"])})


def check_certificates(data_dir: Path, name: str) -> None:
    """Raise NoIdentity if the certificate, key or CA of `name` (`node` or `manager`) is damaged."""
    files = TlsFiles.of(data_dir, name)
    remedy = _REJOIN_MANAGER if name == "manager" else _REJOIN_NODE
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(files.ca)
    except OSError as error:
        raise NoIdentity(
            f"{files.ca} cannot be used ({error}): copy it from another host of the cluster"
        ) from error
    if files.pair.is_being_replaced:
        return  # the pair that counts is in another file, which was written as a whole
    try:
        context.load_cert_chain(files.pair.certificate, files.pair.key)
    except OSError as error:
        raise NoIdentity(
            f"{files.pair.certificate} or {files.pair.key} cannot be used ({error}): restore both "
            f"from a copy, or {remedy}"
        ) from error


def retire_node(data_dir: Path) -> None:
    """Set the node's identity aside, so that the host may join again."""
    (data_dir / "node.json").replace(data_dir / REMOVED)


def remember(data_dir: Path, **changes: Any) -> ManagerIdentity:
    """Change fields of a manager's identity; the identity afterwards. Raises NoIdentity."""
    before = read_manager(data_dir)
    after = dataclasses.replace(before, **changes)
    if after != before:
        write_identity(data_dir / "manager.json", after)
    return after


_KEYS = ("ca.key", "cluster.key", "locked.keys", "external-ca.json", "external-ca.key")


def retire_manager(data_dir: Path) -> None:
    """Set aside what makes this host a manager, and delete the keys of the cluster, so that it may
    join again. Safe to repeat."""
    for name in (*_KEYS, "address.json"):
        (data_dir / name).unlink(missing_ok=True)
    shutil.rmtree(data_dir / "etcd", ignore_errors=True)
    with suppress(FileNotFoundError):
        (data_dir / "manager.json").replace(data_dir / REMOVED_MANAGER)
    (data_dir / MEMBERSHIP).unlink(missing_ok=True)
