# SPDX-License-Identifier: Apache-2.0
"""Encryption at rest, with keys that are in the manager's data folder and never in etcd.

A cluster has one data key, and during a rotation a second one: everything opens with either, and
the cluster's object in the store says which one seals.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Collection
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orchestrator.identity.key_files import DATA_KEYS, KeyFiles

KEY_FILE = DATA_KEYS
UNLOCK_PURPOSE = "unlock key"
CA_PURPOSE = "ca key"
"""What the keys in the cluster's object are sealed for."""
_NONCE = 12
_KEY_ID = b"orc cluster key id"


class VaultError(Exception):
    """Sealed data cannot be opened with this manager's keys."""


def key_id(key: bytes) -> str:
    """An identifier of a data key that does not reveal it."""
    return hmac.new(key, _KEY_ID, hashlib.sha256).hexdigest()[:16]


class Vault:
    """Encrypts texts and data with AES-256-GCM (NIST SP 800-38D), with a random nonce each."""

    def __init__(self, *keys: bytes, files: KeyFiles | None = None, new: bool = False) -> None:
        """The first key seals. `files`: where `save` writes them; `new`: the key was just
        generated."""
        self._keys = {key_id(key): key for key in keys}
        self._ciphers = {id: AESGCM(key) for id, key in self._keys.items()}
        self._current = key_id(keys[0])
        self._files = files
        self._new = new
        self._held: set[str] = set()

    @classmethod
    def at(cls, folder: Path) -> Vault:
        """The vault of a manager's data folder; see `of`."""
        return cls.of(KeyFiles(folder))

    @classmethod
    def of(cls, files: KeyFiles) -> Vault:
        """The vault of a manager's key files, with a new key if there is none. A new key does not
        open a cluster's existing secrets, and is only written by `save`. Raises VaultError for a
        damaged file."""
        text = files.text(DATA_KEYS)
        if text is None:
            return cls(AESGCM.generate_key(256), files=files, new=True)
        try:
            # One key a line.
            keys = [base64.b64decode(line, validate=True) for line in text.split("\n")]
            return cls(*keys, files=files)
        except (binascii.Error, ValueError) as error:
            raise VaultError(
                f"{files.folder / DATA_KEYS} is damaged ({error}); restore it from a backup of "
                "that folder"
            ) from error

    @property
    def new(self) -> bool:
        """Whether the key was just generated, and is not saved yet."""
        return self._new

    @property
    def key_id(self) -> str:
        """Id of the key that seals."""
        return self._current

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of all keys; the one that seals is the first."""
        return (self._current, *(id for id in self._keys if id != self._current))

    def keys(self, ids: Collection[str]) -> list[bytes]:
        """Those of these keys that it has."""
        return [key for id, key in self._keys.items() if id in ids]

    def text(self) -> str:
        """All keys as `cluster.key` has them."""
        return "\n".join(base64.b64encode(self._keys[id]).decode() for id in self.key_ids)

    def save(self) -> None:
        """Write the keys to their file; no-op if it has them. Raises OSError."""
        if self._files is not None:
            self._files.write(DATA_KEYS, self.text())
        self._new = False

    def add(self, key: bytes) -> str:
        """Open with this key, too; its id."""
        id = key_id(key)
        self._ciphers[id] = AESGCM(key)
        self._keys[id] = key
        return id

    def generate(self) -> str:
        """Add a fresh key and hold it until `release`; its id."""
        id = self.add(AESGCM.generate_key(256))
        self._held.add(id)
        return id

    def release(self, id: str) -> None:
        """Let `keep` drop a generated key."""
        self._held.discard(id)

    def use(self, id: str) -> bool:
        """Seal with this key from now on; False if it is missing."""
        if id not in self._keys:
            return False
        self._current = id
        return True

    def keep(self, ids: Collection[str]) -> None:
        """Drop all other keys, except the one that seals and those that are held."""
        for id in self._keys.keys() - set(ids) - self._held - {self._current}:
            del self._keys[id], self._ciphers[id]

    def is_current(self, sealed: bytes, purpose: str) -> bool:
        """Whether data was sealed with the key that seals now."""
        return self._opened(self._ciphers[self._current], sealed, purpose) is not None

    def seal(self, text: str, purpose: str) -> str:
        """Encrypt `text` for `purpose`: it opens for no other. Base64."""
        return base64.b64encode(self.seal_data(text.encode(), purpose)).decode()

    def open(self, sealed: str, purpose: str) -> str:
        """Decrypt a text that was sealed for `purpose`. Raises VaultError."""
        return self.open_data(base64.b64decode(sealed), purpose).decode()

    def seal_data(self, data: bytes, purpose: str) -> bytes:
        """Encrypt `data` for `purpose`: it opens for no other."""
        nonce = os.urandom(_NONCE)
        return nonce + self._ciphers[self._current].encrypt(nonce, data, purpose.encode())

    def open_data(self, sealed: bytes, purpose: str) -> bytes:
        """Decrypt data that was sealed for `purpose`. Raises VaultError."""
        for id in self.key_ids:
            if (data := self._opened(self._ciphers[id], sealed, purpose)) is not None:
                return data
        raise VaultError("it was encrypted with another key than this manager's cluster.key")

    @staticmethod
    def _opened(cipher: AESGCM, sealed: bytes, purpose: str) -> bytes | None:
        try:
            return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], purpose.encode())
        except (InvalidTag, ValueError):
            return None
