# SPDX-License-Identifier: Apache-2.0
"""Which certificates count as revoked."""

from __future__ import annotations

from orchestrator.dockerapi.http.admission import is_revoked
from orchestrator.pb import access_pb2, types_pb2


def _row(
    serial: str, name: str, issued_at: float, revoked_at: float = 0.0, role: str = "admin"
) -> access_pb2.CertificateRow:
    certificate = types_pb2.Certificate(id=serial, role=role, name=name, issued_at=issued_at)
    return access_pb2.CertificateRow(certificate=certificate, revoked_at=revoked_at)


def test_known_certificate_counts_as_its_row_says() -> None:
    rows = [_row("a", "anna", 10.0, 20.0), _row("b", "anna", 11.0), _row("c", "bob", 10.0)]
    assert is_revoked(rows, "anna", "a", 10.0)
    assert not is_revoked(rows, "anna", "b", 11.0)
    assert not is_revoked(rows, "bob", "c", 10.0)


def test_unknown_certificate_counts_as_revoked_with_its_holder() -> None:
    rows = [_row("a", "anna", 10.0, 20.0), _row("n", "bob", 10.0, 20.0, role="worker")]
    assert is_revoked(rows, "anna", "x", 15.0)
    assert not is_revoked(rows, "anna", "x", 21.0), "issued since"
    assert not is_revoked(rows, "bob", "x", 15.0), "a node of that name"
    assert not is_revoked([], "anna", "x", 15.0)
