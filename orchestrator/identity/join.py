# SPDX-License-Identifier: Apache-2.0
"""Joining a cluster: a host verifies the manager by the token, and proves itself by its secret."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass

import grpc

from orchestrator import __version__
from orchestrator.identity import ca, join_tokens
from orchestrator.identity.tls import channel_options
from orchestrator.model.administration.managers import host_port
from orchestrator.pb import identity_pb2, identity_pb2_grpc

_TIMEOUT = 10.0
"""Seconds to connect."""
_SIGNING = 20.0
"""Seconds for a signed certificate: the manager waits for an etcd that restarts."""
_PRESENTING = 20.0
"""Seconds for the CA's certificate: during a rotation of the CA, the manager waits for its own
certificate to be of the new CA."""

_PRESENTATIONS = 6
"""Attempts to be answered by a manager whose certificate was seen: several managers behind a load
balancer have different ones."""


class JoinRefused(Exception):
    """The host could not join; the text is one line with cause and remedy."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The result of joining; keys and certificates are PEM."""

    node_id: str
    role: str
    cluster_id: str
    managers: tuple[str, ...]
    ca_certificate: str
    certificate: str
    key: str
    own_address: str
    """This host's address towards the manager."""


def _split(address: str, default_port: int) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host:
        return address, default_port
    if not port.isdigit():
        raise JoinRefused(f"'{address}' is not an address; write HOST:PORT, such as 10.0.0.1:7421")
    return host, int(port)


def _presented(host: str, port: int) -> tuple[str, str]:
    """The server's certificate, unverified, and our own address towards it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=_TIMEOUT) as raw,
            context.wrap_socket(raw) as tls,
        ):
            der = tls.getpeercert(binary_form=True)
            own = str(tls.getsockname()[0])
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise JoinRefused(
            f"cannot reach a manager at {host}:{port}: {reason}; "
            f"is 'orc manager' running there, and is port {port} open?"
        ) from error
    if der is None:
        raise JoinRefused(f"the server at {host}:{port} presents no certificate")
    return ssl.DER_cert_to_PEM_cert(der), own


def _authority(host: str, port: int, digest: str) -> tuple[str, str]:
    """The certificate of the manager's CA, unverified, and our own address towards the manager."""
    request = identity_pb2.GetCaRequest(digest=digest)
    shown: dict[str, None] = {}
    for attempt in range(_PRESENTATIONS):
        certificate, own_address = _presented(host, port)
        if certificate in shown:
            # Behind a load balancer that takes turns, every second connection may go to the same
            # manager.
            certificate, own_address = _presented(host, port)
        shown[certificate] = None
        # The call trusts just the certificates that were shown: all it asks for is the CA's
        # certificate, which the token's digest then proves right or wrong.
        with grpc.secure_channel(
            f"{host}:{port}",
            grpc.ssl_channel_credentials("".join(shown).encode()),
            options=channel_options(),
        ) as channel:
            try:
                reply = identity_pb2_grpc.JoinStub(channel).GetCa(request, timeout=_PRESENTING)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED):
                    raise JoinRefused(str(error.details())) from error
                # Another manager may have answered, or this one has renewed its certificate.
                if error.code() is grpc.StatusCode.UNAVAILABLE and attempt < _PRESENTATIONS - 1:
                    continue
                raise JoinRefused(
                    f"the server at {host}:{port} is not an Orc manager's join port "
                    f"({error.details()})"
                ) from error
        return str(reply.ca_certificate), own_address
    raise AssertionError


def join(
    address: str,
    token_text: str,
    hostname: str,
    *,
    roles: tuple[str, ...] = ("worker",),
    own: str = "",
) -> Joined:
    """Join the cluster whose manager's join port is at `address` (HOST[:PORT]).

    The token decides which of `roles` the host gets. `own` is the host's own address; empty: that
    on the way to the manager.

    Raises `JoinRefused` and `token.BadToken`.
    """
    wanted = join_tokens.parse(token_text)
    host, port = _split(address, 7421)
    target = f"{host}:{port}"
    authority, own_address = _authority(host, port, wanted.ca_digest)
    try:
        matches = ca.digest(authority) == wanted.ca_digest
    except ValueError:
        matches = False
    if not matches:
        raise JoinRefused(
            f"the manager at {target} is not of the cluster that this token is for (its CA "
            "differs); take a new token from 'orc cluster token' if the CA was rotated since, else "
            "check the address, and that nothing intercepts the connection"
        )
    key, request = ca.new_request()
    with grpc.secure_channel(
        target,
        grpc.ssl_channel_credentials(authority.encode()),
        options=channel_options(),
    ) as channel:
        try:
            signed = identity_pb2_grpc.JoinStub(channel).Sign(
                identity_pb2.SignRequest(
                    secret=wanted.secret,
                    csr=request,
                    hostname=hostname,
                    roles=roles,
                    address=own or own_address,
                    version=__version__,
                ),
                timeout=_SIGNING,
            )
        except grpc.RpcError as error:
            raise JoinRefused(str(error.details())) from error
    return Joined(
        node_id=signed.node_id,
        role=signed.role,
        cluster_id=signed.cluster_id,
        managers=_with_given(signed.managers, host, port),
        ca_certificate=authority,
        certificate=signed.certificate,
        key=key,
        own_address=own or own_address,
    )


def _with_given(managers: Iterable[str], host: str, port: int) -> tuple[str, ...]:
    """The managers' endpoints, and the one that the join went to: behind it may be a load balancer,
    or a name that means another address after the manager has moved."""
    return tuple(dict.fromkeys((*managers, host_port(host.strip("[]"), port - 1))))
