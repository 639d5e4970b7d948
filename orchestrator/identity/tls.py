# SPDX-License-Identifier: Apache-2.0
"""Mutual TLS for gRPC, and the identity of a call's peer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import grpc

from orchestrator.identity.certificates import MANAGER_NAME, NODE_NAME, Issued, TlsFiles

__all__ = [
    "MANAGER_NAME",
    "NODE_NAME",
    "Identity",
    "channel_credentials",
    "channel_options",
    "host_of",
    "join_credentials",
    "peer_address",
    "peer_identity",
    "server_credentials",
]


@dataclass(frozen=True, slots=True)
class Identity:
    """The holder of a certificate of this cluster."""

    id: str
    role: str
    cluster_id: str
    certificate: Issued | None = None
    """The certificate itself; None where only its subject is known."""


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """For a port that requires a certificate of the cluster. A host presents its current
    certificate."""
    return _following(files, verify=True)


def join_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """For the join port, whose callers have no certificate yet."""
    return _following(files, verify=False)


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """For a client with a certificate of the cluster, as it is now."""
    pair = files.pair.read()
    return grpc.ssl_channel_credentials(
        files.ca.read_bytes(), pair.key.encode(), pair.certificate.encode()
    )


def _following(files: TlsFiles, *, verify: bool) -> grpc.ServerCredentials:
    """For callers whose certificates the CAs in the files signed, or for any. New connections get
    the files as they are then."""

    def stamped() -> tuple[object, ...]:
        return files.pair.stamp(), files.ca.stat().st_mtime_ns, files.ca.stat().st_ino

    stamp = stamped()

    def shown() -> grpc.ServerCertificateConfiguration:
        pair = files.pair.read()
        return grpc.ssl_server_certificate_configuration(
            [(pair.key.encode(), pair.certificate.encode())],
            root_certificates=files.ca.read_bytes() if verify else None,
        )

    def renewed() -> Any:  # the stubs do not know that None stands for no change
        nonlocal stamp
        try:
            found = stamped()
            if found == stamp:
                return None
            configuration = shown()
        except OSError:
            return None  # keep presenting the previous one
        stamp = found
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        shown(), renewed, require_client_authentication=verify
    )


def channel_options(peer_name: str = MANAGER_NAME) -> list[tuple[str, Any]]:
    """Channel options: insist on the peer's name, notice a dead peer in seconds."""
    return [
        ("grpc.ssl_target_name_override", peer_name),
        ("grpc.keepalive_time_ms", 2000),
        ("grpc.keepalive_timeout_ms", 2000),
        # Newer versions of gRPC have a timeout of pings beside it, of a minute.
        ("grpc.http2.ping_timeout_ms", 2000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.enable_http_proxy", 0),
    ]


_CLUSTER, _ROLE, _NAME = "OU=([a-z0-9]+)", "O=([a-z]+)", "CN=([a-z0-9]+(?:[._-][a-z0-9]+)*)"
_SUBJECT = re.compile(f"{_CLUSTER},{_ROLE},{_NAME}")
"""The subjects that our CA writes (`ca._subject`), as gRPC shows them (RFC 2253, last part first).
Read from that text, since loading a certificate library would cost every agent 12 MiB."""
_EXTERNAL_SUBJECT = re.compile(f"{_NAME},{_CLUSTER},{_ROLE}")
"""The same parts in the order of an external CA in Go, such as cfssl."""


def peer_identity(context: grpc.aio.ServicerContext[Any, Any]) -> Identity | None:
    """The caller, by the certificate that the handshake verified; None without one."""
    subjects = list(context.auth_context().get("x509_subject") or ())
    text = bytes(subjects[0]).decode() if subjects else ""
    if match := _SUBJECT.fullmatch(text):
        cluster, role, name = match.groups()
    elif match := _EXTERNAL_SUBJECT.fullmatch(text):
        name, cluster, role = match.groups()
    else:
        return None
    shown = list(context.auth_context().get("x509_pem_cert") or ())
    return Identity(name, role, cluster, _issued(bytes(shown[0])) if shown else None)


@lru_cache(maxsize=4096)
def _issued(certificate: bytes) -> Issued | None:
    return Issued.of(certificate.decode())


def peer_address(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The IP address that a call comes from, as the kernel has it; empty for other transports."""
    return host_of(context.peer())


def host_of(peer: str) -> str:
    """The IP address in gRPC's text of a peer, such as `ipv4:10.0.0.1:4321`; empty for none."""
    family, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    return host.removeprefix("::ffff:") if family in ("ipv4", "ipv6") else ""
