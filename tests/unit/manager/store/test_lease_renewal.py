# SPDX-License-Identifier: Apache-2.0
"""A lease that a thread renews, and an event loop that is stuck."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from orchestrator.manager.store.kv import StoreUnavailable
from orchestrator.manager.store.lease_renewal import Held, Keeper, Renewed


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def renewing() -> bool:
    return any(thread.name == "lease" for thread in threading.enumerate())


class Store:
    """Renews whatever is held, while it answers."""

    def __init__(self) -> None:
        self.answers = True
        self.renewals = 0
        self.revision = 7
        """Create revision of the key; 0: it is gone."""
        self.threads: set[int] = set()

    def renew(self, lease: int, key: str, timeout: float, announce: int = 0) -> Renewed:
        self.renewals += 1
        self.threads.add(threading.get_ident())
        if not self.answers:
            raise StoreUnavailable("no answer")
        return Renewed(1.0, self.revision)


@contextmanager
def keeping(store: Store, *, stuck_after: float = 60.0) -> Iterator[Keeper]:
    held = Held("/leader", 7, 1, time.monotonic() + 1.0)
    keeper = Keeper(held, store, ttl=0.3, margin=0.05, stuck_after=stuck_after)
    keeper.start()
    yield keeper
    keeper.stop()


async def test_a_store_that_does_not_answer_loses_the_lease() -> None:
    store = Store()
    store.answers = False
    with keeping(store) as keeper:
        async with asyncio.timeout(60):
            assert await keeper.wait() == "the lease could not be renewed in time"
    assert threading.get_ident() not in store.threads


@pytest.mark.parametrize(
    ("revision", "reason"), [(0, "the key was deleted"), (8, "another process holds the key")]
)
async def test_the_reason_of_a_loss_is_what_the_key_has_become(revision: int, reason: str) -> None:
    store = Store()
    store.revision = revision
    with keeping(store) as keeper:
        async with asyncio.timeout(60):
            assert await keeper.wait() == reason


async def test_a_new_holder_announces_itself_at_once() -> None:
    store = Store()
    keeper = Keeper(Held("/leader", 7, 1, time.monotonic() + 600.0), store, ttl=600.0, margin=0.05)
    keeper.start()
    await until(lambda: store.renewals >= 3)
    keeper.stop()


async def test_a_request_that_is_never_answered_does_not_lose_the_lease() -> None:
    """As one that a member of etcd has forwarded to a leader that then died."""
    store = Store()
    stuck = threading.Event()
    renew = store.renew

    def first_is_stuck(lease: int, key: str, timeout: float, announce: int = 0) -> Renewed:
        if store.renewals == 3:
            store.renewals += 1
            stuck.wait(60)
        return renew(lease, key, timeout, announce)

    store.renew = first_is_stuck  # type: ignore[method-assign]
    with keeping(store) as keeper:
        lost = asyncio.ensure_future(keeper.wait())
        await until(lambda: store.renewals > 10 or lost.done())
        assert not lost.done()
        lost.cancel()
    stuck.set()


async def test_a_stuck_event_loop_loses_the_lease() -> None:
    def stuck() -> None:
        while renewing():
            time.sleep(0.01)

    with keeping(Store(), stuck_after=0.5) as keeper:
        stuck()
        async with asyncio.timeout(60):
            assert (await keeper.wait()).startswith("the event loop has not run for")


async def test_nothing_is_renewed_once_the_term_is_over() -> None:
    store = Store()
    with keeping(store):
        await until(lambda: store.renewals > 2)
    await until(lambda: not renewing())
