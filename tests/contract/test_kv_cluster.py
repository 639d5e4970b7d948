# SPDX-License-Identifier: Apache-2.0
"""Three members, one of which is frozen while it serves us; and elections over real leases."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kvhost import Host, hosted

from orchestrator.manager.leader.election import Election, LeadershipLost, Term
from orchestrator.manager.store.etcd import EtcdKv, EtcdRenewal
from orchestrator.manager.store.kv import Delete, LeaseLost, Put, StoreUnavailable
from orchestrator.manager.store.lease_renewal import Keeper
from orchestrator.manager.store.leased_key import LeasedKey
from tests.freeports import free_ports
from tests.freezing import freeze


@dataclass
class Cluster:
    endpoints: list[str]
    members: list[subprocess.Popen[bytes]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    first = free_ports(6)
    urls = [f"http://127.0.0.1:{port}" for port in range(first, first + 6)]
    clients, peers = urls[:3], urls[3:]
    members = [
        subprocess.Popen(
            # A test run that is killed takes them along.
            [
                *("setpriv", "--pdeathsig", "KILL", "etcd", f"--name=m{n}"),
                f"--data-dir={tmp_path / str(n)}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                "--initial-cluster=" + ",".join(f"m{n}={url}" for n, url in enumerate(peers)),
                "--heartbeat-interval=50",
                "--election-timeout=300",
                "--log-level=error",
            ]
        )
        for n, (client, peer) in enumerate(zip(clients, peers, strict=True))
    ]
    try:
        yield Cluster(clients, members)
    finally:
        for member in members:
            member.kill()
            member.wait()


async def persistent(kv: EtcdKv, ops: list[Put]) -> int:
    async with asyncio.timeout(60):
        while True:
            try:
                return await kv.txn([], ops)
            except StoreUnavailable:
                continue


async def test_a_frozen_member_is_skipped_and_one_without_quorum_refuses(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.manager.store.etcd.PROGRESS_INTERVAL", 0.1)
    monkeypatch.setattr("orchestrator.manager.store.etcd.WATCH_SILENCE", 0.5)
    async with EtcdKv(cluster.endpoints, None, timeout=0.5) as kv:
        start = await persistent(kv, [Put("/a", b"0")])
        async with kv.watch("/", start + 1) as changes:
            expected = await persistent(kv, [Put("/a", b"1")])
            while (await anext(changes)).revision < expected:
                continue
            in_use = cluster.endpoints.index(kv._channels.current.url)
            freeze(cluster.members[in_use].pid)
            last = await persistent(kv, [Put("/a", b"2")])
            seen = []
            async with asyncio.timeout(60):
                while not seen or seen[-1] < last:
                    seen.append((await anext(changes)).revision)
            assert seen == list(range(expected + 1, last + 1))
        cluster.members[cluster.endpoints.index(kv._channels.current.url)].kill()

        async def until_refused() -> None:
            async with asyncio.timeout(60):
                while True:
                    await kv.get("/a")

        with pytest.raises(StoreUnavailable, match=r"no answer within 0\.5 s|no leader"):
            await until_refused()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("etcd")) as host:
        yield host


@pytest.fixture
async def kv(host: Host) -> AsyncIterator[EtcdKv]:
    async with EtcdKv(host.endpoints, host.tls) as kv:
        yield kv


async def test_a_term_outlives_a_short_restart_of_etcd(host: Host, kv: EtcdKv) -> None:
    election = Election(kv, "/restart", "a", ttl=9)
    async with election.term() as term:
        os.kill(host.etcd_pid(), signal.SIGKILL)
        killed = time.monotonic()
        async with asyncio.timeout(60):
            # Renewed by etcd after it was killed: the deadline counts from when that was sent.
            while term.held.deadline < killed + 9:
                with suppress(StoreUnavailable):
                    await kv.get("/restarted")
        await kv.txn([term.guard], [Put("/restarted", b"")])
        assert await election.leader() == "a"


async def test_a_loop_that_is_blocked_keeps_its_lease(host: Host, kv: EtcdKv) -> None:
    def block() -> None:
        time.sleep(6)  # the lease lasts for 2 s

    with EtcdRenewal(host.endpoints, host.tls) as renewal:
        async with Election(kv, "/busy", "a", ttl=2, renewal=renewal).term() as term:
            block()
            await kv.txn([term.guard], [Put("/led", b"")])


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - a thread changes it
        await asyncio.sleep(0.01)


async def test_a_lease_that_a_thread_renews_is_exchanged(host: Host, kv: EtcdKv) -> None:
    extended = 60.0
    with EtcdRenewal(host.endpoints, host.tls) as renewal:
        election = Election(
            kv, "/exchanged", "a", ttl=9, renewal=renewal, extended_ttl=lambda: extended
        )
        async with asyncio.timeout(60), election.term() as term:
            before = term.held.lease
            assert term.held.deadline > time.monotonic() + 50
            extended = 0.0
            await until(lambda: term.held.lease != before)
            exchanged = term.held.deadline
            assert exchanged < time.monotonic() + 9
            await until(lambda: term.held.deadline > exchanged)  # the thread renews the new lease
            await kv.txn([term.guard], [Put("/led", b"")])
            with pytest.raises(LeaseLost):
                await kv.keepalive(before)


async def lost(term: AbstractAsyncContextManager[Term], act: Callable[[Term], Any]) -> str:
    """Why a term ends in which something is done."""
    try:
        async with asyncio.timeout(60), term as begun:
            await act(begun)
            await asyncio.Event().wait()
    except LeadershipLost as error:
        return str(error)
    raise AssertionError("the term goes on")


async def test_a_thread_finds_out_that_its_term_is_over(host: Host, kv: EtcdKv) -> None:
    with EtcdRenewal(host.endpoints, host.tls) as renewal:
        election = Election(kv, "/over", "a", renewal=renewal)
        taken = await lost(election.term(), lambda _: kv.txn([], [Delete("/over")]))
        assert "was deleted" in taken
        revoked = await lost(election.term(), lambda term: kv.revoke(term.held.lease))
        # The watch of the key notices first, or the thread that renews the lease.
        assert "was deleted" in revoked or "expired or was revoked" in revoked


async def test_a_thread_renews_past_an_endpoint_that_does_not_answer(
    host: Host, kv: EtcdKv
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        lease = await kv.grant(9)
        revision = await kv.txn([], [Put("/held", b"", lease)])
        with EtcdRenewal([url, *host.endpoints], host.tls) as renewal:
            renewed = await asyncio.to_thread(renewal.renew, lease, "/held", 60)
    assert renewed.create_revision == revision


async def test_a_killed_leader_is_followed_though_its_lease_lives(host: Host, kv: EtcdKv) -> None:
    """As after a change of etcd's leader, which renews all leases."""
    with EtcdRenewal(host.endpoints, host.tls) as renewal:
        held = await LeasedKey(kv, "/extended", b"a", ttl=60).acquire()
        keeper = Keeper(held, renewal, ttl=2, margin=0.3, announces=lambda: True)
        keeper.start()

        async def follow() -> int:
            async with Election(kv, "/extended", "b", ttl=2).term() as term:
                return term.revision

        async with (
            asyncio.timeout(60),
            asyncio.TaskGroup() as group,
            kv.watch("/extended", held.revision + 1) as changes,
        ):
            following = group.create_task(follow())
            for _ in range(5):
                [event] = (await anext(changes)).events
                assert event.entry is not None
                assert event.entry.value == b"a"
                assert event.entry.create_revision == held.revision
            keeper.stop()
            assert await following > held.revision
        assert await kv.keepalive(held.lease) > 0


class Wire:
    """A TCP proxy that can fall silent."""

    def __init__(self, target: str) -> None:
        self._host, self._port = target.removeprefix("https://").split(":")
        self._open = asyncio.Event()
        self._open.set()

    def cut(self) -> None:
        self._open.clear()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._copy(reader, far_writer))
            group.create_task(self._copy(far_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_a_leader_that_is_cut_off_stops_before_the_next_one_starts(
    host: Host, kv: EtcdKv
) -> None:
    wire = Wire(host.endpoints[0])
    elected = asyncio.Event()
    ended: list[str] = []

    async def lead(election: Election) -> None:
        async with election.term():
            elected.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("a")

    async def lose(election: Election) -> None:
        with pytest.raises(LeadershipLost, match="could not be renewed"):
            await lead(election)

    server = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    try:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with (
            asyncio.timeout(60),
            EtcdKv([url], host.tls, timeout=1.0) as own,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(lose(Election(own, "/cut", "a", ttl=4)))
            await elected.wait()
            wire.cut()
            async with Election(kv, "/cut", "b", ttl=4).term() as term:
                assert ended, "the first still leads"
                await kv.txn([term.guard], [Put("/led", b"")])
    finally:
        # Not waited for: since Python 3.12 that is for connections too, and one of them is cut.
        server.close()
