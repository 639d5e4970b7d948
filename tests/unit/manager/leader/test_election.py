# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from virtualtime import VirtualTime, settle

from orchestrator.manager.leader.election import Election, LeadershipLost, Term
from orchestrator.manager.store.kv import Batch, Conflict, Delete, Put, StoreUnavailable
from orchestrator.manager.store.lease_renewal import Held
from orchestrator.manager.store.leased_key import LeasedKey
from orchestrator.manager.store.memory import MemoryKv, Phase, Verb

KEY = "/orc/leader"


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def kv(time: VirtualTime) -> MemoryKv:
    kv = MemoryKv(time)
    time.on_change = kv.tick
    return kv


class Contender:
    """Leads whenever it can, and keeps a record."""

    def __init__(
        self,
        kv: MemoryKv,
        time: VirtualTime,
        name: str,
        ttl: float = 3.0,
        extended: float = 0.0,
    ) -> None:
        self.extended = extended
        self.election = Election(
            kv,
            KEY,
            name,
            ttl=ttl,
            extended_ttl=lambda: self.extended,
            clock=time,
            sleep=time.sleep,
        )
        self.time = time
        self.term: Term | None = None
        self.lost: list[tuple[float, str]] = []

    async def run(self) -> None:
        while True:
            try:
                async with self.election.term() as self.term:
                    await asyncio.Event().wait()
            except LeadershipLost as error:
                self.lost.append((self.time(), str(error)))
            finally:
                self.term = None


@asynccontextmanager
async def running(*contenders: Contender) -> AsyncIterator[list[asyncio.Task[None]]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(contender.run()) for contender in contenders]
        await settle()
        yield tasks
        for task in tasks:
            task.cancel()


def unavailable(verb: Verb, phase: Phase) -> None:
    raise StoreUnavailable("etcd does not answer")


def nothing(verb: Verb, phase: Phase) -> None:
    pass


async def test_the_first_leads_and_its_guard_lets_it_write(kv: MemoryKv, time: VirtualTime) -> None:
    election = Election(kv, KEY, "a", clock=time, sleep=time.sleep)
    assert await election.leader() is None
    async with election.term() as term:
        assert await election.leader() == "a"
        assert term.identity == "a"
        await kv.txn([term.guard], [Put("x", b"")])
    assert await election.leader() is None
    with pytest.raises(Conflict):
        await kv.txn([term.guard], [Put("x", b"")])


async def test_the_next_one_leads_when_the_first_resigns(kv: MemoryKv, time: VirtualTime) -> None:
    a, b = Contender(kv, time, "a"), Contender(kv, time, "b")
    async with running(a) as (first,), running(b):
        await time.pass_(30)
        assert a.term is not None
        assert b.term is None
        revision = a.term.revision
        first.cancel()
        await settle()
        assert b.term is not None
        assert b.term.revision > revision
        assert await b.election.leader() == "b"


async def test_a_silent_store_ends_the_term_before_the_lease_ends(
    kv: MemoryKv, time: VirtualTime
) -> None:
    a = Contender(kv, time, "a")
    async with running(a):
        await time.pass_(10)
        kv.fault = unavailable
        start = time()
        await time.pass_(5)
        assert [reason for _, reason in a.lost] == ["the lease could not be renewed in time"]
        assert a.lost[0][0] <= start + 3.0 - 0.5
        assert a.term is None
        kv.fault = nothing
        await time.pass_(5)
        assert a.term is not None, "it leads again once the store is back"


async def test_a_short_outage_does_not_end_the_term(kv: MemoryKv, time: VirtualTime) -> None:
    a = Contender(kv, time, "a")
    async with running(a):
        term = a.term
        for _ in range(5):
            await time.pass_(7)
            kv.fault = unavailable
            await time.pass_(1.2)
            kv.fault = nothing
        assert a.term is term
        assert a.lost == []


async def test_a_longer_lease_outlives_a_longer_outage(kv: MemoryKv, time: VirtualTime) -> None:
    a = Contender(kv, time, "a", ttl=30)
    async with running(a):
        term = a.term
        await time.pass_(12)
        kv.fault = unavailable
        await time.pass_(14)
        kv.fault = nothing
        await time.pass_(20)
        assert a.term is term
        kv.fault = unavailable
        start = time()
        await time.pass_(30)
        assert [reason for _, reason in a.lost] == ["the lease could not be renewed in time"]
        assert a.lost[0][0] <= start + 30 - 5


async def test_a_term_goes_on_when_its_lease_becomes_shorter_or_longer(
    kv: MemoryKv, time: VirtualTime
) -> None:
    a, b = Contender(kv, time, "a", extended=10.0), Contender(kv, time, "b")
    async with running(a):
        term = a.term
        kv.fault = unavailable
        await time.pass_(8)
        kv.fault = nothing
        await time.pass_(3)
        assert a.term is term, "the long lease outlives a long outage"
        a.extended = 0.0
        kv.fault = unavailable
        await time.pass_(2)
        kv.fault = nothing
        async with running(b):
            await time.pass_(3)
            assert a.term is term
            assert term is not None
            await kv.txn([term.guard], [Put("x", b"")])
            kv.fault = unavailable
            start = time()
            await time.pass_(3)
            assert a.lost[0][0] <= start + 3.0 - 0.5, "the short lease ends soon"
            kv.fault = nothing
            await time.pass_(1)
            assert (a.term is None) != (b.term is None)


async def test_an_exchange_whose_answer_was_lost_keeps_the_term(
    kv: MemoryKv, time: VirtualTime
) -> None:
    lost: list[Verb] = []

    def lose(verb: Verb, phase: Phase) -> None:
        if verb == "txn" and phase == "after":
            lost.append(verb)
            raise StoreUnavailable("no answer in time")

    a = Contender(kv, time, "a", extended=10.0)
    async with running(a) as (task,):
        term = a.term
        a.extended = 0.0
        kv.fault = lose
        await time.pass_(1.5)
        assert lost
        kv.fault = nothing
        await time.pass_(60)
        assert a.term is term
        task.cancel()
        await settle()
        assert await kv.get(KEY) is None, "no lease that was tried holds the key"


async def test_a_revoked_lease_ends_the_term(kv: MemoryKv, time: VirtualTime) -> None:
    a = Contender(kv, time, "a")
    async with running(a):
        assert a.term is not None
        await kv.revoke(a.term.held.lease)
        await settle()
        assert a.lost == [(time(), "the leader's key was deleted")]


async def test_a_lease_that_expires_when_its_holder_gives_up_ends_the_term(
    time: VirtualTime,
) -> None:
    drift = 0.0
    kv = MemoryKv(lambda: time() + drift)
    time.on_change = kv.tick
    a = Contender(kv, time, "a")
    async with running(a):
        kv.fault = unavailable
        # The store's clock is ahead by the margin: the key is deleted in the same instant.
        drift = 0.5
        await time.pass_(2.5)
        assert [at for at, _ in a.lost] == [time()]
        kv.fault = nothing
        await time.pass_(0.5)
        assert a.term is not None


async def test_removed_key_ends_the_term(kv: MemoryKv, time: VirtualTime) -> None:
    a, b = Contender(kv, time, "a"), Contender(kv, time, "b")
    async with running(a), running(b):
        await kv.txn([], [Delete(KEY)])
        await settle()
        assert a.lost == [(time(), "the leader's key was deleted")]
        assert b.term is not None


async def test_the_key_of_an_earlier_self_is_not_waited_for(
    kv: MemoryKv, time: VirtualTime
) -> None:
    killed = await LeasedKey(kv, KEY, b"a", clock=time, sleep=time.sleep).acquire()
    async with Election(kv, KEY, "a", clock=time, sleep=time.sleep).term() as term:
        assert term.revision > killed.revision
        with pytest.raises(Conflict):
            await kv.txn([killed.guard], [Put("x", b"")])


async def test_the_key_of_a_killed_leader_is_waited_for(kv: MemoryKv, time: VirtualTime) -> None:
    await LeasedKey(kv, KEY, b"killed", clock=time, sleep=time.sleep).acquire()
    b = Contender(kv, time, "b")
    async with running(b):
        await time.pass_(2.9)
        assert b.term is None
        await time.pass_(0.2)
        assert b.term is not None


async def announce(
    kv: MemoryKv, time: VirtualTime, held: Held, times: int, every: float = 1.0
) -> None:
    for _ in range(times):
        await time.pass_(every)
        await kv.txn([held.guard], [Put(KEY, b"a", held.lease)])


async def killed_leader(kv: MemoryKv, time: VirtualTime) -> Held:
    """The key of a leader whose lease outlives it."""
    return await LeasedKey(kv, KEY, b"a", ttl=1000, clock=time, sleep=time.sleep).acquire()


@pytest.mark.parametrize("announcements", [2, 10])
async def test_a_leader_that_announces_itself_no_longer_is_not_waited_for(
    kv: MemoryKv, time: VirtualTime, announcements: int
) -> None:
    killed = await killed_leader(kv, time)
    b = Contender(kv, time, "b")
    async with running(b):
        await announce(kv, time, killed, announcements)
        await time.pass_(2.9)
        assert b.term is None
        await time.pass_(0.2)
        assert b.term is not None


async def test_a_leader_that_never_announced_itself_is_waited_for(
    kv: MemoryKv, time: VirtualTime
) -> None:
    killed = await killed_leader(kv, time)
    b = Contender(kv, time, "b")
    async with running(b):
        await announce(kv, time, killed, 1)  # its lease was exchanged
        await time.pass_(900)
        assert b.term is None


async def test_a_leader_with_a_longer_lease_may_be_silent_for_longer(
    kv: MemoryKv, time: VirtualTime
) -> None:
    killed = await killed_leader(kv, time)
    b = Contender(kv, time, "b")
    async with running(b):
        await announce(kv, time, killed, 5, every=4.0)
        await time.pass_(11.9)
        assert b.term is None
        await time.pass_(0.2)
        assert b.term is not None


async def test_a_candidate_that_sees_nothing_any_more_does_not_depose_the_leader(
    kv: MemoryKv, time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = await killed_leader(kv, time)
    watch = kv.watch

    @asynccontextmanager
    async def deaf(prefix: str, start: int) -> AsyncIterator[AsyncIterator[Batch]]:
        async def first_ones(batches: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
            for _ in range(5):
                yield await anext(batches)
            await asyncio.Event().wait()

        async with watch(prefix, start) as batches:
            yield first_ones(batches)

    monkeypatch.setattr(kv, "watch", deaf)
    b = Contender(kv, time, "b")
    async with running(b):
        await announce(kv, time, leader, 20)
        assert b.term is None
        assert await b.election.leader() == "a"


async def test_a_longer_key_belongs_to_another_candidate(kv: MemoryKv, time: VirtualTime) -> None:
    await kv.txn([], [Put(KEY + "-of-another", b"z")])
    async with Election(kv, KEY, "a", clock=time, sleep=time.sleep).term() as term:
        assert term.identity == "a"


async def test_an_election_whose_answer_was_lost_is_held_again(
    kv: MemoryKv, time: VirtualTime
) -> None:
    lost = iter([True])

    def lose_one_answer(verb: Verb, phase: Phase) -> None:
        if verb == "txn" and phase == "after" and next(lost, False):
            raise StoreUnavailable("the answer was lost")

    kv.fault = lose_one_answer
    a = Contender(kv, time, "a")
    async with running(a):
        await time.pass_(1)
        assert a.term is not None
        assert await a.election.leader() == "a"


async def test_the_body_s_failure_comes_out_as_it_is_and_resigns(
    kv: MemoryKv, time: VirtualTime
) -> None:
    election = Election(kv, KEY, "a", clock=time, sleep=time.sleep)
    with pytest.raises(LookupError, match="mine"):
        async with election.term():
            raise LookupError("mine")
    assert await election.leader() is None


async def test_a_margin_must_leave_some_of_the_term(kv: MemoryKv) -> None:
    with pytest.raises(ValueError, match="margin"):
        Election(kv, KEY, "a", ttl=1, margin=1)


@pytest.mark.parametrize("seed", range(20))
async def test_never_two_leaders_by_their_own_clocks(
    kv: MemoryKv, time: VirtualTime, seed: int
) -> None:
    """Faults of all kinds, at random: a term may be lost, but no two overlap."""
    dice = random.Random(seed)
    rate = [0.0]

    def at_random(verb: Verb, phase: Phase) -> None:
        if dice.random() < rate[0]:
            raise StoreUnavailable("bad luck")

    kv.fault = at_random
    contenders = [Contender(kv, time, name) for name in "abc"]
    led = set()
    async with running(*contenders):
        for _ in range(200):
            rate[0] = dice.choice((0.0, 0.3, 0.7, 1.0))
            await time.pass_(dice.uniform(0.05, 1.0))
            leading = [
                (contender.term.identity, contender.term.revision)
                for contender in contenders
                if contender.term is not None and time() < contender.term.held.deadline
            ]
            assert len(leading) <= 1
            led.update(leading)
        rate[0] = 0.0
        await time.pass_(10)
        assert sum(contender.term is not None for contender in contenders) == 1
    assert len({identity for identity, _ in led}) > 1


async def test_a_cancelled_candidate_leaves_no_key(kv: MemoryKv, time: VirtualTime) -> None:
    a, b = Contender(kv, time, "a"), Contender(kv, time, "b")
    async with running(a), running(b):
        await time.pass_(1)
    assert await a.election.leader() is None
