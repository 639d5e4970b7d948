# SPDX-License-Identifier: Apache-2.0
"""The content of backups, and their encryption."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backups import passphrase, recipients
from orchestrator.backups.archive import Archive, BackupError, Manifest, pack, unpack

ARCHIVE = Archive(
    Manifest("cluster", 1.5, 42, "0.1.0", 2),
    (("/orc/a", b"\x00\xff"), ("/orc-sealed/b/1", b"")),
    {"ca.pem": b"certificate", "cluster.key": b"key"},
)
WORDS = "correct horse battery"


def test_backup_holds_the_packed_data() -> None:
    assert unpack(pack(ARCHIVE)) == ARCHIVE


def test_a_backup_of_a_newer_format_names_the_version() -> None:
    newer = replace(ARCHIVE, manifest=replace(ARCHIVE.manifest, format=99, version="9.9"))
    with pytest.raises(BackupError, match=r"format 99.*9\.9.*restore it with that version"):
        unpack(pack(newer))


def test_a_backup_without_all_keys_is_damaged() -> None:
    short = replace(ARCHIVE, store=ARCHIVE.store[:1])
    with pytest.raises(BackupError, match="1 keys of 2"):
        unpack(pack(short))


@pytest.mark.parametrize("cut", [0, 1, 20, 150])
def test_damaged_backup_is_refused(cut: int) -> None:
    with pytest.raises(BackupError, match="not a backup"):
        unpack(pack(ARCHIVE)[:cut])


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_encrypted_data_open_with_the_passphrase(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passphrase, "_COST", 2)
    data = bytes(size)
    sealed = passphrase.encrypt(data, WORDS)
    assert passphrase.is_encrypted(sealed)
    assert passphrase.decrypt(sealed, WORDS) == data
    with pytest.raises(BackupError, match="passphrase is wrong"):
        passphrase.decrypt(sealed, WORDS + "!")


def test_changed_reordered_and_missing_chunks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrase, "_COST", 2)
    sealed = passphrase.encrypt(bytes(200_000), WORDS)
    start = sealed.index(b"\n") + 1
    size = 65_536 + 16
    first, second = sealed[start : start + size], sealed[start + size : start + 2 * size]
    header = json.loads(sealed[:start])
    broken = [
        sealed[: start + 2 * size],  # cut off between two chunks
        sealed[:-1],
        sealed[:start],
        sealed[:start] + second + first + sealed[start + 2 * size :],
        sealed[: start + size + 5] + b"!" + sealed[start + size + 6 :],
        json.dumps(header | {"cipher": "none"}).encode() + sealed[start - 1 :],
        json.dumps(header | {"cost": 2**40}).encode() + sealed[start - 1 :],
    ]
    for each in broken:
        with pytest.raises(BackupError):
            passphrase.decrypt(each, WORDS)


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(BackupError, match="8 characters"):
        passphrase.encrypt(b"", "1234567")


def test_an_age_recipient_opens_it_with_the_identity(tmp_path: Path) -> None:
    identity = tmp_path / "identity"
    made = subprocess.run(
        ["age-keygen", "-o", str(identity)], check=True, capture_output=True, text=True
    )
    recipient = made.stderr.split("Public key: ")[1].strip()
    sealed = recipients.encrypt_to(b"plain", recipient)
    assert b"plain" not in sealed
    assert recipients.decrypt_with(sealed, identity) == b"plain"
    with pytest.raises(BackupError, match="--identity"):
        recipients.decrypt_with(sealed, None)
    with pytest.raises(BackupError, match=r"age failed: .*recipient"):
        recipients.encrypt_to(b"plain", "age1wrong")


def test_gpg_recipient_opens_the_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "g"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    new = ["gpg", "--batch", "--passphrase", "", "--quick-generate-key", "ops@example.org"]
    subprocess.run(new, check=True, capture_output=True)
    try:
        sealed = recipients.encrypt_to(b"plain", "ops@example.org")
        assert b"plain" not in sealed
        assert recipients.decrypt_with(sealed, None) == b"plain"
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], check=True)


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackupError, match="apt install age"):
        recipients.encrypt_to(b"", "age1x")
    with pytest.raises(BackupError, match="apt install gnupg"):
        recipients.encrypt_to(b"", "ops@example.org")
