# SPDX-License-Identifier: Apache-2.0
"""Writes to the etcd that a manager starts for itself, through the manager's own client."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.kv import Kv, Put
from tests.bench.tables import Table, median, seconds

PUTS = 300
CONCURRENT = 64
BURSTS = 20
TRANSACTION = 100
TRANSACTIONS = 50
_VALUE = b"x" * 400


@dataclass(frozen=True, slots=True)
class Store:
    """Seconds."""

    put: list[float]
    """Each of `PUTS` writes, one after the other."""
    burst: list[float]
    """`CONCURRENT` writes at once, until all are done."""
    transaction: list[float]
    """A transaction of `TRANSACTION` keys."""
    watch: list[float]
    """From before a write until a watch has shown it."""


async def measure(folder: Path) -> Store:
    """Start a member in `folder`, write to it, end it."""
    async with EtcdMember(_home(folder)) as member:
        kv = EtcdKv(member.endpoints, member.tls, max_txn_ops=member.max_txn_ops)
        async with kv:
            await _put(kv, "warm-up")
            return Store(
                put=[await _timed_put(kv, f"put/{number}") for number in range(PUTS)],
                burst=[await _burst(kv, number) for number in range(BURSTS)],
                transaction=[await _transaction(kv, number) for number in range(TRANSACTIONS)],
                watch=await _watched(kv),
            )


def _home(folder: Path) -> Path:
    return folder / "etcd"


async def _put(kv: Kv, key: str) -> int:
    return await kv.txn([], [Put(key, _VALUE)])


async def _timed_put(kv: Kv, key: str) -> float:
    began = time.perf_counter()
    await _put(kv, key)
    return time.perf_counter() - began


async def _burst(kv: Kv, number: int) -> float:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for index in range(CONCURRENT):
            group.create_task(_put(kv, f"burst/{number}/{index}"))
    return time.perf_counter() - began


async def _transaction(kv: Kv, number: int) -> float:
    began = time.perf_counter()
    await kv.txn([], [Put(f"txn/{number}/{index}", _VALUE) for index in range(TRANSACTION)])
    return time.perf_counter() - began


async def _watched(kv: Kv) -> list[float]:
    start = await _put(kv, "watched/0")
    took = []
    async with kv.watch("watched/", start + 1) as batches:
        for number in range(1, PUTS + 1):
            began = time.perf_counter()
            await _put(kv, f"watched/{number}")
            await anext(batches)
            took.append(time.perf_counter() - began)
    return took


def report(result: Store) -> Table:
    """Pure."""
    put, burst = median(result.put), median(result.burst)
    transaction = median(result.transaction)
    return Table(
        "The store: etcd on this disk, 400-byte values",
        ("what", "median", "keys per s"),
        (
            ("one write", seconds(put), f"{1 / put:,.0f}"),
            ("one write, until a watch shows it", seconds(median(result.watch)), ""),
            (f"{CONCURRENT} writes at once", seconds(burst), f"{CONCURRENT / burst:,.0f}"),
            (
                f"a transaction of {TRANSACTION}",
                seconds(transaction),
                f"{TRANSACTION / transaction:,.0f}",
            ),
        ),
    )
