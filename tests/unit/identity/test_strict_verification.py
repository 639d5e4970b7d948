# SPDX-License-Identifier: Apache-2.0
"""Certificates pass the strictest check of peers' TLS libraries (RFC 5280), in both directions."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from orchestrator.identity import ca
from orchestrator.identity.certificates import MANAGER_NAME, NODE_NAME, KeyPair

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> KeyPair:
    made = ca.new_ca("c1", NOW)
    (tmp_path / "ca.pem").write_text(made.certificate)
    return made


def _context(folder: Path, authority: KeyPair, role: str, purpose: ssl.Purpose) -> ssl.SSLContext:
    """A strict peer that shows a certificate with that role."""
    pair = ca.issue(authority, common_name="x1", role=role, cluster_id="c1", now=NOW)
    file = folder / f"{role}-{purpose.shortname}.pem"
    file.write_text(pair.certificate + pair.key)
    context = ssl.create_default_context(purpose, cafile=str(folder / "ca.pem"))
    context.load_cert_chain(file)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("caller", ["admin", "worker", "manager"])
@pytest.mark.parametrize(("role", "name"), [("manager", MANAGER_NAME), ("worker", NODE_NAME)])
def test_strict_peers_accept_each_other(
    authority: KeyPair, tmp_path: Path, caller: str, role: str, name: str
) -> None:
    server_in, server_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = _context(tmp_path, authority, caller, ssl.Purpose.SERVER_AUTH).wrap_bio(
        server_out, server_in, server_hostname=name
    )
    server = _context(tmp_path, authority, role, ssl.Purpose.CLIENT_AUTH).wrap_bio(
        server_in, server_out, server_side=True
    )
    waiting = [client, server]
    for _ in range(10):
        for peer in list(waiting):
            try:
                peer.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(peer)
    assert not waiting
    subject = dict(entry[0] for entry in server.getpeercert()["subject"])
    assert subject["organizationName"] == caller


def test_certificate_names_its_key_its_issuers_key_and_their_usage(
    authority: KeyPair,
) -> None:
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    issued = ca.issue(authority, common_name="x1", role="worker", cluster_id="c1", now=NOW)
    extensions = x509.load_pem_x509_certificate(issued.certificate.encode()).extensions
    keys = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert (
        extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        == keys.digest
    )
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
