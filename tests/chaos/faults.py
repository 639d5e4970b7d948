# SPDX-License-Identifier: Apache-2.0
"""Injecting faults into the hosts of a dev cluster, and taking them back."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from orchestrator.dev.devplan import DevError
from tests.chaos.damage import corrupt, last_words
from tests.chaos.faultplan import REPLACED, Planned
from tests.chaos.history import Fault
from tests.chaos.hosts import CLOCK, REPAIRED_WITHIN, NotThere, RunError, Testbed, command, send
from tests.chaos.recorder import Recorder

API_PORT, PEER_PORT = 7420, 7425

EXCLUSIVE = frozenset({"power", "corrupt"})
"""Kinds of faults that need a host for themselves."""

FILLER = "filler"
"""The file that fills a disk."""

Action = Callable[[Testbed, Planned], AbstractAsyncContextManager[str]]
"""Injects a fault when it is entered, removes the cause when it is left; says what was hit."""


class Injector:
    """Runs the plan. A fault that takes a host down, or damages its files, excludes others of that
    host."""

    def __init__(self, testbed: Testbed, recorder: Recorder, say: Callable[[str], None]) -> None:
        self._testbed = testbed
        self._recorder = recorder
        self._say = say
        self._alone: set[str] = set()
        """Hosts with a fault that excludes others."""
        self.count = 0
        """Of the faults that were injected."""

    async def run(self, plan: Sequence[Planned]) -> None:
        """Inject all, each at its time; returns when the last has ended."""
        began = self._recorder.now()
        async with asyncio.TaskGroup() as group:
            for planned in plan:
                await asyncio.sleep(max(0.0, began + planned.at - self._recorder.now()))
                group.create_task(self._one(planned))

    async def _one(self, planned: Planned) -> None:
        alone = set(planned.targets)
        if planned.detail in REPLACED:
            # The loss of two members of three is the loss of the quorum for good.
            alone.add("member")
        if alone & self._alone:
            return
        if planned.kind not in EXCLUSIVE:
            alone.clear()
        self._alone |= alone
        began = self._recorder.now()
        try:
            async with ACTIONS[planned.kind](self._testbed, planned) as hit:
                self._say(
                    f"{began:7.1f} #{planned.number} {planned.kind} {planned.detail} "
                    f"{' '.join(planned.targets)} for {planned.seconds:g} s {hit}"
                )
                await asyncio.sleep(planned.seconds)
                if planned.kind == "corrupt":
                    hit += f": {last_words(self._testbed, planned.targets[0])}"
        except (NotThere, RunError, DevError) as error:
            self._say(f"{began:7.1f} #{planned.number} {planned.kind}: {error}")
            if isinstance(error, NotThere):
                return
            hit = str(error)
        finally:
            self._alone -= alone
        self.count += 1
        self._recorder.add(
            Fault(
                f"{planned.kind} {planned.detail}".strip(),
                planned.targets,
                began,
                self._recorder.now(),
                planned.kills,
                planned.cuts,
                planned.slows,
                f"#{planned.number} {hit}",
            )
        )


def _pick(testbed: Testbed, planned: Planned) -> int:
    found = testbed.find(planned.targets[0], planned.detail)
    if not found:
        raise NotThere(f"no {planned.detail} on {planned.targets[0]}")
    return random.Random(planned.number).choice(sorted(each.pid for each in found))


@asynccontextmanager
async def _kill(testbed: Testbed, planned: Planned) -> AsyncIterator[str]:
    pid = _pick(testbed, planned)
    send(pid, signal.SIGKILL)
    yield f"pid {pid}"


@asynccontextmanager
async def _freeze(testbed: Testbed, planned: Planned) -> AsyncIterator[str]:
    pid = _pick(testbed, planned)
    send(pid, signal.SIGSTOP)
    try:
        yield f"pid {pid}"
    finally:
        send(pid, signal.SIGCONT)


@asynccontextmanager
async def _power(testbed: Testbed, planned: Planned) -> AsyncIterator[str]:
    (host,) = planned.targets
    await asyncio.to_thread(testbed.dev.kill, host)
    try:
        yield ""
    finally:
        await asyncio.shield(asyncio.to_thread(testbed.dev.start, host))


def _table(planned: Planned) -> str:
    return f"chaos_{planned.number}"


@asynccontextmanager
async def _rules(
    testbed: Testbed, planned: Planned, arriving: str, leaving: str
) -> AsyncIterator[str]:
    """Rules at the edge of the first target's network; a reboot of the host ends them, too."""
    host, table = planned.targets[0], _table(planned)
    script = f"""
        table inet {table} {{
            chain arriving {{
                type filter hook prerouting priority -400;
                {arriving}
            }}
            chain leaving {{
                type filter hook postrouting priority -400;
                {leaving}
            }}
        }}
        """
    try:
        await asyncio.to_thread(testbed.run, host, "nft", "-f", "-", stdin=script)
    except RunError as error:
        raise NotThere(str(error)) from error
    try:
        yield ""
    finally:
        with suppress(RunError):
            await asyncio.to_thread(testbed.run, host, "nft", "delete", "table", "inet", table)


def _directions(planned: Planned, arriving: str, leaving: str) -> tuple[str, str]:
    return (
        arriving if planned.detail in ("both", "in") else "",
        leaving if planned.detail in ("both", "out") else "",
    )


def _isolate(testbed: Testbed, planned: Planned) -> AbstractAsyncContextManager[str]:
    rules = _directions(planned, "iifname eth0 drop", "oifname eth0 drop")
    return _rules(testbed, planned, *rules)


def _between(testbed: Testbed, planned: Planned) -> AbstractAsyncContextManager[str]:
    if len(planned.targets) < 2:
        return _isolate(testbed, planned)
    other = testbed.address(planned.targets[1])
    rules = _directions(planned, f"ip saddr {other} drop", f"ip daddr {other} drop")
    return _rules(testbed, planned, *rules)


def _sessions(testbed: Testbed, planned: Planned) -> AbstractAsyncContextManager[str]:
    manager = testbed.address(planned.targets[1])
    arriving = f"ip saddr {manager} tcp sport {API_PORT} drop"
    leaving = f"ip daddr {manager} tcp dport {API_PORT} drop"
    return _rules(testbed, planned, *_directions(planned, arriving, leaving))


def _peers(testbed: Testbed, planned: Planned) -> AbstractAsyncContextManager[str]:
    """Both as a server and as a client of other members."""
    both = f"tcp dport {PEER_PORT} drop; tcp sport {PEER_PORT} drop"
    return _rules(testbed, planned, f"iifname eth0 {both}", f"oifname eth0 {both}")


def _loss(testbed: Testbed, planned: Planned) -> AbstractAsyncContextManager[str]:
    some = f"numgen random mod 100 < {planned.detail} drop"
    return _rules(testbed, planned, f"iifname eth0 {some}", f"oifname eth0 {some}")


@asynccontextmanager
async def _slow(testbed: Testbed, planned: Planned) -> AsyncIterator[str]:
    """A narrow link, on which packets queue: they come late, and then not at all."""
    (host,) = planned.targets
    shape = ("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf")
    limits = ("rate", planned.detail, "burst", "16kb", "latency", "400ms")
    try:
        await asyncio.to_thread(testbed.run, host, *shape, *limits)
    except RunError as error:
        raise NotThere(str(error)) from error
    try:
        yield ""
    finally:
        with suppress(RunError):
            await asyncio.to_thread(testbed.run, host, "tc", "qdisc", "del", "dev", "eth0", "root")


@asynccontextmanager
async def _disk(testbed: Testbed, planned: Planned) -> AsyncIterator[str]:
    (host,) = planned.targets
    filler = testbed.disk(host) / FILLER

    def fill() -> None:
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            free = os.statvfs(filler.parent)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize)
            while True:
                file.write(bytes(1 << 12))

    try:
        await asyncio.to_thread(fill)
        yield ""
    finally:
        filler.unlink(missing_ok=True)


@asynccontextmanager
async def _quota(testbed: Testbed, planned: Planned) -> AsyncIterator[str]:
    """The alarm that a member raises when its database has reached the quota. There is room, so the
    leader disarms it, too, within ten seconds."""
    try:
        await _alarm(testbed, planned.targets[0], "raise")
        yield ""
    finally:
        # Also an alarm whose answer was lost.
        await _clear_alarm(testbed)


async def _clear_alarm(testbed: Testbed) -> None:
    """Any member takes it back, as an operator does, as soon as one answers. If none does, the
    cluster is left to be judged as it is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(REPAIRED_WITHIN):
            while True:
                for host in testbed.manager_hosts:
                    with suppress(NotThere):
                        await _alarm(testbed, host, "clear")
                        return
                await asyncio.sleep(0.5)


async def _alarm(testbed: Testbed, host: str, verb: str) -> None:
    pid = testbed.pid(host)
    if pid is None:
        raise NotThere(f"{host} is off")
    words = ("nsenter", "-t", str(pid), "-n", sys.executable, "-m", "tests.chaos.etcdalarm")
    answer = await command((*words, str(testbed.data(host) / "etcd"), verb), 10.0)
    if answer.status != 0:
        raise NotThere(f"etcd of {host}: {answer.err.strip()[-200:]}")


@asynccontextmanager
async def _clock(testbed: Testbed, planned: Planned) -> AsyncIterator[str]:
    """Step the wall clock of a host's daemons, and step it back."""
    (host,) = planned.targets
    if not set_clock(testbed, host, planned.detail):
        raise NotThere(f"{host} is off")
    try:
        yield ""
    finally:
        set_clock(testbed, host, "+0")


def set_clock(testbed: Testbed, host: str, offset: str) -> bool:
    """Let a host's wall clock be so many seconds off; False if the host is off."""
    pid = testbed.pid(host)
    if pid is None:
        return False
    place = Path(f"/proc/{pid}/root{CLOCK}")
    draft = place.with_suffix(".new")
    try:
        draft.write_text(offset)
        draft.replace(place)
    except OSError:
        return False
    return True


ACTIONS: dict[str, Action] = {
    "kill": _kill,
    "freeze": _freeze,
    "power": _power,
    "isolate": _isolate,
    "between": _between,
    "sessions": _sessions,
    "peers": _peers,
    "loss": _loss,
    "slow": _slow,
    "disk": _disk,
    "quota": _quota,
    "corrupt": corrupt,
    "clock": _clock,
}


def peer_port(testbed: Testbed, host: str) -> int:
    """The port on which a host's etcd listens for its peers."""
    return int(json.loads((testbed.data(host) / "etcd" / "ports.json").read_text())["peer"])
