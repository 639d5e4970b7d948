# SPDX-License-Identifier: Apache-2.0
"""A process of simulated agents: everything that a manager sees of an agent, without containers.

Each agent joins with a token, has a certificate of its own, and keeps a session by the agent's own
`Dialer`, `Session` and `Reporter`. What would run containers and follow endpoints is simulated.

    python -m tests.scale.agents --first 0 --count 250 --join HOST:PORT

The token is the first line of standard input. Further lines are commands: `reconnect` breaks all
sessions at once, `fail N` stops N agents permanently, `quit` (or the end of the input) ends the
process. The state is printed four times a second, as a line of JSON (`Report`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from types import SimpleNamespace
from typing import Any, cast

import grpc

from orchestrator import __version__
from orchestrator.agent.session.session import Dialer, Node, Session, SessionEnded
from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.daemon.process import raise_priority
from orchestrator.identity.join import Joined, join
from orchestrator.identity.tls import MANAGER_NAME, channel_options
from orchestrator.model.compatibility.agent_features import DOCUMENTS, NETWORK_CHANGES, STOP_AFTER
from orchestrator.model.nodes import NodeDescription
from orchestrator.model.objects import Image
from orchestrator.model.specs import Resources
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import dispatch_pb2, types_pb2

STARTS_AT_A_TIME = 8
"""As an agent has it."""
JOINS_AT_A_TIME = 4
IMAGE = "registry.example/load/app"
DIGEST = "sha256:" + "5c" * 32
"""Of the image that all tasks have."""


@dataclass(slots=True)
class Report:
    """What the agents of one process have seen."""

    joined: int = 0
    connected: int = 0
    running: int = 0
    """Tasks that run, each of which the manager has acknowledged."""
    tasks: int = 0
    """Tasks that agents have."""
    assigned: int = 0
    """Different tasks that agents were ever assigned."""
    stopped: int = 0
    """Tasks that were ended by the manager."""
    opened: int = 0
    """Sessions that began."""
    ended: dict[str, int] = field(default_factory=dict)
    """Reason → sessions that ended after they had begun."""
    failed: dict[str, int] = field(default_factory=dict)
    """Reason → attempts that no session came of."""
    messages: dict[str, int] = field(default_factory=dict)
    """Kind of message → how many came."""
    received: int = 0
    """Bytes of all of them."""


@dataclass(slots=True)
class _Counts:
    opened: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    received: int = 0


@dataclass(slots=True)
class _Task:
    """A task and where its simulated container is."""

    order: types_pb2.Task
    status: TaskStatus


class SimulatedWorker:
    """Obeys assignments: each state is reported as an agent does, and takes its time."""

    orphans = SimpleNamespace(state=(), tasks=())

    def __init__(
        self, reporter: StatusReporter, seconds: float, started: Callable[[], None]
    ) -> None:
        """`seconds` is how long a container takes to start; `started` is called at the first."""
        self._reporter = reporter
        self._seconds = seconds
        self._started = started
        self._tasks: dict[str, _Task] = {}
        self._waiting: list[str] = []
        self._starting: set[str] = set()
        self._subnets: dict[str, IPv4Network] = {}
        self._given: Counter[str] = Counter()
        self.assigned: set[str] = set()
        self.stopped = 0

    @property
    def tasks(self) -> int:
        return len(self._tasks)

    @property
    def running(self) -> int:
        """Tasks that run, as the manager knows, too."""
        unknown = self._reporter.unacknowledged
        return sum(
            each.status.state is TaskState.RUNNING and id not in unknown
            for id, each in self._tasks.items()
        )

    def remove_orphans(self, times: int, tasks: object) -> None:
        pass

    def apply(
        self,
        tasks: Sequence[dispatch_pb2.AssignedTask],
        removed: Sequence[str],
        networks: Sequence[dispatch_pb2.AssignedNetwork] | None,
        *,
        full: bool,
        incarnation: str | None = None,
    ) -> None:
        """As `Worker.apply`."""
        for network in networks or ():
            if network.subnet:
                self._subnets[network.name] = IPv4Network(network.subnet)
        for assigned in tasks:
            self._order(assigned.task)
        if full:
            removed = list(self._tasks.keys() - {assigned.task.id for assigned in tasks})
        for id in removed:
            if (known := self._tasks.pop(id, None)) is not None:
                self.stopped += known.status.state is TaskState.RUNNING
                self._reporter.forget(id)
                self._starting.discard(id)
        self._start_more()

    def take(self, payload: Any) -> None:
        """As `Worker.take`: there is no file to write."""

    def _order(self, order: types_pb2.Task) -> None:
        known = self._tasks.get(order.id)
        if known is None:
            self.assigned.add(order.id)
            state = TaskState(order.status.state)
            self._tasks[order.id] = _Task(order, TaskStatus(state, run=order.status.run))
            if not is_terminal(state) and order.desired_state <= types_pb2.TASK_RUNNING:
                self._move(order.id, TaskState.ACCEPTED)
                self._waiting.append(order.id)
        else:
            known.order = order
        if order.desired_state > types_pb2.TASK_RUNNING:
            self._after(self._seconds, self._stop, order.id)

    def _start_more(self) -> None:
        while self._waiting and len(self._starting) < STARTS_AT_A_TIME:
            id = self._waiting.pop(0)
            if id in self._tasks and not is_terminal(self._tasks[id].status.state):
                self._starting.add(id)
                self._move(id, TaskState.PREPARING)
                self._after(self._seconds / 2, self._prepared, id)

    def _prepared(self, id: str) -> None:
        self._move(id, TaskState.READY)
        self._move(id, TaskState.STARTING)
        self._after(self._seconds / 2, self._run, id)

    def _run(self, id: str) -> None:
        self._starting.discard(id)
        self._started()
        self._move(id, TaskState.RUNNING)
        self._start_more()

    def _stop(self, id: str) -> None:
        if (known := self._tasks.get(id)) is not None and not is_terminal(known.status.state):
            self.stopped += known.status.state is TaskState.RUNNING
            self._starting.discard(id)
            self._move(id, TaskState.SHUTDOWN)
            self._start_more()

    def _move(self, id: str, state: TaskState) -> None:
        known = self._tasks.get(id)
        if known is None or known.status.state >= state:
            return
        now = time.time()
        addresses = known.status.addresses
        if state is TaskState.READY:
            names = [network.network for network in known.order.spec.networks]
            addresses = {name: self._address(name) for name in names if name in self._subnets}
        known.status = TaskStatus(
            state,
            at=now,
            started_at=now if state is TaskState.RUNNING else 0.0,
            finished_at=now if is_terminal(state) else 0.0,
            pid=1 if state is TaskState.RUNNING else 0,
            addresses=addresses,
            run=known.status.run,
        )
        self._reporter.put(id, known.status)

    def _address(self, network: str) -> str:
        subnet = self._subnets[network]
        self._given[network] += 1
        # The first address is the gateway's.
        number = 2 + (self._given[network] - 1) % (subnet.num_addresses - 3)
        return str(subnet.network_address + number)

    def _after(self, seconds: float, act: Callable[[str], None], id: str) -> None:
        asyncio.get_running_loop().call_later(seconds, act, id)


class SimulatedEndpoints:
    """Follows the endpoint table at once, and keeps nothing of it."""

    def __init__(self) -> None:
        self.applied = 1

    def apply(self, table: dispatch_pb2.EndpointTable) -> int:
        """As `Endpoints.apply`."""
        return self.applied

    def order(self, networks: Sequence[dispatch_pb2.AssignedNetwork]) -> None:
        """As `Endpoints.order`."""


class _Managers:
    """What a `Dialer` keeps in the agent's database."""

    def __init__(self) -> None:
        self._known: tuple[str, ...] = ()

    def managers(self) -> tuple[str, ...]:
        return self._known

    def put_managers(self, managers: Iterable[str]) -> None:
        self._known = tuple(managers)


class _CountedSession(Session):
    """A session whose end and messages are counted."""

    counts: _Counts

    async def run(
        self,
        channel: grpc.aio.Channel,
        welcomed: Callable[[dispatch_pb2.Welcome], None],
        patience: float,
    ) -> SessionEnded:
        began = False

        def begun(welcome: dispatch_pb2.Welcome) -> None:
            nonlocal began
            began = True
            self.counts.opened += 1
            welcomed(welcome)

        end = await super().run(channel, begun, patience)
        (self.counts.ended if began else self.counts.failed)[str(end)] += 1
        return end

    async def _take(
        self,
        message: dispatch_pb2.ManagerMessage,
        channel: grpc.aio.Channel,
        group: asyncio.TaskGroup,
    ) -> None:
        self.counts.messages[message.WhichOneof("kind") or "?"] += 1
        self.counts.received += message.ByteSize()
        await super()._take(message, channel, group)


class SimulatedAgent:
    """One node."""

    def __init__(self, number: int, joined: Joined, seconds: float, counts: _Counts) -> None:
        self._joined = joined
        self._wake = asyncio.Event()
        self._has_image = False
        self._running: asyncio.Future[None] | None = None
        self._restarting = False
        self._description = NodeDescription(
            hostname=f"host{number}",
            address=str(IPv4Address("127.1.0.1") + number),
            resources=Resources(shares=64 * 1024, memory=64 << 30),
            kernel="6.12",
            os="Simulated",
            arch="x86_64",
            cgroup="v2",
            runtime="crun 1.21",
            version=__version__,
            blob_port=7430,
            features=(DOCUMENTS, STOP_AFTER, NETWORK_CHANGES),
        )
        reporter = StatusReporter(self._wake.set)
        self.worker = SimulatedWorker(reporter, seconds, self._started)
        node = Node(lambda: self._description, f"boot-{number}", self._images)

        def session() -> Session:
            made = _CountedSession(
                node,
                worker=cast(Any, self.worker),
                endpoints=cast(Any, SimulatedEndpoints()),
                reporter=reporter,
                wake=self._wake,
                open_tunnel=_no_tunnel,
                remove_images=_no_removal,
                scrapable=lambda digest: None,
            )
            made.counts = counts
            return made

        self.dialer = Dialer(
            db=cast(Any, _Managers()),
            joined_by=lambda: joined.managers,
            dial=self._dial,
            new_session=session,
            rng=random.Random(number),
        )

    async def run(self) -> None:
        """Be in session until cancelled; `restart` begins anew."""
        while True:
            self._restarting = False
            self.dialer.connected_to = ""
            self._running = asyncio.ensure_future(self.dialer.run())
            try:
                await self._running
            except asyncio.CancelledError:
                if not self._restarting:
                    raise

    def restart(self) -> None:
        """Break the session and dial at once, as an agent does that is restarted."""
        self._restarting = True
        if self._running is not None:
            self._running.cancel()

    def _dial(self, address: str) -> grpc.aio.Channel:
        joined = self._joined
        credentials = grpc.ssl_channel_credentials(
            joined.ca_certificate.encode(), joined.key.encode(), joined.certificate.encode()
        )
        own: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(
            address, credentials, options=channel_options(MANAGER_NAME) + own
        )

    def _started(self) -> None:
        if not self._has_image:
            self._has_image = True
            self.dialer.report_images()

    def _images(self) -> list[Image]:
        if not self._has_image:
            return []
        return [Image(id=DIGEST, names=(f"{IMAGE}:latest",), size=1 << 20, layers=(DIGEST,))]


async def _no_tunnel(channel: grpc.aio.Channel, order: dispatch_pb2.OpenTunnel) -> None:
    """There are no containers whose streams could be carried."""


async def _no_removal(images: Sequence[str]) -> None:
    """There are no images."""


def _report(agents: Iterable[SimulatedAgent], counts: _Counts) -> Report:
    known = list(agents)
    return Report(
        joined=len(known),
        connected=sum(bool(agent.dialer.connected_to) for agent in known),
        running=sum(agent.worker.running for agent in known),
        tasks=sum(agent.worker.tasks for agent in known),
        assigned=len(set().union(*(agent.worker.assigned for agent in known))),
        stopped=sum(agent.worker.stopped for agent in known),
        opened=counts.opened,
        ended=dict(counts.ended),
        failed=dict(counts.failed),
        messages=dict(counts.messages),
        received=counts.received,
    )


async def _main(first: int, count: int, address: str, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    token = (await reader.readline()).decode().strip()
    agents: dict[int, SimulatedAgent] = {}
    running: dict[int, asyncio.Task[None]] = {}
    counts = _Counts()

    async def tell() -> None:
        while True:
            print(json.dumps(asdict(_report(agents.values(), counts))), flush=True)
            await asyncio.sleep(0.25)

    async def begin(number: int, threads: ThreadPoolExecutor, group: asyncio.TaskGroup) -> None:
        joined = await loop.run_in_executor(threads, join, address, token, f"host{number}")
        agents[number] = SimulatedAgent(number, joined, seconds, counts)
        running[number] = group.create_task(agents[number].run())

    async def obey() -> None:
        while line := await reader.readline():
            match line.decode().split():
                case ["reconnect"]:
                    for agent in agents.values():
                        agent.restart()
                case ["fail", number]:
                    for failed in sorted(agents)[: int(number)]:
                        running.pop(failed).cancel()
                        del agents[failed]
                case ["quit"]:
                    break
        raise _Quit

    try:
        with ThreadPoolExecutor(JOINS_AT_A_TIME) as threads:
            async with asyncio.TaskGroup() as group:
                group.create_task(obey())
                group.create_task(tell())
                for number in range(first, first + count):
                    group.create_task(begin(number, threads, group))
    except* _Quit:
        pass


class _Quit(Exception):
    pass


def parse(line: str) -> Report:
    """A line that such a process printed."""
    return Report(**cast(Mapping[str, Any], json.loads(line)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--join", required=True)
    parser.add_argument("--start-seconds", type=float, default=0.2)
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # reasons are counted
    # Agents have hosts of their own: they get their share of this one as managers do.
    raise_priority(-5)
    asyncio.run(_main(given.first, given.count, given.join, given.start_seconds))
