# SPDX-License-Identifier: Apache-2.0
"""Encryption with a passphrase: scrypt (RFC 7914) and AES-256-GCM in chunks.

A file is a line of JSON with the parameters, then chunks. As in age's STREAM construction, a
chunk's nonce is its number and whether it is the last, so chunks can be neither reordered nor cut
off. The first line is authenticated with each chunk.
"""

from __future__ import annotations

import json
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from orchestrator.backups.archive import BackupError

MAGIC = "orc-backup"
SHORTEST = 8
"""Characters of a passphrase, at least."""
_COST = 2**17
"""Of scrypt, with r = 8: 128 MiB and about half a second."""
_MOST_COST = 2**20
_CHUNK = 64 << 10
_TAG = 16


def encrypt(data: bytes, passphrase: str) -> bytes:
    """Encrypt data with a passphrase. Raises BackupError for one that is too short."""
    if len(passphrase) < SHORTEST:
        raise BackupError(f"the passphrase is too short; use {SHORTEST} characters or more")
    salt = os.urandom(16)
    header = json.dumps(
        {"type": MAGIC, "kdf": "scrypt", "cost": _COST, "salt": salt.hex(), "cipher": "aes-256-gcm"}
    ).encode()
    cipher = _cipher(passphrase, salt, _COST)
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)] or [b""]
    last = len(chunks) - 1
    return b"".join(
        (
            header + b"\n",
            *(
                cipher.encrypt(_nonce(number, number == last), chunk, header)
                for number, chunk in enumerate(chunks)
            ),
        )
    )


def is_encrypted(data: bytes) -> bool:
    """Whether `encrypt` made these data."""
    return data.startswith(f'{{"type": "{MAGIC}"'.encode())


def decrypt(data: bytes, passphrase: str) -> bytes:
    """Decrypt what `encrypt` made. Raises BackupError."""
    header, _, body = data.partition(b"\n")
    try:
        parameters = json.loads(header)
        cost, salt = int(parameters["cost"]), bytes.fromhex(parameters["salt"])
        if cost > _MOST_COST or cost & (cost - 1) or cost < 2:
            raise ValueError(f"scrypt's cost {cost}")
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"the backup's first line is damaged: {error}") from error
    cipher = _cipher(passphrase, salt, cost)
    size = _CHUNK + _TAG
    starts = range(0, len(body), size)
    plain = []
    for number, start in enumerate(starts):
        final = number == len(starts) - 1
        try:
            chunk = cipher.decrypt(_nonce(number, final), body[start : start + size], header)
        except InvalidTag:
            if number == 0:
                raise BackupError("the passphrase is wrong, or the backup is damaged") from None
            raise BackupError(
                f"the backup is damaged or cut off at byte {len(header) + 1 + start}; use another"
            ) from None
        plain.append(chunk)
    if not plain:
        raise BackupError("the backup is cut off after its first line; use another one")
    return b"".join(plain)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _cipher(passphrase: str, salt: bytes, cost: int) -> AESGCM:
    return AESGCM(Scrypt(salt, length=32, n=cost, r=8, p=1).derive(passphrase.encode()))
