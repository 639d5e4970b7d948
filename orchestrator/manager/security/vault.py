# SPDX-License-Identifier: Apache-2.0
"""Encryption at rest, with a key that is in the manager's data folder and never in etcd."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orchestrator.linux.atomicfile import write_file

KEY_FILE = "cluster.key"
_NONCE = 12
_KEY_ID = b"orc cluster key id"


class VaultError(Exception):
    """Sealed data cannot be opened with this manager's key."""


class Vault:
    """Encrypts texts and data with AES-256-GCM (NIST SP 800-38D), with a random nonce each."""

    def __init__(self, key: bytes, unsaved: Path | None = None) -> None:
        """`unsaved`: where to write a new key, see `save`."""
        self._cipher = AESGCM(key)
        self._key = key
        self._unsaved = unsaved

    @classmethod
    def at(cls, folder: Path) -> Vault:
        """The vault of a manager's data folder, with a new key if there is none. A new key does not
        open a cluster's existing secrets, and is only written by `save`. Raises VaultError for a
        damaged file."""
        path = folder / KEY_FILE
        try:
            return cls(base64.b64decode(path.read_bytes(), validate=True))
        except FileNotFoundError:
            return cls(AESGCM.generate_key(256), path)
        except (binascii.Error, ValueError) as error:
            raise VaultError(
                f"{path} is damaged ({error}); restore it from a backup of that folder"
            ) from error

    @property
    def new(self) -> bool:
        """Whether the key was just generated."""
        return self._unsaved is not None

    @property
    def key_id(self) -> str:
        """An identifier of the key that does not reveal it."""
        return hmac.new(self._key, _KEY_ID, hashlib.sha256).hexdigest()[:16]

    def save(self) -> None:
        """Write a new key to its file; no-op for a key that was read from there."""
        if self._unsaved is not None:
            write_file(self._unsaved, base64.b64encode(self._key))
            self._unsaved = None

    def seal(self, text: str, purpose: str) -> str:
        """Encrypt `text` for `purpose`: it opens for no other. Base64."""
        return base64.b64encode(self.seal_data(text.encode(), purpose)).decode()

    def open(self, sealed: str, purpose: str) -> str:
        """Decrypt a text that was sealed for `purpose`. Raises VaultError."""
        return self.open_data(base64.b64decode(sealed), purpose).decode()

    def seal_data(self, data: bytes, purpose: str) -> bytes:
        """Encrypt `data` for `purpose`: it opens for no other."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, data, purpose.encode())

    def open_data(self, sealed: bytes, purpose: str) -> bytes:
        """Decrypt data that was sealed for `purpose`. Raises VaultError."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], purpose.encode())
        except (InvalidTag, ValueError) as error:
            raise VaultError(
                "it was encrypted with another key than this manager's cluster.key"
            ) from error
