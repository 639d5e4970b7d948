# SPDX-License-Identifier: Apache-2.0
"""Runs an etcd member in a process of its own, for tests that share it or kill its supervisor.

As a script: `kvhost.py DATA_DIR` prints the member as one JSON line and ends when its standard
input does, so a test run that is killed takes the member along.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.manager.store.etcd_member import EtcdMember
from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.kv import Batch


@dataclass(frozen=True, slots=True)
class Host:
    """A supervisor that runs, and the member that it had at its start."""

    process: subprocess.Popen[bytes]
    endpoints: tuple[str, ...]
    tls: EtcdTls
    max_txn_ops: int
    first_pid: int

    def etcd_pid(self) -> int:
        """The member's process as of now: the child of its supervisor."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (pids := children.read_text().split()):
            continue
        return int(pids[0])


@contextmanager
def hosted(data_dir: Path) -> Iterator[Host]:
    """A supervisor with a ready member; ended (unless the test killed it) with the block."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline() or b"{}")
        assert said, "the supervisor did not start"
        yield Host(
            process,
            tuple(said["endpoints"]),
            EtcdTls(*map(Path, said["tls"])),
            said["max_txn_ops"],
            said["pid"],
        )
    finally:
        process.communicate()


async def next_of(changes: AsyncIterator[Batch]) -> Batch:
    """What a watch gives next."""
    async with asyncio.timeout(60):
        return await anext(changes)


async def main(data_dir: Path) -> None:
    async with EtcdMember(data_dir) as member:
        tls = member.tls
        said = {
            "endpoints": member.endpoints,
            "tls": [str(tls.ca), str(tls.cert), str(tls.key)],
            "max_txn_ops": member.max_txn_ops,
            "pid": member.pid,
        }
        print(json.dumps(said), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
