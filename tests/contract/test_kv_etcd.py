# SPDX-License-Identifier: Apache-2.0
"""The store on etcd, when etcd or the way to it fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kvhost import Host, hosted, next_of

from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_tls import EtcdTls, ensure_member_tls
from orchestrator.manager.store.kv import (
    Guard,
    Put,
    StoreUnavailable,
)
from tests.freeports import free_ports
from tests.freezing import freeze


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("etcd")) as host:
        yield host


@pytest.fixture
async def etcd(host: Host) -> AsyncIterator[EtcdKv]:
    async with EtcdKv(host.endpoints, host.tls, max_txn_ops=host.max_txn_ops) as kv:
        yield kv


@pytest.fixture
def at() -> str:
    """A prefix of this test alone."""
    return f"/test/{uuid.uuid4().hex}/"


async def test_a_watch_goes_on_over_a_kill_of_etcd(host: Host, etcd: EtcdKv, at: str) -> None:
    revisions = [await etcd.txn([], [Put(at + "n", b"0")])]
    async with etcd.watch(at, revisions[0]) as changes:
        assert (await next_of(changes)).revision == revisions[0]
        os.kill(host.etcd_pid(), signal.SIGKILL)
        while len(revisions) < 4:
            try:
                entry = await etcd.get(at + "n")
                assert entry is not None
                revisions.append(
                    await etcd.txn(
                        [Guard(at + "n", mod_revision=entry.mod_revision)],
                        [Put(at + "n", str(len(revisions)).encode())],
                    )
                )
            except StoreUnavailable:
                continue
        for revision in revisions[1:]:
            assert (await next_of(changes)).revision == revision


async def test_a_quiet_watch_is_not_overtaken_by_compaction(
    host: Host, etcd: EtcdKv, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.manager.store.etcd.PROGRESS_INTERVAL", 0.02)
    start = await etcd.txn([], [Put(at + "quiet", b"")])
    async with etcd.watch(at + "quiet", start + 1) as changes, asyncio.TaskGroup() as group:
        waiting = group.create_task(next_of(changes))
        last = [await etcd.txn([], [Put(at + "loud", b"")]) for _ in range(100)][-1]
        await asyncio.sleep(0.5)  # 25 times the interval in which the watch moves on
        await etcd.compact(last)
        os.kill(host.etcd_pid(), signal.SIGKILL)
        while True:
            try:
                await etcd.txn([], [Put(at + "quiet", b"2")])
                break
            except StoreUnavailable:
                continue
        assert (await waiting).revision > last


async def test_a_frozen_member_costs_one_deadline(host: Host, at: str) -> None:
    pid = host.etcd_pid()
    async with EtcdKv(host.endpoints, host.tls, timeout=0.3) as kv:
        with suppress(StoreUnavailable):  # it is there, or not in so short a time
            await kv.txn([], [Put(at + "a", b"1")])
        freeze(pid)
        try:
            with pytest.raises(StoreUnavailable, match=r"may or may not.*no answer within 0\.3 s"):
                await kv.txn([], [Put(at + "a", b"2")])
            with pytest.raises(StoreUnavailable, match=r"no answer within 0\.3 s"):
                await kv.get(at + "a")
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_dead_first_endpoint_is_skipped(host: Host, at: str) -> None:
    dead = f"https://127.0.0.1:{free_ports()}"
    async with EtcdKv([dead, *host.endpoints], host.tls) as kv:
        revision = await kv.txn([], [Put(at + "a", b"1")])
        async with kv.watch(at, revision) as changes:
            assert (await next_of(changes)).revision == revision


async def test_a_silent_first_endpoint_is_skipped(host: Host, at: str) -> None:
    """It accepts the connection and never says a word, as a frozen or firewalled host."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}"
        async with EtcdKv([url, *host.endpoints], host.tls, timeout=2.0) as kv:
            revision = await kv.txn([], [Put(at + "a", b"1")])
            assert revision > 0


async def test_no_endpoint_answers(host: Host) -> None:
    url = f"https://127.0.0.1:{free_ports()}"
    async with EtcdKv([url], host.tls, timeout=1.0) as kv:
        for operation in (kv.get("a"), kv.txn([], [Put("a", b"")]), kv.grant(1), kv.keepalive(1)):
            with pytest.raises(StoreUnavailable) as failure:
                await operation
            assert str(failure.value) == (
                f"etcd at {url} does not answer: "
                "connection refused (is it running? check --etcd-endpoints)"
            )


async def test_an_etcd_of_an_unknown_ca_is_refused(host: Host, tmp_path: Path) -> None:
    other = ensure_member_tls(tmp_path, datetime.now(UTC)).client
    tls = EtcdTls(other.ca, host.tls.cert, host.tls.key)
    async with EtcdKv(host.endpoints, tls, timeout=1.0) as kv:
        with pytest.raises(StoreUnavailable, match=f"not signed by the CA in {other.ca}"):
            await kv.get("a")


async def test_a_client_of_an_unknown_ca_is_refused(host: Host, tmp_path: Path) -> None:
    other = ensure_member_tls(tmp_path, datetime.now(UTC)).client
    tls = EtcdTls(host.tls.ca, other.cert, other.key)
    async with EtcdKv(host.endpoints, tls, timeout=1.0) as kv:
        with pytest.raises(StoreUnavailable, match=f"refuses the certificate in {other.cert}"):
            await kv.get("a")


@pytest.mark.parametrize(
    ("flags", "accepted"),
    [(["-tls1_3"], True), (["-tls1_2"], False)],
)
def test_tls_1_3_only(host: Host, flags: list[str], accepted: bool) -> None:
    address = host.endpoints[0].removeprefix("https://")
    client = ["-CAfile", host.tls.ca, "-cert", host.tls.cert, "-key", host.tls.key]
    done = subprocess.run(
        ["openssl", "s_client", "-connect", address, "-brief", *client, *flags],
        input=b"",
        capture_output=True,
        check=False,
    )
    assert (b"Verification: OK" in done.stderr) is accepted
    assert (b"protocol version" in done.stderr) is not accepted
