# SPDX-License-Identifier: Apache-2.0
"""Encryption to a public key, by the programs of age and GnuPG."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from orchestrator.backups.archive import BackupError

_AGE = ("age1", "ssh-ed25519 ", "ssh-rsa ")
"""How recipients of age begin; others are GnuPG's."""
_AGE_FILE = (b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----")


def is_age_recipient(recipient: str) -> bool:
    """Whether it is a recipient of age, and not one of GnuPG."""
    return recipient.startswith(_AGE)


def encrypt_to(data: bytes, recipient: str) -> bytes:
    """Encrypt data to a recipient of age (`age1…`, a public SSH key) or GnuPG (a key id, a
    fingerprint, an address). Raises BackupError."""
    if is_age_recipient(recipient):
        return _run("age", ["--encrypt", "--recipient", recipient], data)
    options = ["--batch", "--quiet", "--trust-model", "always"]
    return _run("gpg", [*options, "--encrypt", "--recipient", recipient], data)


def decrypt_with(data: bytes, identity: Path | None) -> bytes:
    """Decrypt what `encrypt_to` made: with a file of identities of age, or by the user's GnuPG.
    Raises BackupError."""
    if not data.startswith(_AGE_FILE):
        return _run("gpg", ["--quiet", "--decrypt"], data)
    if identity is None:
        raise BackupError("the backup is encrypted to a recipient of age: give --identity FILE")
    return _run("age", ["--decrypt", "--identity", str(identity)], data)


def _run(program: str, arguments: list[str], data: bytes) -> bytes:
    found = shutil.which(program)
    if found is None:
        package = {"gpg": "gnupg"}.get(program, program)
        raise BackupError(f"{program} is not installed: apt install {package}")
    done = subprocess.run([found, *arguments], input=data, capture_output=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise BackupError(f"{program} failed: {lines[0] if lines else 'no reason given'}")
    return done.stdout
