# SPDX-License-Identifier: Apache-2.0
"""Layers, and who fetches them for a node's store."""

from __future__ import annotations

import asyncio
from pathlib import Path

from imagekit import Layout, entry, tar

from orchestrator.agent.images.staging import FetchBlob, IncomingBlob

BASE = tar(entry("base", b"base" * 1000))
ONE = tar(entry("one", b"1"))
TWO = tar(entry("two", b"2"))


async def no_fetch(blob: IncomingBlob) -> None:
    raise AssertionError(f"{blob.digest} was fetched")


def fetch_of(layout: Layout, fetched: list[str]) -> FetchBlob:
    async def fetch(blob: IncomingBlob) -> None:
        fetched.append(blob.digest)
        await asyncio.sleep(0)
        blob.write(layout.path(blob.digest).read_bytes())

    return fetch


def left_over(root: Path) -> list[Path]:
    """What the store at `root` has half done."""
    return list((root / "tmp").iterdir())
