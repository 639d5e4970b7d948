# SPDX-License-Identifier: Apache-2.0
"""TLS between Orc and the etcd member that it runs.

That member has a private CA, in its data folder, that signs nothing else. So no certificate of the
cluster's own CA (a node's, a user's) is accepted by etcd, whatever its role: etcd's
`--client-cert-auth` checks only whether the CA signed it.

One certificate serves etcd on both of its ports, one is the client's. All keys are ECDSA P-256 in
files of mode 0600.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.linux.atomicfile import write_file

CA_LIFETIME = dt.timedelta(days=20 * 365)
# Long, because only a restart of the manager renews it, and it never leaves loopback.
LEAF_LIFETIME = dt.timedelta(days=5 * 365)
RENEW_BEFORE = dt.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """PEM files for mutual TLS with etcd."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class MemberTls:
    """What a member and its client need. `renewed_ca`: the CA was replaced, so a running etcd is
    stale."""

    server: EtcdTls
    client: EtcdTls
    renewed_ca: bool


def ensure_member_tls(folder: Path, now: dt.datetime) -> MemberTls:
    """Ensure the CA and certificates in `folder`, renewed within 30 days of their expiry.

    `now` is timezone-aware. Idempotent, and safe to interrupt: an incomplete pair, or one whose
    certificate the CA did not sign, is replaced. Raises OSError when the folder is not writable.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca = EtcdTls(folder / "ca.pem", folder / "ca.pem", folder / "ca-key.pem")
    server = EtcdTls(ca.ca, folder / "server.pem", folder / "server-key.pem")
    client = EtcdTls(ca.ca, folder / "client.pem", folder / "client-key.pem")
    authority = _load(ca, now)
    renewed = authority is None
    if authority is None:
        authority = _make_ca(ca, now)
    for files, name in ((server, "etcd"), (client, "orc-manager")):
        pair = _load(files, now)
        if pair is None or not _signed_by(pair[0], authority[0]):
            _make_leaf(files, name, authority, now)
    return MemberTls(server, client, renewed)


Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _load(files: EtcdTls, now: dt.datetime) -> Pair | None:
    """The pair in `files`, or None if it is missing, torn, mismatched or about to expire."""
    try:
        certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
        key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    if certificate.public_key() != key.public_key():
        return None
    if certificate.not_valid_after_utc - now < RENEW_BEFORE:
        return None
    return certificate, key


def _signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except Exception:  # the library raises ValueError, TypeError or its own InvalidSignature
        return False
    return True


def _make_ca(files: EtcdTls, now: dt.datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    # The serial number in the name distinguishes a CA from the one that it replaces.
    serial = x509.random_serial_number()
    name = _name(f"orc etcd CA {serial:x}"[:64])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(files, certificate, key)
    return certificate, key


def _make_leaf(files: EtcdTls, name: str, authority: Pair, now: dt.datetime) -> None:
    ca, ca_key = authority
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(min(now + LEAF_LIFETIME, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            # etcd uses its server certificate also as a client, towards peers.
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                if name == "etcd"
                else [ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("localhost"),
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                ]
                if name == "etcd"
                else [x509.DNSName(name)]
            ),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write(files, certificate, key)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(files: EtcdTls, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """Key first: a crash in between leaves a mismatch, which `_load` rejects."""
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_file(files.key, private)
    write_file(files.cert, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
