# SPDX-License-Identifier: Apache-2.0
"""Sessions with managers: hello, assignments, statuses, heartbeats; and the loop that dials.

Everything goes over one stream that the agent opens, so a node behind NAT works. One coroutine
writes to it: it sends the newest statuses and images as soon as it is woken, and a heartbeat when
the period is over. Any doubt, such as a diff that does not chain or a silent manager, ends the
session, and the next one begins with everything: all statuses and images from here, the full set
from there.

All known managers are tried in turn, in random order, which spreads agents over them, with
exponential backoff and jitter, so that a thousand agents do not return in step. A manager that does
not answer is left within two seconds if there are others. A manager that has more sessions than
others redirects some to them. The newest list of managers is kept on
disk: those that the node joined by may be long gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from orchestrator.agent.network.endpoint_table import EndpointTable
from orchestrator.agent.statedb import StateDb
from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.agent.tasks.worker import Worker
from orchestrator.identity.revocation import REVOKED_SERIAL
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import NodeDescription, TunnelKey
from orchestrator.model.objects import Image
from orchestrator.pb import dispatch_pb2, dispatch_pb2_grpc

log = logging.getLogger(__name__)

ACK_LIMIT = 5.0
"""Seconds without an acknowledgement after which reports are sent again."""
WELCOME_WITHIN = 30.0
"""Seconds that a connected manager has to send its welcome."""
LULL = 0.025
"""Seconds that a transient state may wait to be reported."""
_DEFAULT_PERIOD = 1.0
"""Seconds between heartbeats if the welcome does not say."""

OpenTunnel = Callable[[grpc.aio.Channel, dispatch_pb2.OpenTunnel], Coroutine[None, None, None]]


class SessionEnded(Exception):
    """A session is over; the text says why."""


class Redirected(SessionEnded):
    """The manager refers the node to another one at HOST:PORT."""

    def __init__(self, address: str) -> None:
        super().__init__(f"redirected to {address}")
        self.address = address


class CertificateRefused(SessionEnded):
    """The manager refuses this node's certificate, which was revoked; `serial` is its serial
    number, empty if the manager does not name it."""

    def __init__(self, reason: str, serial: str = "") -> None:
        super().__init__(reason)
        self.serial = serial


@dataclass(frozen=True, slots=True)
class Node:
    """What a session reports about this node."""

    describe: Callable[[], NodeDescription]
    boot_id: str
    images: Callable[[], Iterable[Image]]


class Session:
    """One session on one channel."""

    def __init__(
        self,
        node: Node,
        *,
        worker: Worker,
        endpoints: EndpointTable,
        reporter: StatusReporter,
        wake: asyncio.Event,
        open_tunnel: OpenTunnel,
        remove_images: Callable[[Sequence[str]], Coroutine[Any, Any, None]],
        scrapable: Callable[[str], None],
        expose: Callable[[Sequence[str]], None] = lambda access: None,
        revoked: Callable[[dispatch_pb2.RevocationList], None] = lambda news: None,
        trust: Callable[[dispatch_pb2.Trust], None] = lambda order: None,
    ) -> None:
        """`wake` is set when there is something to send. `open_tunnel` must not raise.
        `remove_images` removes images of these digests unless containers need them. `scrapable`
        gets the digest of the token for metrics. `revoked` gets changes of the revoked
        certificates, `trust` the CAs to trust."""
        self._node = node
        self._worker = worker
        self._endpoints = endpoints
        self._reporter = reporter
        self._wake = wake
        self._open_tunnel = open_tunnel
        self._remove_images = remove_images
        self._scrapable = scrapable
        self._expose = expose
        self._revoked = revoked
        self._trust = trust
        self._images_changed = True
        self._volume_drivers: dict[str, str] = {}
        self._path_mtu = 0
        self._trouble = ""
        self._tunnel_keys: tuple[TunnelKey, ...] = ()
        self._network_plugins = dispatch_pb2.NetworkPlugins()
        """All four as last sent to the manager."""
        self._period = _DEFAULT_PERIOD
        self._version: int | None = None
        """Of the assignment set after the last message; None before the full set."""
        self._networks: dict[str, dispatch_pb2.AssignedNetwork] = {}
        """By id, after the last message."""
        self._table: int | None = None
        """Revision of the endpoint table after the last message; None before the full one."""
        self._followed: deque[tuple[int, int]] = deque()
        """(revision on this node, the manager's) of tables that are not acknowledged yet."""
        self._incarnation = ""
        """Of the cluster, as welcomed."""
        self._orphans: tuple[object, ...] | None = None
        """The state of the orphans as last sent to the manager; None before."""
        self._progress = 0.0
        """Loop time of the last acknowledgement or report."""

    def report_images(self) -> None:
        """Send the image inventory again."""
        self._images_changed = True
        self._wake.set()

    async def run(
        self,
        channel: grpc.aio.Channel,
        welcomed: Callable[[dispatch_pb2.Welcome], None],
        patience: float,
    ) -> SessionEnded:
        """Run the session until it ends; return why. `welcomed` is called when it has begun. The
        connection must be established within `patience` seconds."""
        try:
            await self._converse(channel, welcomed, patience)
        except (SessionEnded, grpc.RpcError, TimeoutError) as error:
            _release_frames(error)
            return _ended(error)
        except BaseExceptionGroup as several:
            expected, bugs = several.split((SessionEnded, grpc.RpcError, TimeoutError))
            if bugs is not None or expected is None:
                raise
            _release_frames(several)
            return _ended(_leaf(expected))

    async def _converse(
        self,
        channel: grpc.aio.Channel,
        welcomed: Callable[[dispatch_pb2.Welcome], None],
        patience: float,
    ) -> NoReturn:
        """Run the session until an error ends it."""
        async with asyncio.TaskGroup() as group:
            call = dispatch_pb2_grpc.DispatchStub(channel).Session()
            welcomed(await self._greet(call, patience))
            self._reporter.restart()
            group.create_task(self._send(call), name="session sender")
            while True:
                await self._take(await _read(call), channel, group)

    async def _greet(self, call: Any, patience: float) -> dispatch_pb2.Welcome:
        description = self._node.describe()
        self._volume_drivers = description.volume_drivers
        self._path_mtu = description.path_mtu
        self._trouble = description.trouble
        self._tunnel_keys = description.tunnel_keys
        self._network_plugins = _network_plugins(description)
        hello = dispatch_pb2.Hello(description=to_proto(description), boot_id=self._node.boot_id)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience) as limit:
                await send(call, dispatch_pb2.AgentMessage(hello=hello))
                # It is connected, so the manager lives. When all agents dial at once it may take
                # its time; redialling only makes it longer.
                limit.reschedule(loop.time() + max(patience, WELCOME_WITHIN))
                message = await _read(call)
        except TimeoutError as error:
            raise SessionEnded("no answer in time") from error
        if message.HasField("redirect"):
            raise _redirected(message.redirect)
        if not message.HasField("welcome"):
            raise SessionEnded("the first message of the manager was not a welcome")
        self._period = message.welcome.heartbeat_period or _DEFAULT_PERIOD
        self._incarnation = message.welcome.incarnation
        return message.welcome

    async def _take(
        self,
        message: dispatch_pb2.ManagerMessage,
        channel: grpc.aio.Channel,
        group: asyncio.TaskGroup,
    ) -> None:
        match message.WhichOneof("kind"):
            case "assignments":
                self._assign(message.assignments)
            case "payload":
                self._worker.take(message.payload)
            case "endpoints":
                self._take_endpoints(message.endpoints)
            case "ack":
                self._reporter.acknowledge(message.ack.sequence)
                self._progress = asyncio.get_running_loop().time()
            case "open":
                group.create_task(self._open_tunnel(channel, message.open), name="tunnel")
            case "remove_images":
                images = list(message.remove_images.images)
                group.create_task(self._remove_images(images), name="image removal")
            case "container_access":
                self._expose(list(message.container_access.open))
            case "orphan_removal":
                removal = message.orphan_removal
                self._worker.remove_orphans(removal.times, removal.tasks)
                self._wake.set()
            case "scrape":
                self._scrapable(message.scrape.token_digest)
            case "revocations":
                self._revoked(message.revocations)
            case "trust":
                self._trust(message.trust)
            case "redirect":
                raise _redirected(message.redirect)
            case other:
                log.info("ignored a message of an unknown kind", extra={"kind": other})

    def _assign(self, order: dispatch_pb2.Assignments) -> None:
        if not order.full and order.applies_to != self._version:
            raise SessionEnded(
                f"an assignment for set {order.applies_to} came, but this node is at"
                f" {self._version}"
            )
        if order.full or order.networks:
            self._networks = {network.id: network for network in order.networks}
        for change in order.network_changes:
            known = self._networks.get(change.network.id)
            self._networks[change.network.id] = changed_network(known, change)
        for network_id in order.removed_networks:
            self._networks.pop(network_id, None)
        networks = None
        if order.full or order.networks or order.network_changes or order.removed_networks:
            networks = [self._networks[network_id] for network_id in sorted(self._networks)]
        self._worker.apply(
            order.tasks,
            order.removed_tasks,
            networks,
            full=order.full,
            incarnation=self._incarnation,
        )
        if networks is not None:
            self._endpoints.order(networks)
        self._version = order.results_in
        self._wake.set()  # there may be other orphans

    def _take_endpoints(self, table: dispatch_pb2.EndpointTable) -> None:
        if not table.full and table.applies_to != self._table:
            raise SessionEnded(
                f"a change of the endpoint table {table.applies_to} came, but this node is at"
                f" {self._table}"
            )
        self._followed.append((self._endpoints.apply(table), table.revision))
        self._table = table.revision
        self._wake.set()

    async def _send(self, call: Any) -> None:
        loop = asyncio.get_running_loop()
        beat = loop.time() + self._period
        lull: float | None = None
        while True:
            self._wake.clear()
            if lull is None and self._reporter.has_unsent:
                lull = loop.time() + LULL
            due = self._reporter.is_urgent or (lull is not None and loop.time() >= lull)
            if due and (report := self._reporter.take()) is not None:
                lull = None
                sequence, statuses = report
                message = dispatch_pb2.StatusReport(sequence=sequence)
                for task_id, status in statuses.items():
                    message.statuses[task_id].CopyFrom(to_proto(status))
                await send(call, dispatch_pb2.AgentMessage(statuses=message))
                self._progress = loop.time()
            if self._images_changed:
                self._images_changed = False
                images = dispatch_pb2.ImageReport(images=map(to_proto, self._node.images()))
                await send(call, dispatch_pb2.AgentMessage(images=images))
            await self._send_changes(call)
            await self._send_network_plugins(call)
            await self._send_orphans(call)
            await self._acknowledge_endpoints(call)
            try:
                async with asyncio.timeout_at(beat if lull is None else min(beat, lull)):
                    await self._wake.wait()
            except TimeoutError:
                if loop.time() < beat:
                    continue
                await send(call, dispatch_pb2.AgentMessage(heartbeat=dispatch_pb2.Heartbeat()))
                # A suspended process does not make up for missed heartbeats.
                beat = max(beat, loop.time() - self._period) + self._period
                if loop.time() - self._progress > ACK_LIMIT:
                    self._reporter.retry()

    async def _send_changes(self, call: Any) -> None:
        """Send what has changed in the description."""
        description = self._node.describe()
        scopes, path_mtu = description.volume_drivers, description.path_mtu
        keys = description.tunnel_keys
        if scopes != self._volume_drivers:
            self._volume_drivers = scopes
            drivers = dispatch_pb2.VolumeDrivers(scopes=scopes)
            await send(call, dispatch_pb2.AgentMessage(volume_drivers=drivers))
        if path_mtu != self._path_mtu:
            self._path_mtu = path_mtu
            await send(call, dispatch_pb2.AgentMessage(path_mtu=path_mtu))
        if description.trouble != self._trouble:
            self._trouble = description.trouble
            await send(call, dispatch_pb2.AgentMessage(trouble=self._trouble))
        if keys != self._tunnel_keys:
            self._tunnel_keys = keys
            message = dispatch_pb2.TunnelKeys(keys=map(to_proto, keys))
            await send(call, dispatch_pb2.AgentMessage(tunnel_keys=message))

    async def _send_network_plugins(self, call: Any) -> None:
        found = _network_plugins(self._node.describe())
        if found != self._network_plugins:
            self._network_plugins = found
            await send(call, dispatch_pb2.AgentMessage(network_plugins=found))

    async def _send_orphans(self, call: Any) -> None:
        found = self._worker.orphans.state
        known = self._orphans
        if self._version is None or found == known:
            return
        self._orphans = found
        if found or known or self._incarnation:
            report = dispatch_pb2.OrphanReport(orphans=map(to_proto, self._worker.orphans.tasks))
            await send(call, dispatch_pb2.AgentMessage(orphans=report))

    async def _acknowledge_endpoints(self, call: Any) -> None:
        revision = 0
        while self._followed and self._followed[0][0] <= self._endpoints.applied:
            _, revision = self._followed.popleft()
        if revision:
            applied = dispatch_pb2.EndpointsApplied(revision=revision)
            await send(call, dispatch_pb2.AgentMessage(endpoints_applied=applied))


def _network_plugins(node: NodeDescription) -> dispatch_pb2.NetworkPlugins:
    return dispatch_pb2.NetworkPlugins(
        cni=node.cni_plugins, drivers=node.network_drivers, ipam=node.ipam_drivers
    )


def changed_network(
    known: dispatch_pb2.AssignedNetwork | None, change: dispatch_pb2.NetworkChange
) -> dispatch_pb2.AssignedNetwork:
    """A network after a change, its peers by subnet and without this node itself."""
    peers = {} if known is None or change.complete else {peer.subnet: peer for peer in known.peers}
    peers.update((peer.subnet, peer) for peer in change.network.peers)
    for subnet in (*change.gone_peers, change.network.subnet):
        peers.pop(subnet, None)
    network = dispatch_pb2.AssignedNetwork()
    network.CopyFrom(change.network)
    del network.peers[:]
    network.peers.extend(peers[subnet] for subnet in sorted(peers))
    return network


async def send(call: Any, message: dispatch_pb2.AgentMessage) -> None:
    """Write to the session's call. Raises SessionEnded with the manager's status if the call is
    over, even if the reader has not seen that yet."""
    try:
        await call.wait_for_connection()
        # Not `call.write`: when a write fails because the manager has ended the call, it sets the
        # call's status to "internal: Internal error from Core" and drops the manager's, which
        # arrives a moment later.
        await call._cython_call.send_serialized_message(message.SerializeToString())
    except grpc.aio.AioRpcError as error:
        raise _ended(error) from error
    except cygrpc.BaseError as error:
        raise await _closed(call) from error
    except asyncio.CancelledError:
        call.cancel()  # as `call.write` does
        raise


async def _read(call: Any) -> dispatch_pb2.ManagerMessage:
    message = await call.read()
    if not isinstance(message, dispatch_pb2.ManagerMessage):  # grpc.aio.EOF
        raise await _closed(call)
    return message


async def _closed(call: Any) -> SessionEnded:
    code, details = await call.code(), await call.details()
    ended = _by_status(code, details, await call.trailing_metadata())
    return ended or SessionEnded("the manager closed the session")


def _redirected(redirect: dispatch_pb2.Redirect) -> SessionEnded:
    if redirect.leader:
        return Redirected(redirect.leader)
    return SessionEnded("this manager does not serve and knows of no other")


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The most informative of several errors: a SessionEnded, else the first."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((leaf for leaf in leaves if isinstance(leaf, SessionEnded)), leaves[-1])


def _release_frames(error: BaseException) -> None:
    """Clear the local variables that an error keeps by its traceback, and those of the errors in it
    and before it.

    A closed channel goes on dialling, and keeps its connection, for as long as one of its calls is
    referenced; errors and frames refer to each other, so that this would last until a full garbage
    collection, which an agent with little to do does not come to.
    """
    pending, seen = [error], set[int]()
    while pending:
        error = pending.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        pending += [each for each in (error.__cause__, error.__context__) if each is not None]
        if isinstance(error, BaseExceptionGroup):
            pending += error.exceptions


def _ended(error: BaseException) -> SessionEnded:
    if isinstance(error, SessionEnded):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        ended = _by_status(error.code(), error.details(), error.trailing_metadata())
        return ended or SessionEnded("the session broke off")
    return SessionEnded(f"the session broke off ({error})")


def _by_status(code: grpc.StatusCode, details: str | None, trailing: Any) -> SessionEnded | None:
    """The meaning of a status and its trailing metadata; None for OK."""
    if code is grpc.StatusCode.OK:
        return None
    if code is grpc.StatusCode.UNAUTHENTICATED and details:
        return CertificateRefused(details, str(dict(trailing or ()).get(REVOKED_SERIAL, "")))
    words = code.name.lower().replace("_", " ")
    return SessionEnded(f"{words}: {details}" if details else words)


BACKOFF_FIRST, BACKOFF_MOST = 0.1, 2.0
"""Seconds between attempts, from the first failure on. The maximum is short: a disconnected node
has stale names and addresses until it has a session again."""
BACKOFF_REFUSED = 60.0
"""The maximum after the node's certificate was revoked: it will not be accepted again."""
_REDIRECTS = 3
"""Redirects in a row that are followed at once; from then on they count as failures."""

PATIENCE_OTHERS = 1.0
"""The first timeout in seconds of a connection if there are other managers."""
PATIENCE_FIRST, PATIENCE_MOST = 5.0, 60.0
"""Seconds that a connection may take, from the first failure on: growing, so that a slow host is
reached eventually."""

Dial = Callable[[str], grpc.aio.Channel]


def backoff(attempt: int, unit: float, refused: bool = False) -> float:
    """Seconds to wait after the failure number `attempt` (1 and up) in a row: doubled and capped;
    `unit` from 0 to 1 chooses between half of that and all of it. `refused`: the node's
    certificate was revoked."""
    cap = BACKOFF_REFUSED if refused else BACKOFF_MOST
    most: float = min(BACKOFF_FIRST * 2.0 ** min(attempt - 1, 16), cap)
    return most * (0.5 + unit / 2)


def patience(failures: int, others: int = 0) -> float:
    """The timeout of the next attempt, in seconds; it grows from the third failure in a row of each
    manager. `others`: the number of other managers that could be tried."""
    first = min(PATIENCE_OTHERS, PATIENCE_FIRST) if others else PATIENCE_FIRST
    rounds = failures // (others + 1)
    most: float = min(first * 2.0 ** max(0, min(rounds, 16) - 2), PATIENCE_MOST)
    return most


class Dialer:
    """Keeps the node in a session, with one manager after another."""

    def __init__(
        self,
        *,
        db: StateDb,
        joined_by: Callable[[], Sequence[str]],
        dial: Dial,
        dial_one_of_several: Dial | None = None,
        new_session: Callable[[], Session],
        rng: random.Random,
        serial: Callable[[], str] = lambda: "",
    ) -> None:
        """`joined_by` gives the managers (HOST:PORT) in the node's identity: those by which it
        joined, or that an operator has set since. `dial_one_of_several` is used while there are
        other managers; `serial` is the serial number of the node's certificate."""
        self._db = db
        self._joined_by = joined_by
        self._dial = dial
        self._dial_one_of_several = dial_one_of_several or dial
        self._new_session = new_session
        self._rng = rng
        self._serial = serial
        self._session: Session | None = None
        self.channel: grpc.aio.Channel | None = None
        """The channel of the current session; None without one."""
        self.connected_to = ""
        """HOST:PORT of the current session's manager; empty without one."""

    def report_images(self) -> None:
        """Send the image inventory, now or in the next session."""
        if self._session is not None:
            self._session.report_images()

    async def run(self) -> str:
        """Dial until a manager refuses the node's current certificate as revoked; return its
        message. Only an authenticated manager counts, and no other failure: a node whose managers
        are unreachable keeps its tasks."""
        failures = redirects = 0
        refused = False
        queue: list[str] = []
        address = ""
        said: dict[str, str] = {}
        while True:
            queue = queue or self._candidates(address)
            address, *queue = queue
            queue = [other for other in queue if other != address]  # a redirect named it, too
            end = await self._hold(address, failures)
            if self.connected_to:
                failures = redirects = 0
                refused = False
                self.connected_to = ""
                said.clear()
            if isinstance(end, Redirected):
                queue.insert(0, end.address)
                redirects += 1
                if redirects <= _REDIRECTS:
                    continue
            if isinstance(end, CertificateRefused) and end.serial and end.serial == self._serial():
                return str(end)
            failures += 1
            refused = refused or isinstance(end, CertificateRefused)
            delay = backoff(failures, self._rng.random(), refused)
            # A manager may be unreachable for hours: an error is not logged every few seconds.
            level = logging.DEBUG if said.get(address) == str(end) else logging.WARNING
            said[address] = str(end)
            extra = {"manager": address, "retry_in": f"{delay:.2f}"}
            log.log(level, "no session: %s", end, extra=extra)
            await asyncio.sleep(delay)

    async def _hold(self, address: str, failures: int) -> SessionEnded:
        others = len(self._candidates(address)) - 1
        # A name or a load balancer's address is no other manager.
        several = len(self._db.managers()) > 1 if self._db.managers() else others > 0
        dial = self._dial_one_of_several if several else self._dial

        def welcomed(welcome: dispatch_pb2.Welcome) -> None:
            self.connected_to = address
            if welcome.managers:
                self._db.put_managers(welcome.managers)
            log.info("session opened", extra={"manager": address})

        self._session = self._new_session()
        try:
            async with dial(address) as channel:
                self.channel = channel
                return await self._session.run(channel, welcomed, patience(failures, others))
        finally:
            self._session = self.channel = None

    def _candidates(self, last: str) -> list[str]:
        """Every known manager once: the newest list shuffled, then those that the node joined by;
        the `last` one that was tried comes last."""
        newest = list(self._db.managers())
        self._rng.shuffle(newest)
        known = newest + [manager for manager in self._joined_by() if manager not in newest]
        return sorted(known, key=lambda manager: manager == last)
