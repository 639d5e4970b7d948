# SPDX-License-Identifier: Apache-2.0
"""A manager starts only with the key that the cluster's secrets are sealed with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.document_store import DocumentStore
from orchestrator.manager.security.key_check import WrongKey, check_key
from orchestrator.manager.security.registry_credentials import purpose
from orchestrator.manager.security.vault import KEY_FILE, Vault, VaultError
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.documents import Document
from orchestrator.model.objects import Cluster, Credential, Object

SECRET = Document(id="d1", name="db", kept=(1,))


@pytest.fixture
def kv() -> MemoryKv:
    return MemoryKv(lambda: 0.0)


def saved(folder: Path) -> Vault:
    folder.mkdir(exist_ok=True)
    vault = Vault.at(folder)
    vault.save()
    return vault


def login(vault: Vault) -> Credential:
    return Credential(id="docker.io", sealed=vault.seal("pw", purpose("docker.io")))


def view_of(vault: Vault | None, *objects: Object) -> ClusterView:
    """A cluster that knows the key of `vault`, or, of an earlier version, none."""
    return ClusterView.of([Cluster(id="c", secrets_key_id=vault.key_id if vault else ""), *objects])


def test_a_key_is_written_only_when_it_is_saved(tmp_path: Path) -> None:
    vault = Vault.at(tmp_path)
    assert vault.new
    assert not (tmp_path / KEY_FILE).exists()
    vault.save()
    again = Vault.at(tmp_path)
    assert not again.new
    assert again.key_id == vault.key_id
    assert Vault.at(tmp_path / "other").key_id != vault.key_id


@pytest.mark.parametrize("content", [b"", b"%%%", b"c2hvcnQ="])
def test_a_damaged_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(VaultError, match=r"cluster\.key is damaged .*; restore it from a backup"):
        Vault.at(tmp_path)


@pytest.mark.parametrize("known", [True, False], ids=["id known", "earlier version"])
@pytest.mark.parametrize("what", ["secret", "login"])
async def test_secrets_of_another_key_are_not_left_behind(
    kv: MemoryKv, tmp_path: Path, known: bool, what: str
) -> None:
    first = saved(tmp_path / "first")
    if what == "secret":
        await kv.txn([], [DocumentStore(kv, first).write(SECRET, b"horse")])
        view = view_of(first if known else None, SECRET)
    else:
        view = view_of(first if known else None, login(first))
    await check_key(kv, view, Vault.at(tmp_path / "first"), tmp_path / "first")
    missing = Vault.at(tmp_path / "second")
    with pytest.raises(WrongKey, match=r"second/cluster\.key is missing: restore cluster\.key"):
        await check_key(kv, view, missing, tmp_path / "second")
    other = saved(tmp_path / "third")
    with pytest.raises(WrongKey, match=r"third/cluster\.key is another key: restore"):
        await check_key(kv, view, Vault.at(tmp_path / "third"), tmp_path / "third")
    # With secrets of two keys, from the earlier fault, the cluster continues with the current one.
    both = replace(view, credentials={"docker.io": login(other)})
    await check_key(kv, both, other, tmp_path / "third")


async def test_while_nothing_is_sealed_any_key_will_do(kv: MemoryKv, tmp_path: Path) -> None:
    known = view_of(Vault(b"k" * 32), SECRET)  # its data is gone
    await check_key(kv, ClusterView(), Vault.at(tmp_path), tmp_path)
    await check_key(kv, known, Vault.at(tmp_path), tmp_path)
