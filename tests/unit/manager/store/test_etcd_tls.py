# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.manager.store.etcd_tls import CA_LIFETIME, LEAF_LIFETIME, ensure_member_tls

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_keys_are_private_and_all_is_signed_by_one_ca(tmp_path: Path) -> None:
    made = ensure_member_tls(tmp_path / "tls", NOW)
    assert made.renewed_ca
    ca = load(made.client.ca)
    for files in (made.server, made.client):
        assert files.key.stat().st_mode & 0o777 == 0o600
        certificate = load(files.cert)
        certificate.verify_directly_issued_by(ca)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
    assert (tmp_path / "tls/ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700
    names = load(made.server.cert).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    ensure_member_tls(tmp_path, NOW)
    before = contents(tmp_path)
    again = ensure_member_tls(tmp_path, NOW + timedelta(days=100))
    assert not again.renewed_ca
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("age", "renewed"),
    [
        (LEAF_LIFETIME - timedelta(days=31), set()),
        (LEAF_LIFETIME - timedelta(days=29), {"server", "client"}),
        (CA_LIFETIME - timedelta(days=29), {"ca", "server", "client"}),
    ],
)
def test_a_certificate_that_expires_within_30_days_is_renewed(
    tmp_path: Path, age: timedelta, renewed: set[str]
) -> None:
    ensure_member_tls(tmp_path, NOW)
    before = contents(tmp_path)
    made = ensure_member_tls(tmp_path, NOW + age)
    after = contents(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {file for name in renewed for file in (f"{name}.pem", f"{name}-key.pem")}
    assert made.renewed_ca is ("ca" in renewed)


@pytest.mark.parametrize("name", ["server.pem", "server-key.pem", "ca.pem", "ca-key.pem"])
@pytest.mark.parametrize("damage", ["missing", "torn", "foreign"])
def test_an_incomplete_pair_is_replaced(tmp_path: Path, name: str, damage: str) -> None:
    made = ensure_member_tls(tmp_path / "a", NOW)
    path = tmp_path / "a" / name
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:50])
    else:
        ensure_member_tls(tmp_path / "b", NOW)
        path.write_bytes((tmp_path / "b" / name).read_bytes())
    repaired = ensure_member_tls(tmp_path / "a", NOW)
    assert repaired.renewed_ca is name.startswith("ca")
    for files in (repaired.server, repaired.client):
        load(files.cert).verify_directly_issued_by(load(made.client.ca))
    before = contents(tmp_path / "a")
    ensure_member_tls(tmp_path / "a", NOW)
    assert contents(tmp_path / "a") == before
