# SPDX-License-Identifier: Apache-2.0
"""When a host's certificate is renewed, and what happens when it cannot be."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from pathlib import Path

import pytest

from orchestrator.identity import ca
from orchestrator.identity.certificates import KeyPair, Life, PairFiles
from orchestrator.identity.renewal import NotRenewed, keep_renewed, request_elsewhere

BEGIN = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


class Host:
    """A host with a certificate of 90 days, and a manager that signs when it is there."""

    def __init__(self, folder: Path) -> None:
        self.authority = ca.new_ca("c1", BEGIN)
        self.files = PairFiles(folder / "node.pem", folder / "node.key")
        self.now = BEGIN
        key, asked = ca.new_request()
        self.first = KeyPair(self._signed(asked), key)
        self.files.replace(self.first)
        self.away = ""
        self.asked = asyncio.Event()

    def _signed(self, asked: str) -> str:
        return ca.sign(
            self.authority,
            asked,
            common_name="n1",
            role="worker",
            cluster_id="c1",
            now=self.now,
            lifetime=90 * DAY,
        )

    async def sign(self, asked: str) -> str:
        self.asked.set()
        if self.away:
            raise NotRenewed(self.away)
        return self._signed(asked)

    async def keep(self, unit: float = 0.0) -> None:
        await keep_renewed(
            self.files, request_elsewhere, self.sign, unit=unit, now=lambda: self.now
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def asked_within(host: Host, seconds: float, unit: float = 0.0) -> bool:
    """Whether the manager is asked, by an agent that starts now."""
    keeping = asyncio.create_task(host.keep(unit))
    try:
        async with asyncio.timeout(seconds):
            await host.asked.wait()
        return True
    except TimeoutError:
        return False
    finally:
        keeping.cancel()


async def test_a_young_certificate_stays(host: Host) -> None:
    host.now += 44 * DAY
    assert not await asked_within(host, 0.2)
    assert host.files.read() == host.first


async def test_an_old_one_is_renewed_with_another_key(host: Host) -> None:
    host.now += 46 * DAY
    assert await asked_within(host, 20)
    renewed = host.files.read()
    life = Life.of(renewed.certificate)
    assert life is not None
    assert life.ends == host.now + 90 * DAY
    assert renewed.key != host.first.key


async def test_holders_do_not_all_come_at_once(host: Host) -> None:
    host.now += 60 * DAY
    assert not await asked_within(host, 0.2, unit=1.0)
    assert await asked_within(host, 20, unit=0.3)


async def test_renewal_is_retried_soon_after_a_brief_outage(host: Host) -> None:
    host.now, host.away = host.now + 80 * DAY, "no manager can be reached"
    keeping = asyncio.create_task(host.keep())
    try:
        async with asyncio.timeout(60):
            await host.asked.wait()
            host.away = ""
            host.asked.clear()
            await host.asked.wait()
    finally:
        keeping.cancel()
    assert host.files.read() != host.first


async def test_a_failed_renewal_is_logged_once_and_keeps_the_certificate(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.now, host.away = host.now + 80 * DAY, "no manager can be reached"
    with caplog.at_level(logging.WARNING):
        assert await asked_within(host, 20)
    assert host.files.read() == host.first
    [said] = [record.getMessage() for record in caplog.records]
    assert "no manager can be reached; it expires at 2026-04-01T12:00:00+00:00" in said
