# SPDX-License-Identifier: Apache-2.0
"""What is sealed to a certificate opens with its key only, and for its purpose only."""

from __future__ import annotations

import datetime as dt

import pytest

from orchestrator.identity import ca
from orchestrator.identity.certificates import KeyPair
from orchestrator.identity.sealing import CannotOpen, seal, unseal

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
AUTHORITY = ca.new_ca("c1", NOW)


def holder(name: str) -> KeyPair:
    return ca.issue(AUTHORITY, common_name=name, role="manager", cluster_id="c1", now=NOW)


def test_key_holder_opens_sealed_data() -> None:
    own = holder("m1")
    sealed = seal(own.certificate, b"keys", "enrolment of m1")
    assert b"keys" not in sealed
    assert unseal(own.key, sealed, "enrolment of m1") == b"keys"
    assert seal(own.certificate, b"keys", "enrolment of m1") != sealed


def test_another_key_purpose_or_text_is_refused() -> None:
    own, other = holder("m1"), holder("m2")
    sealed = seal(own.certificate, b"keys", "enrolment of m1")
    for key, text, purpose in (
        (other.key, sealed, "enrolment of m1"),
        (own.key, sealed, "enrolment of m2"),
        (own.key, sealed[:-1] + bytes([sealed[-1] ^ 1]), "enrolment of m1"),
        (own.key, sealed[:70], "enrolment of m1"),
        (own.key, b"", "enrolment of m1"),
    ):
        with pytest.raises(CannotOpen):
            unseal(key, text, purpose)
