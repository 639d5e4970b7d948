"""Secrets at rest: encrypted with a key that is in the manager's data folder and never in etcd."""

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
    """What was sealed cannot be opened with this manager's key."""


class Vault:
    """Seals and opens texts and data with AES-256-GCM (NIST SP 800-38D), a random nonce each."""

    def __init__(self, key: bytes, unsaved: Path | None = None) -> None:
        """`unsaved`: where a new key is yet to be written, see `save`."""
        self._cipher = AESGCM(key)
        self._key = key
        self._unsaved = unsaved

    @classmethod
    def at(cls, folder: Path) -> Vault:
        """The vault of a manager's data folder, with a new key when there is none: that one is
        worth nothing to a cluster that has secrets already, and is only written by `save`.

        Raises VaultError when the file is damaged.
        """
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
        """Whether the key was made just now, since there was none."""
        return self._unsaved is not None

    @property
    def key_id(self) -> str:
        """Names the key, and says nothing about it."""
        return hmac.new(self._key, _KEY_ID, hashlib.sha256).hexdigest()[:16]

    def save(self) -> None:
        """Write a new key to its file; nothing for one that came from there."""
        if self._unsaved is not None:
            write_file(self._unsaved, base64.b64encode(self._key))
            self._unsaved = None

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
