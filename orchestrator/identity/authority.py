# SPDX-License-Identifier: Apache-2.0
"""The cluster's CA as managers use it: with its key, or behind an endpoint that signs requests.

An external CA is asked as cfssl is (`/api/v1/cfssl/sign` and `authsign`): the manager states the
subject and names, shows its own certificate, and authenticates the request if it has a key for
that. What comes back is checked, since roles are in the subject.
"""

from __future__ import annotations

import base64
import datetime as dt
import hmac
import http.client
import json
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.identity import ca
from orchestrator.identity.certificates import Issued, KeyPair, TlsFiles, own_key_id
from orchestrator.identity.key_files import CA_KEY, EXTERNAL_KEY, KeyFiles
from orchestrator.linux.atomicfile import write_file
from orchestrator.model.administration.access import ExternalCa

_TIMEOUT = 10.0
"""Seconds for a certificate from an external CA."""
_MOST_BYTES = 1 << 20
_SUBJECT = (
    NameOID.COMMON_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
)
_USAGES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


EXTERNAL_FILE = "external-ca.json"
"""In a manager's data folder: the endpoint of an external CA, as the store has it."""


class CannotSign(Exception):
    """The CA issued no certificate that can be used; one line with cause and remedy."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The cluster's CA. `sign` and `issue` block while an external one is asked."""

    certificate: str
    """PEM."""
    key: str = field(default="", repr=False)
    """PEM; empty for an external CA."""
    external: ExternalCa = field(default_factory=ExternalCa)
    client: KeyPair | None = field(default=None, repr=False)
    """What an external CA is shown; None: nothing."""
    auth_key: str = field(default="", repr=False)
    """Authenticates requests to an external CA, hexadecimal digits; empty: none does."""

    @classmethod
    def local(cls, pair: KeyPair) -> Authority:
        """A CA with its key."""
        return cls(pair.certificate, pair.key)

    @classmethod
    def of_host(cls, keys: KeyFiles) -> Authority:
        """That of the manager with these key files. Raises OSError, KeysLocked."""
        files = TlsFiles.of(keys.folder, "manager")
        return cls(
            files.ca.read_text(),
            keys.text(CA_KEY) or "",
            read_external(keys.folder),
            files.pair.read(),
            keys.text(EXTERNAL_KEY) or "",
        )

    def sign(
        self,
        request: str,
        *,
        common_name: str,
        role: str,
        cluster_id: str,
        now: dt.datetime,
        addresses: Sequence[str] = (),
        lifetime: dt.timedelta = ca.LIFETIME,
    ) -> str:
        """As `ca.sign`; an external CA decides on the lifetime. Raises BadRequest, CannotSign."""
        if self.external.url:
            names = ca.names_of(role, addresses)
            return _signed_by(self, request, common_name, role, cluster_id, names, now)
        if not self.key:
            raise CannotSign("this manager has no key of the cluster's CA")
        return ca.sign(
            KeyPair(self.certificate, self.key),
            request,
            common_name=common_name,
            role=role,
            cluster_id=cluster_id,
            now=now,
            addresses=addresses,
            lifetime=lifetime,
        )

    def issue(
        self,
        *,
        common_name: str,
        role: str,
        cluster_id: str,
        now: dt.datetime,
        addresses: Sequence[str] = (),
        lifetime: dt.timedelta = ca.LIFETIME,
    ) -> KeyPair:
        """A fresh key with a certificate for it. Raises CannotSign."""
        key, request = ca.new_request()
        certificate = self.sign(
            request,
            common_name=common_name,
            role=role,
            cluster_id=cluster_id,
            now=now,
            addresses=addresses,
            lifetime=lifetime,
        )
        return KeyPair(certificate, key)


def read_external(data_dir: Path) -> ExternalCa:
    """The endpoint in a manager's data folder, without its key. Raises OSError."""
    try:
        return ExternalCa(**json.loads((data_dir / EXTERNAL_FILE).read_text()))
    except FileNotFoundError:
        return ExternalCa()


def write_external(data_dir: Path, external: ExternalCa) -> None:
    """Keep the endpoint for commands that run without the store. Raises OSError."""
    path = data_dir / EXTERNAL_FILE
    kept = ExternalCa(url=external.url, profile=external.profile, root=external.root)
    if not kept.url:
        path.unlink(missing_ok=True)
    elif kept != read_external(data_dir):
        fields = {"url": kept.url, "profile": kept.profile, "root": kept.root}
        write_file(path, json.dumps(fields), mode=0o644)


def checked_ca(certificate_pem: str, now: dt.datetime) -> str:
    """The certificate of an external CA as Orc can use it. Raises CannotSign."""
    try:
        found = x509.load_pem_x509_certificates(certificate_pem.encode())
    except ValueError as error:
        raise CannotSign(f"the certificate of the external CA cannot be read: {error}") from error
    if len(found) != 1:
        raise CannotSign(f"give the certificate of the external CA alone, not {len(found)} of them")
    [certificate] = found
    try:
        certificate.verify_directly_issued_by(certificate)
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        is_ca = False
    if not is_ca:
        raise CannotSign("the external CA must be a root: a CA whose certificate it signed itself")
    text = certificate.public_bytes(serialization.Encoding.PEM).decode()
    if not own_key_id(text):
        raise CannotSign("the certificate of the external CA has no subject key id of 20 bytes")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise CannotSign(
            f"the certificate of the external CA is valid from {certificate.not_valid_before_utc} "
            f"to {certificate.not_valid_after_utc}"
        )
    return text


def _signed_by(
    authority: Authority,
    request: str,
    common_name: str,
    role: str,
    cluster_id: str,
    names: Sequence[str],
    now: dt.datetime,
) -> str:
    """A certificate of an external CA. Raises BadRequest, CannotSign."""
    key = ca.requested_key(request)
    url = authority.external.url
    answer = _ask(
        authority,
        {
            "certificate_request": request,
            "hosts": list(names),
            "subject": {"CN": common_name, "names": [{"O": role, "OU": cluster_id}]},
            "profile": authority.external.profile,
        },
    )
    try:
        made = x509.load_pem_x509_certificate(answer.encode())
        made.verify_directly_issued_by(
            x509.load_pem_x509_certificate(authority.certificate.encode())
        )
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CannotSign(
            f"what the external CA at {url} returned is not a certificate of the cluster's CA; "
            f"check that it signs with the key of {ca.digest(authority.certificate)}"
        ) from error
    text = made.public_bytes(serialization.Encoding.PEM).decode()
    if wrong := _unusable(made, text, key, (common_name, role, cluster_id), names, now):
        raise CannotSign(
            f"the external CA at {url} returned a certificate {wrong}; check its profile "
            f"'{authority.external.profile or 'default'}'"
        )
    return text


def _unusable(
    made: x509.Certificate,
    text: str,
    key: Any,
    subject: tuple[str, str, str],
    names: Sequence[str],
    now: dt.datetime,
) -> str:
    """What is wrong with a certificate; empty: nothing."""
    if made.public_key() != key:
        return "of another key than the requested one"
    parts = [(each.oid, each.value) for each in made.subject]
    if sorted(parts, key=str) != sorted(zip(_SUBJECT, subject, strict=True), key=str):
        return f"with the subject {made.subject.rfc4514_string()}"
    if _names(made) != set(names):
        return f"with the names {', '.join(sorted(_names(made))) or 'none'}"
    try:
        if made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "of a CA"
    except x509.ExtensionNotFound:
        pass
    try:
        usages = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
    if any(each not in usages for each in _USAGES):
        return "that is not for 'client auth' and 'server auth'"
    if not made.not_valid_before_utc <= now < made.not_valid_after_utc:
        return f"that is valid from {made.not_valid_before_utc} to {made.not_valid_after_utc}"
    if Issued.of(text) is None:
        return "in a form that Orc cannot read"
    return ""


def _names(made: x509.Certificate) -> set[str]:
    try:
        found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {
        str(each.value) if isinstance(each, x509.IPAddress | x509.DNSName) else "another kind"
        for each in found
    }


def checked_url(text: str) -> str:
    """The endpoint of an external CA. Raises CannotSign."""
    try:
        where = urlsplit(text)
        usable = where.scheme == "https" and where.hostname and where.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise CannotSign(
            f"'{text}' is not the address of an external CA; write "
            "https://HOST:PORT/api/v1/cfssl/sign"
        )
    return text


def checked_auth_key(text: str) -> str:
    """A key that authenticates requests, as cfssl has it. Raises CannotSign."""
    try:
        bytes.fromhex(text)
    except ValueError:
        raise CannotSign("the key for requests must consist of hexadecimal digits") from None
    return text


def _authenticated(request: bytes, auth_key: str) -> bytes:
    """A request with its HMAC, as cfssl's `authsign` takes it."""
    token = hmac.digest(bytes.fromhex(auth_key), request, "sha256")
    fields = {"token": base64.b64encode(token), "request": base64.b64encode(request)}
    return json.dumps({name: value.decode() for name, value in fields.items()}).encode()


def _ask(authority: Authority, body: dict[str, Any]) -> str:
    """The certificate (PEM) in the reply of an external CA. Raises CannotSign."""
    external = authority.external
    where = urlsplit(external.url)
    request = json.dumps(body).encode()
    if authority.auth_key:
        request = _authenticated(request, authority.auth_key)
    try:
        tls = ssl.create_default_context(cadata=external.root or None)
        if authority.client is not None:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as pair:
                pair.write(authority.client.certificate + authority.client.key)
                pair.flush()
                tls.load_cert_chain(pair.name)
        connection = http.client.HTTPSConnection(
            where.hostname or "", where.port, timeout=_TIMEOUT, context=tls
        )
        try:
            path = (where.path or "/") + (f"?{where.query}" if where.query else "")
            connection.request("POST", path, request, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read(_MOST_BYTES)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CannotSign(
            f"the external CA at {external.url} cannot be asked: {error}; is it running, and does "
            "it accept the certificates of managers?"
        ) from error
    try:
        answer = json.loads(text)
        if answer["success"]:
            return str(answer["result"]["certificate"])
        reason = "; ".join(str(each["message"]) for each in answer["errors"])
    except (ValueError, KeyError, TypeError):
        reason = f"status {reply.status}, which is not an answer of cfssl"
    raise CannotSign(f"the external CA at {external.url} refused to sign: {reason}")
