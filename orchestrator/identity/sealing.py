# SPDX-License-Identifier: Apache-2.0
"""Encryption to the holder of a certificate: ECIES of P-256, HKDF-SHA256 and AES-256-GCM.

Each message has an ephemeral key, so it opens only with the certificate's private key
(SEC 1, section 5.1; RFC 5869; NIST SP 800-38D).
"""

from __future__ import annotations

import os

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_POINT = 65
"""Bytes of an uncompressed point on P-256."""
_NONCE = 12


class CannotOpen(Exception):
    """The message was sealed to another key or for another purpose, or is damaged."""


def seal(certificate: str, data: bytes, purpose: str) -> bytes:
    """Encrypt `data` to the holder of a PEM certificate with a P-256 key."""
    public = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    point = ephemeral.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    cipher = _cipher(ephemeral.exchange(ec.ECDH(), public), point, purpose)
    nonce = os.urandom(_NONCE)
    return point + nonce + cipher.encrypt(nonce, data, purpose.encode())


def unseal(key: str, sealed: bytes, purpose: str) -> bytes:
    """Decrypt what was sealed to the certificate of this PEM key. Raises CannotOpen."""
    private = serialization.load_pem_private_key(key.encode(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    point, nonce, text = (
        sealed[:_POINT],
        sealed[_POINT : _POINT + _NONCE],
        sealed[_POINT + _NONCE :],
    )
    try:
        sender = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        cipher = _cipher(private.exchange(ec.ECDH(), sender), point, purpose)
        return cipher.decrypt(nonce, text, purpose.encode())
    except (InvalidTag, ValueError) as error:
        raise CannotOpen(f"it was not sealed to this host's key for {purpose}") from error


def _cipher(shared: bytes, point: bytes, purpose: str) -> AESGCM:
    derived = HKDF(hashes.SHA256(), 32, salt=point, info=purpose.encode()).derive(shared)
    return AESGCM(derived)
