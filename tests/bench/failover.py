# SPDX-License-Identifier: Apache-2.0
"""The loss of the leader: how long three managers take to decide, write and have all agents again.

Each round disturbs the host of the leading manager (manager and etcd, or the whole host) and
measures from that moment, by calls of the two other managers, each with a connection that was
there before:

- *write*: until a write that began after the moment is answered. One begins every `PACE` seconds.
- *decision*: until a task of a service, created with the first write that is answered, has a node.
- *sessions*: until the last agent that had its session with the lost manager has one elsewhere, by
  the agents' logs.

Then the host is repaired, and the next round begins once all managers and agents are ready. etcd's
leader may or may not be on the host; the table says in how many rounds it was.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc

from orchestrator.dev.devcluster import ROOT, DevCluster
from orchestrator.pb import (
    control_pb2,
    control_pb2_grpc,
    managers_pb2,
    managers_pb2_grpc,
    types_pb2,
)
from tests.bench.cluster import MANAGERS, NODES, BenchError, Cluster, channel, service_spec
from tests.bench.processes import descendants, say
from tests.bench.tables import Table, at_most, median, seconds

ROUNDS = 30
"""Of each kind of loss."""
PACE = 0.05
"""Seconds between the beginnings of two writes."""
DECISION, SESSIONS, WRITE, HAND_OVER = 5.0, 2.0, 2.0, 1.0
"""Targets for the worst round, in seconds."""
_WITHIN = 30.0
_REPAIRED = 60.0
_SETTLED = 1.0
"""Seconds that the repaired cluster is left alone before the next round."""

_SESSION = re.compile(r'^time=(\S+) .*msg="session opened" manager=(\S+)', re.M)


@dataclass(slots=True)
class Rounds:
    """Seconds of each round of one kind of loss."""

    decision: list[float] = field(default_factory=list)
    write: list[float] = field(default_factory=list)
    sessions: list[float] = field(default_factory=list)
    with_etcd_leader: list[bool] = field(default_factory=list)


@dataclass(slots=True)
class Failover:
    """What was measured, by the kind of loss."""

    losses: dict[str, Rounds] = field(default_factory=dict)
    hand_over: list[float] = field(default_factory=list)
    """`orc manager step-down`: from its call until a service created with it has a task placed."""


@dataclass(frozen=True, slots=True)
class Manager:
    """One manager, by a connection that stays."""

    host: str
    endpoint: str
    control: Any
    managers: Any


@contextmanager
def _killed(dev: DevCluster, host: str) -> Iterator[None]:
    """SIGKILL for the manager, which is not restarted, and for its etcd."""
    etcd = _etcd(dev, host)
    dev.host(host).signal(signal.SIGKILL, wanted=False)
    os.kill(etcd, signal.SIGKILL)
    _await_state(etcd, "ZX")
    try:
        yield
    finally:
        dev.start(host)


@contextmanager
def _stopped(dev: DevCluster, host: str) -> Iterator[None]:
    """SIGSTOP for both: connections stay and are silent."""
    etcd = _etcd(dev, host)
    dev.host(host).signal(signal.SIGSTOP)
    os.kill(etcd, signal.SIGSTOP)
    _await_state(etcd, "T")
    try:
        yield
    finally:
        os.kill(etcd, signal.SIGCONT)
        dev.host(host).signal(signal.SIGCONT)


@contextmanager
def _powered_off(dev: DevCluster, host: str) -> Iterator[None]:
    """The host is gone, and with it its end of all connections, without a word."""
    dev.kill(host)
    try:
        yield
    finally:
        dev.start(host)


@contextmanager
def _partitioned(dev: DevCluster, host: str) -> Iterator[None]:
    """The host reaches no other one, and none reaches it."""
    dev.partition([host])
    try:
        yield
    finally:
        dev.heal()


def _await_state(pid: int, states: str) -> None:
    """Until the kernel has carried out a signal: a process may answer until then."""
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in states:
            time.sleep(0.001)


def _etcd(dev: DevCluster, host: str) -> int:
    init = dev.host(host).pid()
    found = [each.pid for each in descendants(init or 0) if each.program == "etcd"]
    if len(found) != 1:
        raise BenchError(f"{host} runs {len(found)} processes of etcd instead of one")
    return found[0]


LOSSES = {
    "SIGKILL": _killed,
    "SIGSTOP": _stopped,
    "power lost": _powered_off,
    "partition": _partitioned,
}


async def measure(cluster: Cluster, rounds: int = ROUNDS) -> Failover:
    """Measure; kinds of loss take turns. Raises BenchError when the cluster does not recover."""
    result = Failover({name: Rounds() for name in LOSSES})
    async with _connected(cluster.name) as managers:
        for number in range(rounds):
            for name in LOSSES:
                await _lose_leader(cluster, managers, name, f"r{number}", result.losses[name])
            await _hand_over(managers, f"step{number}", result.hand_over)
            say(f"failover: round {number + 1} of {rounds}: {_newest(result)}")
    return result


def _newest(result: Failover) -> str:
    parts = [
        f"{name} {'*' if each.with_etcd_leader[-1] else ''}decision {each.decision[-1]:.2f} "
        f"write {each.write[-1]:.2f} sessions {[round(one, 2) for one in each.sessions[-1:]]}"
        for name, each in result.losses.items()
    ]
    return "; ".join([*parts, f"hand-over {result.hand_over[-1]:.2f}"])


@asynccontextmanager
async def _connected(name: str) -> Any:
    """A connection to each manager: host → manager."""
    plan = DevCluster(name).plan
    async with AsyncExitStack() as stack:
        found = {}
        for number in range(1, MANAGERS + 1):
            host = f"manager{number}"
            endpoint = f"{plan.host(host).address}:7420"
            connection = await stack.enter_async_context(channel(name, endpoint))
            found[host] = Manager(
                host,
                endpoint,
                control_pb2_grpc.ControlStub(connection),
                managers_pb2_grpc.ManagersStub(connection),
            )
        yield found


async def _lose_leader(
    cluster: Cluster, managers: dict[str, Manager], name: str, tag: str, result: Rounds
) -> None:
    leader, etcd_leader = await _repaired(managers)
    others = [each for host, each in managers.items() if host != leader]
    lost = managers[leader].endpoint

    async def with_leader() -> list[str]:
        return [host for host, (_, manager) in _sessions(cluster.name).items() if manager == lost]

    had = await _until(with_leader)  # a manager that has returned gets some after a while
    dev = DevCluster(cluster.name)
    service = f"{tag}-{name.lower().replace(' ', '-')}"
    wall, began = time.time(), time.monotonic()
    with LOSSES[name](dev, leader):
        writer = await _first_write(others, service)
        result.write.append(time.monotonic() - began)
        await _placed(writer, service)
        result.decision.append(time.monotonic() - began)
        result.sessions.append(await _sessions_elsewhere(cluster.name, had, lost, wall))
        result.with_etcd_leader.append(etcd_leader == leader)
    await _repaired(managers)
    await _remove(managers, service)


async def _hand_over(managers: dict[str, Manager], service: str, result: list[float]) -> None:
    leader, _ = await _repaired(managers)
    other = next(each for host, each in managers.items() if host != leader)
    began = time.monotonic()
    request = managers_pb2.StepDownRequest()
    stepping = asyncio.ensure_future(other.managers.StepDown(request, timeout=_WITHIN))
    try:
        await _placed(other, service)
        result.append(time.monotonic() - began)
    finally:
        await stepping
    await _remove(managers, service)


async def _first_write(managers: Sequence[Manager], tag: str) -> Manager:
    """Begin writes until the first is answered; the manager that did. Each changes something: what
    changes nothing is not written."""
    pending: set[asyncio.Task[Manager]] = set()
    deadline = time.monotonic() + _WITHIN
    number = 0
    try:
        while time.monotonic() < deadline:
            manager = managers[number % len(managers)]
            pending.add(asyncio.ensure_future(_write(manager, number, tag)))
            number += 1
            done, pending = await asyncio.wait(
                pending, timeout=PACE, return_when=asyncio.FIRST_COMPLETED
            )
            for each in done:
                if each.exception() is None:
                    return each.result()
    finally:
        for each in pending:
            each.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    raise BenchError(f"no write was possible for {_WITHIN:.0f} s")


async def _write(manager: Manager, number: int, tag: str) -> Manager:
    request = control_pb2.UpdateNodeRequest(
        node=f"node{number % NODES + 1}", label_add={"write": f"{tag}-{number}"}
    )
    try:
        await manager.control.UpdateNode(request, timeout=_WITHIN)
    except grpc.aio.AioRpcError:
        await asyncio.sleep(PACE)  # a manager that is refused at once must not be asked in a spin
        raise
    return manager


async def _placed(manager: Manager, service: str) -> None:
    """Create a service of one task, and wait until it has a node."""
    async with asyncio.timeout(_WITHIN):
        await _create(manager, service)
        watch = control_pb2.WatchServiceRequest(service=service, monitor=0.0)
        call = manager.control.WatchService(watch)
        try:
            async for progress in call:
                if any(task.node_id for task in progress.tasks):
                    return
        finally:
            call.cancel()
    raise BenchError(f"the watch of {service} ended")


async def _create(manager: Manager, service: str) -> None:
    request = control_pb2.CreateServiceRequest(spec=service_spec(service, 1))
    while True:
        try:
            await manager.control.CreateService(request, timeout=_WITHIN)
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:  # by an attempt without an answer
                return
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise BenchError(f"{service} cannot be created: {error.details()}") from error
        await asyncio.sleep(PACE)


async def _remove(managers: dict[str, Manager], service: str) -> None:
    request = control_pb2.RemoveServiceRequest(service=service)
    await _until(lambda: _on_any(managers, lambda each: each.control.RemoveService(request)))


async def _on_any(
    managers: dict[str, Manager], call: Callable[[Manager], Awaitable[Any]]
) -> Any | None:
    for each in managers.values():
        with suppress(grpc.aio.AioRpcError):
            return await call(each)
    return None


async def _until(ask: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer that is neither None nor empty. Raises BenchError after a while."""
    deadline = time.monotonic() + _REPAIRED
    while not (answer := await ask()):
        if time.monotonic() > deadline:
            raise BenchError(f"the cluster did not recover within {_REPAIRED:.0f} s")
        await asyncio.sleep(0.2)
    return answer


async def _repaired(managers: dict[str, Manager]) -> tuple[str, str]:
    """Wait until all managers and nodes are ready; the hosts of the leader and of etcd's."""

    async def ask() -> tuple[str, str] | None:
        found = []
        for each in managers.values():
            try:
                request = managers_pb2.ListManagersRequest()
                found.append(await each.managers.ListManagers(request, timeout=5.0))
            except grpc.aio.AioRpcError:
                return None
        nodes = await _on_any(
            managers, lambda each: each.control.ListNodes(control_pb2.ListNodesRequest())
        )
        rows = list(found[0].managers)
        ready = all(row.state == "ready" for row in rows) and nodes is not None
        if not (
            ready and sum(row.node.state == types_pb2.NODE_READY for row in nodes.nodes) == NODES
        ):
            return None
        leaders = [row.manager.hostname for row in rows if row.leader]
        etcd = [row.manager.hostname for row in rows if row.status.etcd_leader]
        return (leaders[0], etcd[0]) if leaders and etcd else None

    await _until(ask)
    await asyncio.sleep(_SETTLED)
    return tuple(await _until(ask))  # type: ignore[return-value]


def _sessions(cluster: str) -> dict[str, tuple[float, str]]:
    """Host of each node → when it opened its newest session (wall clock), and with whom."""
    found = {}
    for number in range(1, NODES + 1):
        host = f"node{number}"
        log = (ROOT / cluster / host / "log" / "agent.log").read_text(errors="replace")
        opened = _SESSION.findall(log)
        if not opened:
            raise BenchError(f"the agent of {host} has never opened a session")
        at, manager = opened[-1]
        found[host] = (datetime.fromisoformat(at).timestamp(), manager)
    return found


async def _sessions_elsewhere(cluster: str, had: Sequence[str], lost: str, since: float) -> float:
    """Seconds from `since` until the last of these hosts had a session with another manager."""

    async def ask() -> list[float] | None:
        now = _sessions(cluster)
        moved = [
            at - since for host, (at, manager) in now.items() if host in had and manager != lost
        ]
        return moved if len(moved) == len(had) else None

    return float(max(await _until(ask)))


def report(result: Failover, swarm: Sequence[float] = (), absent: str = "") -> Table:
    """Pure. `swarm`: until Swarm has placed a task after SIGKILL for its leader; or why this is
    `absent`."""
    rows = []
    for name, each in result.losses.items():
        rows += [
            _row(f"{name}: a task placed", each.decision, DECISION, "5 s"),
            _row(f"{name}: a write answered", each.write, WRITE, "2 s"),
            _row(f"{name}: agents' sessions elsewhere", each.sessions, SESSIONS, "2 s"),
        ]
    rows.append(_row("`orc manager step-down`: a task placed", result.hand_over, HAND_OVER, "1 s"))
    if swarm:
        kept = ("Docker Swarm, three managers, SIGKILL: a task placed", str(len(swarm)))
        rows.append((*kept, seconds(median(swarm)), seconds(max(swarm)), ""))
    with_leader = ", ".join(
        f"{sum(each.with_etcd_leader)} of {len(each.with_etcd_leader)} ({name})"
        for name, each in result.losses.items()
    )
    return Table(
        "Loss of the leader's host, three managers",
        ("what, seconds from the loss", "rounds", "median", "worst", "target (worst)"),
        tuple(rows),
        (f"etcd's leader was on the host in {with_leader} rounds.", *([absent] if absent else [])),
    )


def _row(what: str, took: list[float], target: float, shown: str) -> tuple[str, ...]:
    if not took:
        return (what, "0", "", "", "")
    worst = max(took)
    return (
        what,
        str(len(took)),
        seconds(median(took)),
        seconds(worst),
        at_most(worst, target, shown),
    )
