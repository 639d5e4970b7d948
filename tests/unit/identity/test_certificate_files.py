# SPDX-License-Identifier: Apache-2.0
"""Certificates as text and as files: validity, and atomic replacement of both files."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.identity import ca
from orchestrator.identity.certificates import KeyPair, Life, PairFiles
from orchestrator.linux.atomicfile import write_file

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
OLD, NEXT = (
    KeyPair(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n", f"key {text}\n")
    for text in ("aaaa", "bbbb")
)


@given(st.integers(20, 40 * 365 * 24 * 3600))
@settings(max_examples=30)
def test_lifetime_matches_the_library(seconds: int) -> None:
    lifetime = dt.timedelta(seconds=seconds)
    issued = ca.issue(
        ca.new_ca("c1", NOW),
        common_name="n1",
        role="worker",
        cluster_id="c1",
        now=NOW,
        lifetime=lifetime,
    )
    loaded = x509.load_pem_x509_certificate(issued.certificate.encode())
    life = Life.of(issued.certificate)
    assert life == Life(loaded.not_valid_before_utc, loaded.not_valid_after_utc)
    for unit in (0.0, 0.5, 1.0):
        assert NOW + lifetime / 2 <= life.renewal(unit) <= NOW + lifetime * 0.8


@pytest.mark.parametrize("text", ["", "no certificate", OLD.certificate])
def test_malformed_certificate_has_no_lifetime(text: str) -> None:
    assert Life.of(text) is None


class PowerLost(Exception):
    """The host has gone between two steps."""


@pytest.mark.parametrize("steps", range(4))
def test_a_crash_leaves_one_pair_or_the_other(
    tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = PairFiles(tmp_path / "node.pem", tmp_path / "node.key")
    found.replace(OLD)
    left = steps

    def write_some(path: Path, text: str, *, mode: int = 0o600) -> None:
        nonlocal left
        if left == 0:
            raise PowerLost
        left -= 1
        write_file(path, text, mode=mode)

    monkeypatch.setattr("orchestrator.identity.certificates.write_file", write_some)
    if steps < 3:
        with pytest.raises(PowerLost):
            found.replace(NEXT)
    else:
        found.replace(NEXT)
    assert found.read() == (NEXT if steps else OLD)
    monkeypatch.undo()
    found.replace(OLD)
    assert found.read() == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.key", "node.pem"]
