# SPDX-License-Identifier: Apache-2.0
"""Revoked certificates: refused in new calls, and their calls in progress end."""

from __future__ import annotations

import asyncio
import datetime as dt
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from orchestrator.identity import ca
from orchestrator.identity.certificates import SKEW, Issued
from orchestrator.identity.revocation import CertificateRevoked, Revocations, Revoked
from orchestrator.identity.tls import Identity

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, 600_000, dt.UTC)
AUTHORITY = ca.new_ca("c1", NOW)


def identity(serial: str = "ab", at: float = 1000.0, name: str = "anna") -> Identity:
    return Identity(name, "admin", "c1", Issued(serial, "", at, at + 100))


ANNA = Revoked("", "admin", "anna", 1000.9, "left")


@pytest.mark.parametrize("attempt", range(20))
def test_a_certificate_is_read_as_the_library_reads_it(attempt: int) -> None:
    made = ca.issue(AUTHORITY, common_name="x", role="admin", cluster_id="c1", now=NOW)
    known = x509.load_pem_x509_certificate(made.certificate.encode())
    issued = Issued.of(made.certificate)
    authority = known.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier is not None
    assert issued == Issued(
        f"{known.serial_number:x}",
        known.fingerprint(hashes.SHA256()).hex(),
        (known.not_valid_before_utc + SKEW).timestamp(),
        known.not_valid_after_utc.timestamp(),
        authority.key_identifier.hex(),
    )
    assert issued.at == NOW.replace(microsecond=0).timestamp()


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"]
)
def test_malformed_certificate_is_rejected(text: str) -> None:
    assert Issued.of(text) is None


@pytest.mark.parametrize(
    ("revoked", "caller", "refused"),
    [
        (ANNA, identity(at=999.0), True),
        (ANNA, identity(at=1000.0), True),  # of the same second
        (ANNA, identity(at=1001.0), False),
        (ANNA, identity(name="bob"), False),
        (ANNA, Identity("anna", "worker", "c1", Issued("ab", "", 1.0, 2.0)), False),
        (Revoked("ab", "admin", "anna", 1.0), identity("ab"), True),
        (Revoked("ab", "admin", "anna", 1.0), identity("abc"), False),
        # Who shows a certificate that cannot be read is refused with its holder.
        (ANNA, Identity("anna", "admin", "c1"), True),
        (Revoked("ab", "admin", "anna", 1.0), Identity("anna", "admin", "c1"), False),
    ],
)
def test_revocations_match_the_caller(revoked: Revoked, caller: Identity, refused: bool) -> None:
    revocations = Revocations()
    revocations.replace([revoked])
    assert (revocations.of(caller) is not None) is refused
    revocations.replace([])
    assert revocations.of(caller) is None


def test_line_has_time_reason_and_remedy() -> None:
    assert str(CertificateRevoked("admin", ANNA)).startswith(
        "this certificate was revoked at 1970-01-01T00:16:40Z (left); ask an administrator"
    )


async def test_calls_under_way_end_those_of_others_go_on() -> None:
    revocations, refused = Revocations(), []
    revocations.refused = refused.append
    ended: list[str] = []
    go = asyncio.Event()

    async def call(caller: Identity) -> None:
        try:
            async with revocations.call(caller), asyncio.TaskGroup() as group:
                group.create_task(go.wait())
        except CertificateRevoked:
            ended.append(f"{caller.id} refused")
        else:
            ended.append(f"{caller.id} done")

    async with asyncio.TaskGroup() as group:
        group.create_task(call(identity()))
        group.create_task(call(identity(name="bob")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        revocations.replace([ANNA])
        revocations.replace([ANNA])  # once more changes nothing
        for _ in range(10):
            await asyncio.sleep(0)
        assert ended == ["anna refused"]
        go.set()
    assert ended == ["anna refused", "bob done"]
    assert [each.id for each in refused] == ["anna"]
    with pytest.raises(CertificateRevoked):
        await call_nothing(revocations)


async def call_nothing(revocations: Revocations) -> None:
    async with revocations.call(identity()):
        raise AssertionError("it was let in")


async def test_a_call_that_its_client_cancels_at_the_same_time_is_cancelled() -> None:
    revocations = Revocations()

    async def call() -> None:
        async with revocations.call(identity()):
            await asyncio.sleep(3600)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    revocations.replace([ANNA])
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
