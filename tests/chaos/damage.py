# SPDX-License-Identifier: Apache-2.0
"""Faults that damage a file of a daemon while the daemon is dead.

The daemon goes on without the file, or refuses to start and says why. Then an operator does what
the documentation says: moves the state file away, puts a copy back, or replaces the manager.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from orchestrator.dev.devplan import DevError
from tests.chaos.faultplan import Planned
from tests.chaos.hosts import ORC, REPAIRED_WITHIN, NotThere, RunError, Testbed, send

META = 2 * 4096
"""Bytes of the first two pages of etcd's database (bbolt), without which it is no database."""

JOIN_PORT = 7421

WORDS = 16_384
"""Bytes at the end of a daemon's log in which its last words are looked for."""

Repair = Callable[[Testbed, str], Awaitable[None]]
"""What an operator does about it on a host."""

Damage = Callable[[Testbed, Planned], tuple[str, Repair]]
"""Damages a file; says which, and what is done about it later. Raises FileNotFoundError."""


@asynccontextmanager
async def corrupt(testbed: Testbed, planned: Planned) -> AsyncIterator[str]:
    """Damage a file of the first target, and repair it at the end."""
    (host,) = planned.targets
    if testbed.pid(host) is None:
        raise NotThere(f"{host} is off")
    await _stopped(testbed, host)
    try:
        name, repair = await asyncio.to_thread(DAMAGES[planned.detail], testbed, planned)
    except FileNotFoundError as error:
        # Its daemon was killed all the same: that is recorded.
        raise RunError(f"no {planned.detail}: {error.filename}") from error
    finally:
        await _started(testbed, host)
    try:
        yield name
    finally:
        await asyncio.shield(repair(testbed, host))


def _runs(testbed: Testbed, host: str) -> bool:
    """Whether the host's manager or agent runs."""
    dev = testbed.dev.host(host)
    daemon = dev.daemons().get(dev.plan.daemon)
    return daemon is not None and daemon.pid is not None


def last_words(testbed: Testbed, host: str) -> str:
    """Why the daemon of a host refuses to start, as it said itself; empty if it runs."""
    if _runs(testbed, host):
        return ""
    with testbed.dev.host(host).log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - WORDS))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if not line.startswith("time=")), "")


async def _stopped(testbed: Testbed, host: str) -> None:
    """Kill a host's daemon, and its etcd; neither is started again."""
    dev = testbed.dev.host(host)
    dev.signal(signal.SIGKILL, wanted=False)
    while _runs(testbed, host):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    while found := await asyncio.to_thread(testbed.find, host, "etcd"):
        for process in found:
            send(process.pid, signal.SIGKILL)
        await asyncio.sleep(0.02)


async def _started(testbed: Testbed, host: str) -> None:
    await asyncio.shield(asyncio.to_thread(testbed.dev.start, host))


async def _nothing(testbed: Testbed, host: str) -> None:
    """It goes on without the file."""


async def _replaced(testbed: Testbed, host: str) -> None:
    """Replace a manager: remove it at another one, delete its data, and join it again. Repeated
    while faults of others prevent it, but not for ever."""
    with suppress(TimeoutError):
        async with asyncio.timeout(REPAIRED_WITHIN):
            while True:
                if await _replaced_once(testbed, host):
                    return
                await asyncio.sleep(0.5)


async def _replaced_once(testbed: Testbed, host: str) -> bool:
    try:
        await asyncio.to_thread(_remove, testbed, host)
        await _stopped(testbed, host)
        await asyncio.to_thread(_join, testbed, host)
        await _started(testbed, host)
        return await _is_ready(testbed, host)
    except (RunError, DevError):
        return False


def _managers(testbed: Testbed) -> dict[str, str]:
    """Hostname of each manager → its state. Raises RunError."""
    rows = json.loads(testbed.orc("manager", "ls", "--format", "json"))
    return {row["hostname"]: row["state"] for row in rows}


def _remove(testbed: Testbed, host: str) -> None:
    if host in _managers(testbed):
        testbed.orc("manager", "rm", host)


def _join(testbed: Testbed, host: str) -> None:
    data = testbed.data(host)
    for each in data.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    token = testbed.orc("cluster", "token", "manager", "-q").strip()
    address = testbed.address(host)
    flags = ("--token", token, "--data-dir", str(data), "--address", address)
    refused = ""
    for other in testbed.manager_hosts:
        if other == host:
            continue
        to = f"{testbed.address(other)}:{JOIN_PORT}"
        words = testbed.dev.host(host).enter([ORC, "cluster", "join", *flags, to])
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60.0
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"{host} does not join {other} within {error.timeout:g} s") from error
        if done.returncode == 0:
            return
        refused = done.stderr.strip()
    raise RunError(f"{host} cannot join: {refused}")


async def _is_ready(testbed: Testbed, host: str) -> bool:
    """Whether a manager that joins becomes ready within a minute."""
    for _ in range(30):
        if (await asyncio.to_thread(_managers, testbed)).get(host) == "ready":
            return True
        await asyncio.sleep(2.0)
    return False


def _state(testbed: Testbed, planned: Planned) -> tuple[str, Repair]:
    """The state file of an agent, which the operator moves away."""
    data = testbed.data(planned.targets[0])

    async def moved_away(testbed: Testbed, host: str) -> None:
        await _stopped(testbed, host)
        for path in data.glob("state.db*"):
            path.unlink()
        await _started(testbed, host)

    with (data / "state.db").open("r+b") as file:
        file.write(b"damaged" * 512)
    for path in data.glob("state.db-*"):
        path.unlink()
    return "state.db", moved_away


def _volume(testbed: Testbed, planned: Planned) -> tuple[str, Repair]:
    """The record of a volume, which the agent moves aside."""
    folder = testbed.data(planned.targets[0]) / "volumes" / "by-name"
    records = sorted(folder.glob("*/volume.json"))
    if not records:
        raise FileNotFoundError(2, "no volume", str(folder))
    record = records[planned.number % len(records)]
    _halve(record)
    return str(record.relative_to(folder)), _nothing


def _database(testbed: Testbed, planned: Planned) -> tuple[str, Repair]:
    """Pages of the database of an etcd member."""
    path = testbed.data(planned.targets[0]) / "etcd" / "data" / "member" / "snap" / "db"
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(META)
        file.write((b"damaged" * size)[: size - META])
    return "snap/db", _replaced


def _log(testbed: Testbed, planned: Planned) -> tuple[str, Repair]:
    """Entries of the log of an etcd member: some that were acknowledged."""
    folder = testbed.data(planned.targets[0]) / "etcd" / "data" / "member" / "wal"
    segments = sorted(folder.glob("*.wal"))
    if not segments:
        raise FileNotFoundError(2, "no log", str(folder))
    # The file is allocated in advance: the rest is empty.
    used = len(segments[-1].read_bytes().rstrip(b"\0"))
    with segments[-1].open("r+b") as file:
        file.seek(used // 2)
        file.write((b"damaged" * 64)[: used // 2])
    return f"wal/{segments[-1].name}", _replaced


def _remade(name: str) -> Damage:
    """A file that the daemon goes on without."""

    def damage(testbed: Testbed, planned: Planned) -> tuple[str, Repair]:
        _halve(testbed.data(planned.targets[0]) / name)
        return name, _nothing

    return damage


def _restored(name: str) -> Damage:
    """A file that is part of the host's identity: the operator puts a copy back."""

    def damage(testbed: Testbed, planned: Planned) -> tuple[str, Repair]:
        path = testbed.data(planned.targets[0]) / name
        whole = path.read_bytes()

        async def put_back(testbed: Testbed, host: str) -> None:
            await _stopped(testbed, host)
            path.write_bytes(whole)
            await _started(testbed, host)

        _halve(path)
        return name, put_back

    return damage


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Damage] = {
    "state": _state,
    "volume": _volume,
    "node.json": _restored("node.json"),
    "database": _database,
    "log": _log,
    "manager.json": _restored("manager.json"),
    "membership.json": _restored("membership.json"),
    "audit": _remade("audit/audit.log"),
    "ports": _remade("etcd/ports.json"),
}
