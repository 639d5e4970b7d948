# SPDX-License-Identifier: Apache-2.0
"""Enrolment: the joining manager's side, once it has a certificate.

The manager calls another one by mutual TLS, and gets the cluster's keys, sealed to the key of its
own certificate, and the members that its etcd member is to join. All of it can be repeated: the
other side knows the joiner by its id, and files are written before `manager.json` refers to them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from orchestrator import __version__
from orchestrator.identity.certificates import TlsFiles
from orchestrator.identity.host_identity import ManagerIdentity, write_identity
from orchestrator.identity.join import JoinRefused
from orchestrator.identity.sealing import CannotOpen, unseal
from orchestrator.identity.tls import channel_credentials, channel_options
from orchestrator.linux.atomicfile import write_file
from orchestrator.linux.ports import choose_port, is_free
from orchestrator.model.compatibility.manager_features import SCHEMA_VERSION
from orchestrator.model.validation.host_access import PEER_OFFSET
from orchestrator.pb import managers_pb2, managers_pb2_grpc

PURPOSE = "orc enrolment of manager "
"""Followed by its id: what the keys are sealed for."""
ATTEMPTS_FOR = 60.0
"""Seconds during which unavailable managers, and those that enrol another one, are retried."""
_TIMEOUT = 20.0
_PAUSE = 0.5


class EnrolmentUndone(JoinRefused):
    """The joiner was removed in the meantime: it needs another certificate."""


def choose_peer_port(address: str, port: int) -> int:
    """A free port at `address` for the etcd member of a manager with this control port: five above
    it, unless that is taken."""
    if is_free(address, port + PEER_OFFSET):
        return port + PEER_OFFSET
    try:
        return choose_port(address)
    except OSError as error:
        raise JoinRefused(
            f"{address} is not an address of this host; name its own with --advertise"
        ) from error


def enroll(
    data_dir: Path, identity: ManagerIdentity, hostname: str, within: float = ATTEMPTS_FOR
) -> ManagerIdentity:
    """Enroll a manager that has a certificate; its identity with all that it needs to start.

    Raises JoinRefused with the reason of the last manager that was asked.
    """
    peer_port = identity.peer_port or choose_peer_port(identity.address, identity.port)
    if peer_port != identity.peer_port:
        identity = replace(identity, peer_port=peer_port)
        write_identity(data_dir / "manager.json", identity)
    reply = call_managers(
        data_dir,
        identity.managers,
        "Enroll",
        managers_pb2.EnrollRequest(
            hostname=hostname,
            address=identity.address,
            port=identity.port,
            peer_port=peer_port,
            version=__version__,
            schema=SCHEMA_VERSION,
        ),
        within,
    )
    key = TlsFiles.of(data_dir, "manager").pair.read().key
    try:
        keys = json.loads(unseal(key, reply.sealed_keys, PURPOSE + identity.manager_id))
    except CannotOpen as error:
        raise JoinRefused(f"the cluster's keys cannot be opened: {error}") from error
    if keys["ca_key"]:  # a cluster with an external CA has none
        write_file(data_dir / "ca.key", keys["ca_key"])
    write_file(data_dir / "cluster.key", keys["cluster_key"])
    identity = replace(
        identity,
        network_cidr=reply.network_cidr,
        peer_port=peer_port if reply.initial_cluster else 0,
        initial_cluster=reply.initial_cluster,
        managers=tuple(reply.managers),
    )
    write_identity(data_dir / "manager.json", identity)
    return identity


def call_managers(
    data_dir: Path, managers: Sequence[str], method: str, request: object, within: float
) -> Any:
    """Call `Membership` at the first of `managers` that answers, with the manager's certificate in
    `data_dir`. Retried for `within` seconds while none can be reached or a conflict passes. Raises
    JoinRefused."""
    files = TlsFiles.of(data_dir, "manager")
    end = time.monotonic() + within
    while True:
        reason = "no manager is known"
        for address in managers:
            with grpc.secure_channel(
                address, channel_credentials(files), options=channel_options()
            ) as channel:
                stub = managers_pb2_grpc.MembershipStub(channel)
                try:
                    return getattr(stub, method)(request, timeout=_TIMEOUT)
                except grpc.RpcError as error:
                    reason = str(error.details())
                    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                        raise EnrolmentUndone(reason) from error
                    if error.code() not in (
                        grpc.StatusCode.UNAVAILABLE,
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                        grpc.StatusCode.ABORTED,
                    ):
                        raise JoinRefused(reason) from error
                    reason = f"{address}: {reason}"
        if time.monotonic() + _PAUSE > end:
            raise JoinRefused(reason)
        time.sleep(_PAUSE)
