# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_channels import EtcdChannels
from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.kv import Guard, StoreError

MISSING = EtcdTls(Path("/no/ca.pem"), Path("/no/cert.pem"), Path("/no/key.pem"))


@pytest.mark.parametrize(
    ("endpoints", "tls", "words"),
    [
        ([], None, r"no etcd endpoint given \(check --etcd-endpoints\)"),
        (["10.0.0.1:2379"], None, "'10.0.0.1:2379' is not a URL such as https://"),
        (["ftp://10.0.0.1"], None, "is not a URL"),
        (["http://10.0.0.1:2379/v3"], None, "is not a URL"),
        (["http://"], None, "is not a URL"),
        (["http://10.0.0.1:port"], None, "is not a URL"),
        (["https://10.0.0.1:2379"], None, "needs a CA file, a certificate and a key"),
        (["http://10.0.0.1:2379"], MISSING, "is not https, but etcd certificates are given"),
        (["https://10.0.0.1:2379"], MISSING, "cannot read the etcd certificate file /no/ca.pem"),
    ],
)
def test_bad_endpoints_are_refused_in_words(
    endpoints: list[str], tls: EtcdTls | None, words: str
) -> None:
    with pytest.raises(StoreError, match=words):
        EtcdKv(endpoints, tls)


@pytest.mark.parametrize("revisions", [{}, {"mod_revision": 1, "create_revision": 1}])
def test_a_guard_compares_exactly_one_revision(revisions: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="guard of a: set exactly one revision"):
        Guard("a", **revisions)


async def test_a_call_that_is_cancelled_as_it_ends_is_cancelled() -> None:
    """As grpc.aio does it: the call's own task takes the cancellation for its end, and answers."""
    began = asyncio.Event()

    async def answers_all_the_same() -> str:
        began.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "answer"

    async def attempt(stubs: None) -> str:
        return await asyncio.ensure_future(answers_all_the_same())

    async with EtcdChannels[None](["http://127.0.0.1:1"], None, 2.0, lambda channel: None) as etcd:
        call = asyncio.ensure_future(etcd.call(attempt, repeatable=False))
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
