# SPDX-License-Identifier: Apache-2.0
"""The cluster's certificate authority: ECDSA P-256, X.509 (RFC 5280)."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.identity.certificates import MANAGER_NAME, NODE_NAME, SKEW, KeyPair

CA_LIFETIME = dt.timedelta(days=3650)
LIFETIME = dt.timedelta(days=90)
"""Of a certificate that the CA signs, unless the cluster says otherwise."""

_DNS_NAMES = {"manager": MANAGER_NAME, "worker": NODE_NAME}


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


_CA_USAGE, _USAGE = _usage(signs_certificates=True), _usage(signs_certificates=False)


class BadRequest(Exception):
    """A certificate signing request that cannot be honoured; one line for the user."""


def digest(certificate_pem: str) -> str:
    """SHA-256 of the certificate's DER form, as hex."""
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _subject(common_name: str, role: str, cluster_id: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, role),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, cluster_id),
        ]
    )


def new_ca(cluster_id: str, now: dt.datetime) -> KeyPair:
    """A fresh self-signed CA for one cluster."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("orc-ca", "ca", cluster_id)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM).decode(), _pem(key))


def link(former: KeyPair, certificate_pem: str) -> str:
    """The certificate of another CA, signed by the former one: those who trust the former alone
    accept, with that certificate, what the other one signs (RFC 4210, 4.4)."""
    own = x509.load_pem_x509_certificate(certificate_pem.encode())
    issuer, key, authority = _issuer(former)
    made = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(issuer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(min(own.not_valid_after_utc, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(
            own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value, critical=False
        )
        .add_extension(authority, critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _issuer(
    ca: KeyPair,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, x509.AuthorityKeyIdentifier]:
    """What signing with a CA takes: its certificate, its key, and the extension that names it."""
    certificate = x509.load_pem_x509_certificate(ca.certificate.encode())
    subject_key = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    key = serialization.load_pem_private_key(ca.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key)
    return certificate, key, authority


def is_pair(pair: KeyPair) -> bool:
    """Whether the key is that of the certificate."""
    certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
    key = serialization.load_pem_private_key(pair.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key() == certificate.public_key()


def certificates_in(text: str) -> list[str]:
    """The PEM certificates of a text, each as `new_ca` writes it."""
    return [
        each.public_bytes(serialization.Encoding.PEM).decode()
        for each in x509.load_pem_x509_certificates(text.encode())
    ]


def new_request() -> tuple[str, str]:
    """A fresh key and a signing request for it, both PEM: (key, request). The subject is the
    CA's to choose, so the request carries none."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
    )
    return _pem(key), request.public_bytes(serialization.Encoding.PEM).decode()


def requested_key(request_pem: str) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request, which its holder has signed. Raises `BadRequest`."""
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        signed = request.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise BadRequest(f"the certificate request cannot be read: {error}") from error
    public_key = request.public_key()
    if not signed or not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise BadRequest("the certificate request must be signed with an ECDSA key")
    return public_key


def names_of(role: str, addresses: Sequence[str]) -> list[str]:
    """The addresses and DNS names in a certificate of this role."""
    dns = _DNS_NAMES.get(role)
    return [*(str(ipaddress.ip_address(each)) for each in addresses), *([dns] if dns else [])]


def addresses_of(certificate: str) -> list[str]:
    """The IP addresses in a PEM certificate. Raises ValueError."""
    try:
        names = (
            x509.load_pem_x509_certificate(certificate.encode())
            .extensions.get_extension_for_class(x509.SubjectAlternativeName)
            .value
        )
    except x509.ExtensionNotFound:
        return []
    return [str(address) for address in names.get_values_for_type(x509.IPAddress)]


def sign(
    ca: KeyPair,
    request_pem: str,
    *,
    common_name: str,
    role: str,
    cluster_id: str,
    now: dt.datetime,
    addresses: Sequence[str] = (),
    lifetime: dt.timedelta = LIFETIME,
) -> str:
    """The PEM certificate for a signing request. Only the public key is taken from the request;
    who its holder is, the caller decides. Raises `BadRequest`."""
    public_key = requested_key(request_pem)
    names: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(address)) for address in addresses
    ]
    if dns := _DNS_NAMES.get(role):
        names.append(x509.DNSName(dns))
    issuer, key, authority = _issuer(ca)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(common_name, role, cluster_id))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        # Strict verifiers require it (RFC 5280, 4.2.1.1), Python's since 3.13.
        .add_extension(authority, critical=False)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            ),
            critical=False,
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def issue(
    ca: KeyPair,
    *,
    common_name: str,
    role: str,
    cluster_id: str,
    now: dt.datetime,
    addresses: Sequence[str] = (),
    lifetime: dt.timedelta = LIFETIME,
) -> KeyPair:
    """A fresh key with a certificate for it."""
    key, request = new_request()
    certificate = sign(
        ca,
        request,
        common_name=common_name,
        role=role,
        cluster_id=cluster_id,
        now=now,
        addresses=addresses,
        lifetime=lifetime,
    )
    return KeyPair(certificate, key)
