# SPDX-License-Identifier: Apache-2.0
"""A manager's secret keys on disk: that of the CA, or that for requests to an external one, and the
data keys; locked or not.

Unlocked, they are `ca.key`, `external-ca.key` and `cluster.key`, mode 0600. Locked, all are in
`locked.keys`, encrypted with AES-256-GCM under the unlock key, which no manager's disk has. One
file, so that it changes with one rename: a crash leaves the former lock or the new one. The key of
the manager's own certificate stays readable, since a locked manager needs it to be unlocked over
TLS.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import threading
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orchestrator.linux.atomicfile import write_file

CA_KEY = "ca.key"
DATA_KEYS = "cluster.key"
EXTERNAL_KEY = "external-ca.key"
KEY_FILES = (CA_KEY, DATA_KEYS, EXTERNAL_KEY)
LOCKED_FILE = "locked.keys"
_NONCE = 12
_BYTES = 32
_FORM = re.compile(r"ORC-UNLOCK-1-([A-Z2-7]{52})")
_PURPOSE = b"orc locked key files"


class KeysLocked(Exception):
    """The keys are locked: the text says how to unlock them."""


class WrongUnlockKey(Exception):
    """The text is not the unlock key of these files."""


def new_unlock_key() -> str:
    """A fresh unlock key of 256 bits, as operators keep it."""
    return "ORC-UNLOCK-1-" + base64.b32encode(os.urandom(_BYTES)).decode().rstrip("=")


def unlock_key_id(unlock_key: str) -> str:
    """An identifier of an unlock key that does not reveal it; empty for none."""
    return hashlib.sha256(b"id " + _derived(unlock_key)).hexdigest()[:16] if unlock_key else ""


def _derived(unlock_key: str) -> bytes:
    match = _FORM.fullmatch(unlock_key.strip())
    if match is None:
        raise WrongUnlockKey(
            "this is not an unlock key; copy the whole ORC-UNLOCK-1-… text that "
            "'orc cluster lock' printed"
        )
    return base64.b32decode(match[1] + "=" * (-len(match[1]) % 8))


class KeyFiles:
    """The key files of a manager's data folder. Their contents stay in memory once read."""

    def __init__(self, folder: Path) -> None:
        """Read them as far as they are not locked."""
        self._folder = folder
        self._texts: dict[str, str] = {}
        self._unlock_key = ""
        self._locked = (folder / LOCKED_FILE).exists()
        self._writing = threading.Lock()
        if not self._locked:
            for name in KEY_FILES:
                try:
                    self._texts[name] = (folder / name).read_text()
                except FileNotFoundError:
                    continue
                except UnicodeDecodeError as error:
                    raise OSError(
                        f"{folder / name} is damaged ({error}); restore it from a backup of that "
                        "folder"
                    ) from error

    @property
    def folder(self) -> Path:
        """The manager's data folder."""
        return self._folder

    @property
    def locked(self) -> bool:
        """Whether they have to be unlocked first."""
        return self._locked

    @property
    def unlock_key(self) -> str:
        """The unlock key that they are written with; empty: none."""
        return self._unlock_key

    def unlock(self, unlock_key: str) -> None:
        """Read the locked files. Raises WrongUnlockKey, OSError."""
        if not self._locked:
            return
        sealed = (self._folder / LOCKED_FILE).read_bytes()
        try:
            data = base64.b64decode(sealed, validate=True)
            cipher = AESGCM(_derived(unlock_key))
            texts = json.loads(cipher.decrypt(data[:_NONCE], data[_NONCE:], _PURPOSE))
        except (InvalidTag, binascii.Error, ValueError) as error:
            raise WrongUnlockKey(
                "this is not the key that this manager's key files are locked with; after a "
                "rotation, a manager that was down needs the former one"
            ) from error
        self._texts, self._unlock_key, self._locked = texts, unlock_key.strip(), False
        self._delete(*KEY_FILES)  # left over from a crash while they were being locked

    def text(self, name: str) -> str | None:
        """The content of a file; None if there is none. Raises KeysLocked."""
        if self._locked:
            raise KeysLocked("the manager's key files are locked; run 'orc cluster unlock'")
        return self._texts.get(name)

    def texts(self) -> dict[str, str]:
        """The content of all files, by name. Raises KeysLocked."""
        self.text(CA_KEY)
        return dict(self._texts)

    def write(self, name: str, text: str) -> None:
        """Replace a file's content; no-op if it is the same. Raises OSError."""
        with self._writing:
            if self._texts.get(name) != text:
                self._persist({**self._texts, name: text}, self._unlock_key)

    def remove(self, name: str) -> None:
        """Delete a file. Raises OSError."""
        with self._writing:
            if name in self._texts:
                kept = {each: text for each, text in self._texts.items() if each != name}
                self._persist(kept, self._unlock_key)
                self._delete(name)

    def protect(self, unlock_key: str) -> None:
        """Lock the files with this unlock key from now on; an empty one stores them unlocked.
        Raises OSError."""
        with self._writing:
            if unlock_key != self._unlock_key:
                self._persist(self._texts, unlock_key)

    def _persist(self, texts: dict[str, str], unlock_key: str) -> None:
        if unlock_key:
            nonce = os.urandom(_NONCE)
            cipher = AESGCM(_derived(unlock_key))
            data = nonce + cipher.encrypt(nonce, json.dumps(texts).encode(), _PURPOSE)
            write_file(self._folder / LOCKED_FILE, base64.b64encode(data))
            self._delete(*KEY_FILES)
        else:
            for name, text in texts.items():
                if self._unlock_key or self._texts.get(name) != text:
                    write_file(self._folder / name, text)
            self._delete(LOCKED_FILE)
        self._texts, self._unlock_key = texts, unlock_key

    def _delete(self, *names: str) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)
