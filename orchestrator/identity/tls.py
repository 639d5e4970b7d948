"""Mutual TLS for gRPC, and who is at the other end of a call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc

from orchestrator.identity.ca import MANAGER_NAME, NODE_NAME

__all__ = [
    "MANAGER_NAME",
    "NODE_NAME",
    "Identity",
    "channel_credentials",
    "channel_options",
    "join_credentials",
    "peer_identity",
    "server_credentials",
]


@dataclass(frozen=True, slots=True)
class Identity:
    """The holder of a certificate of this cluster."""

    id: str
    role: str
    cluster_id: str


def server_credentials(ca: Path, certificate: Path, key: Path) -> grpc.ServerCredentials:
    """For a port that only holders of a certificate signed by `ca` may use."""
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        root_certificates=ca.read_bytes(),
        require_client_auth=True,
    )


def join_credentials(certificate: Path, key: Path) -> grpc.ServerCredentials:
    """For the join port, whose callers have no certificate yet."""
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])


def channel_credentials(ca: Path, certificate: Path, key: Path) -> grpc.ChannelCredentials:
    """For a client with a certificate of the cluster."""
    return grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), certificate.read_bytes())


def channel_options(peer_name: str = MANAGER_NAME) -> list[tuple[str, Any]]:
    """Channel options: insist on the peer's name, notice a dead peer in seconds."""
    return [
        ("grpc.ssl_target_name_override", peer_name),
        ("grpc.keepalive_time_ms", 2000),
        ("grpc.keepalive_timeout_ms", 2000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.enable_http_proxy", 0),
    ]


@lru_cache(maxsize=4096)
def _identity(pem: bytes) -> Identity | None:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    subject = x509.load_pem_x509_certificate(pem).subject

    def part(oid: x509.ObjectIdentifier) -> str:
        found = subject.get_attributes_for_oid(oid)
        return str(found[0].value) if found else ""

    identity = Identity(
        part(NameOID.COMMON_NAME),
        part(NameOID.ORGANIZATION_NAME),
        part(NameOID.ORGANIZATIONAL_UNIT_NAME),
    )
    return identity if identity.id and identity.role else None


def peer_identity(context: grpc.aio.ServicerContext[Any, Any]) -> Identity | None:
    """Who calls, by the certificate that the handshake verified; None without one."""
    pems = list(context.auth_context().get("x509_pem_cert") or ())
    return _identity(bytes(pems[0])) if pems else None
