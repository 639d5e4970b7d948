"""Secrets at rest: encrypted with a key that is in the manager's data folder and never in etcd."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_FILE = "cluster.key"
_NONCE = 12


class VaultError(Exception):
    """What was sealed cannot be opened with this manager's key."""


class Vault:
    """Seals and opens texts and data with AES-256-GCM (NIST SP 800-38D), a random nonce each."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def at(cls, folder: Path) -> Vault:
        """The vault of a manager's data folder; its key is made when there is none."""
        path = folder / KEY_FILE
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return cls(base64.b64decode(path.read_bytes()))
        key = AESGCM.generate_key(256)
        with os.fdopen(fd, "wb") as file:
            file.write(base64.b64encode(key))
            file.flush()
            os.fsync(file.fileno())
        return cls(key)

    def seal(self, text: str, purpose: str) -> str:
        """`text`, encrypted for `purpose`: it opens for no other. In base64."""
        return base64.b64encode(self.seal_data(text.encode(), purpose)).decode()

    def open(self, sealed: str, purpose: str) -> str:
        """The text that was sealed for `purpose`. Raises VaultError."""
        return self.open_data(base64.b64decode(sealed), purpose).decode()

    def seal_data(self, data: bytes, purpose: str) -> bytes:
        """`data`, encrypted for `purpose`: it opens for no other."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, data, purpose.encode())

    def open_data(self, sealed: bytes, purpose: str) -> bytes:
        """What was sealed for `purpose`. Raises VaultError."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], purpose.encode())
        except (InvalidTag, ValueError) as error:
            raise VaultError(
                "it was encrypted with another key than this manager's cluster.key"
            ) from error
