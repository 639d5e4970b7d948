# SPDX-License-Identifier: Apache-2.0
"""The name server's sockets, UDP and TCP, and the table that they answer from.

TCP connections of all listeners are limited to a number that one process can serve.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from asyncio import StreamWriter
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

from orchestrator.nameserver import upstream
from orchestrator.nameserver.answers import Scope, answer, failure
from orchestrator.nameserver.dnswire import Malformed, Question, read_question, refusal
from orchestrator.nameserver.feed import Client, Network, Table, scope_of
from orchestrator.nameserver.upstream import HostServers
from orchestrator.nameserver.zones import Records

MOST = 512
"""Connections of all clients together."""
MOST_OF_ONE = 32
"""Connections of one address."""


class Streams:
    """Who is connected, the longest unused first."""

    def __init__(self, most: int = MOST, most_of_one: int = MOST_OF_ONE) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._sources: OrderedDict[StreamWriter, str] = OrderedDict()
        self._of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sources)

    def admit(self, writer: StreamWriter, source: str) -> bool:
        """Take a connection of a client, unless that has as many as it may; where there are too
        many of all, the longest unused one is closed."""
        if self._of[source] >= self._most_of_one:
            return False
        if len(self._sources) >= self._most:
            unused = next(iter(self._sources))
            self.leave(unused)
            unused.transport.abort()
        self._sources[writer] = source
        self._of[source] += 1
        return True

    def use(self, writer: StreamWriter) -> None:
        """A question came."""
        if writer in self._sources:
            self._sources.move_to_end(writer)

    def leave(self, writer: StreamWriter) -> None:
        """It is closed; also more than once."""
        source = self._sources.pop(writer, None)
        if source is not None:
            self._of[source] -= 1
            if not self._of[source]:
                del self._of[source]


PORT = 53
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
"""Bind to an address that the host does not have yet (ip(7), linux/in6.h)."""
_BATCH = 64
"""Questions that are answered before other events."""
_BUFFER = 4 << 20
"""Bytes of questions that wait."""
_MOST_ANSWERS = 4096
"""Answers kept an asker."""
_MOST_ASKERS = 4096
_MOST_ASKED = 512
"""Questions that are asked elsewhere at a time."""
_IDLE = 10.0
"""Seconds in which a TCP client must ask."""
_TCP_LIMIT = 65535

Spawn = Callable[[Coroutine[Any, Any, None]], None]
"""Runs a coroutine for as long as the server lives."""

_Answers = dict[bytes, Iterator[bytes]]
"""A question's bytes after its id → its answers after theirs."""


class Listener:
    """The name server of one network on one address."""

    def __init__(
        self,
        network: Network,
        address: str,
        records: Records,
        scope: Callable[[Network, str], Scope],
        hosts: HostServers,
        spawn: Spawn,
        streams: Streams,
    ) -> None:
        """`scope` is what an address that asks in the network may know, `streams` the TCP
        connections of all listeners."""
        self.address = address
        self._network = network
        self._records = records
        self._scope = scope
        self._hosts = hosts
        self._spawn = spawn
        self._streams = streams
        self._askers: dict[str, tuple[Scope, _Answers]] = {}
        self._asked = 0
        self._udp: socket.socket | None = None
        self._tcp: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. Raises OSError."""
        self._udp = _bound(self.address, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        stream = _bound(self.address, socket.SOCK_STREAM)
        self._tcp = await asyncio.start_server(
            lambda reader, writer: self._spawn(self._converse(reader, writer)),
            sock=stream,
            backlog=256,
        )
        asyncio.get_running_loop().add_reader(self._udp, self._drain, self._udp)

    def close(self) -> None:
        """Listen no longer."""
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp)
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()

    def forget(self, network: Network | None) -> None:
        """The table has changed, and maybe the network; None: it is about to be closed."""
        self._network = network or self._network
        self._askers.clear()

    def _drain(self, sock: socket.socket) -> None:
        """Answer what waits. The hot path: keep it short."""
        for _ in range(_BATCH):
            try:
                query, asker = sock.recvfrom(4096)
            except BlockingIOError:
                return
            except OSError:
                continue  # an earlier answer was refused by its asker's host
            known = self._askers.get(asker[0])
            found = known[1].get(query[2:]) if known else None
            reply = query[:2] + next(found) if found else self._work_out(sock, query, asker)
            if reply:
                with suppress(OSError):
                    sock.sendto(reply, asker)

    def _work_out(self, sock: socket.socket, query: bytes, asker: Any) -> bytes:
        """The answer to a question that is new; empty if there is none, or it comes later."""
        known = self._asker(asker[0])
        if known is None:
            return b""
        scope, answers = known
        try:
            question = read_question(query)
        except Malformed as error:
            return refusal(query, error.code)
        found = answer(self._records, scope, question, question.size)
        if found:
            if len(answers) >= _MOST_ANSWERS:
                answers.clear()
            turns = answers[query[2:]] = itertools.cycle(found)
            return query[:2] + next(turns)
        if self._asked >= _MOST_ASKED:
            return query[:2] + failure(question)
        self._spawn(self._ask(sock, scope, question, query, asker))
        return b""

    def _asker(self, address: str) -> tuple[Scope, _Answers] | None:
        """What is known of an asker; None if it is not in the network."""
        known = self._askers.get(address)
        if known is None and self._network.has(address):
            if len(self._askers) >= _MOST_ASKERS:
                self._askers.clear()
            known = self._askers[address] = self._scope(self._network, address), {}
        return known

    async def _ask(
        self, sock: socket.socket, scope: Scope, question: Question, query: bytes, asker: Any
    ) -> None:
        self._asked += 1
        try:
            reply = await upstream.ask(query, self._elsewhere(scope))
        finally:
            self._asked -= 1
        reply = reply or query[:2] + failure(question)
        with suppress(OSError):
            sock.sendto(reply, asker)

    def _elsewhere(self, scope: Scope) -> list[str]:
        asked = scope.servers or self._hosts.current()
        return [server for server in asked if server != self.address]

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a TCP client, one question after the other."""
        try:
            address = writer.get_extra_info("peername")[0]
            known = self._asker(address)
            if known is None or not self._streams.admit(writer, address):
                return
            while True:
                async with asyncio.timeout(_IDLE):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    query = await reader.readexactly(length)
                self._streams.use(writer)
                reply = await self._answer_stream(known[0], query)
                if not reply:
                    break
                writer.write(len(reply).to_bytes(2, "big") + reply)
                async with asyncio.timeout(_IDLE):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            self._streams.leave(writer)
            writer.close()

    async def _answer_stream(self, scope: Scope, query: bytes) -> bytes:
        try:
            question = read_question(query)
        except Malformed as error:
            return refusal(query, error.code)
        found = answer(self._records, scope, question, _TCP_LIMIT)
        if found:
            return query[:2] + found[0]
        reply = await upstream.ask_stream(query, self._elsewhere(scope))
        return reply or query[:2] + failure(question)


def _bound(address: str, kind: socket.SocketKind) -> socket.socket:
    """A socket at port 53 of an address, which the host may yet get."""
    ipv6 = ":" in address
    sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, kind)
    try:
        sock.setblocking(False)
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind((address, PORT))
    except BaseException:
        sock.close()
        raise
    return sock


class NameServer:
    """All listeners of this node, and the table that they answer from."""

    def __init__(self, hosts: HostServers, spawn: Spawn) -> None:
        self._hosts = hosts
        self._spawn = spawn
        self._records = Records()
        self._networks: dict[str, Network] = {}
        self._clients: dict[tuple[str, str], Client] = {}
        """By network's id and address."""
        self._by_task: dict[str, Client] = {}
        self._listeners: dict[tuple[str, str], Listener] = {}
        """By network's id and address."""
        self._streams = Streams()
        self.revision: int | None = None
        """Of the table that answers are made from; None before the first."""

    async def apply(self, table: Table) -> str:
        """Answer by this table from now on; see `listen` for what is returned."""
        if table.base is None:
            self._records.replace(table.entries)
        else:
            for key in table.removed:
                self._records.remove(key)
            for entry in table.entries:
                self._records.put(entry)
        if table.networks is not None:
            self._networks = {network.id: network for network in table.networks}
        if table.clients is not None:
            self._clients.clear()
            self._by_task.clear()
        for task, client in (table.clients or table.changed_clients).items():
            self._put_client(task, client)
        self.revision = table.revision
        for (network_id, _), listener in self._listeners.items():
            listener.forget(self._networks.get(network_id))
        return await self.listen()

    def _put_client(self, task: str, client: Client | None) -> None:
        if (before := self._by_task.pop(task, None)) is not None:
            for place in before.places():
                # Another task may have the address by now.
                if self._clients.get(place) is before:
                    del self._clients[place]
        if client is not None:
            self._by_task[task] = client
            self._clients.update(dict.fromkeys(client.places(), client))

    async def listen(self) -> str:
        """Listen on exactly those addresses that the networks have; on which that failed, for
        the user, or nothing. It may be tried again."""
        wanted = {
            (network.id, address): network
            for network in self._networks.values()
            for address in network.gateways
        }
        for place in self._listeners.keys() - wanted.keys():
            self._listeners.pop(place).close()
        complaint = ""
        for place in wanted.keys() - self._listeners.keys():
            network, address = wanted[place], place[1]
            listener = Listener(
                network,
                address,
                self._records,
                self._scope,
                self._hosts,
                self._spawn,
                self._streams,
            )
            try:
                await listener.open()
            except OSError as error:
                listener.close()
                complaint = (
                    f"containers have no names at {address}, port {PORT}: {error.strerror};"
                    " does another name server of this host listen on all addresses?"
                )
            else:
                self._listeners[place] = listener
        return complaint

    def _scope(self, network: Network, address: str) -> Scope:
        return scope_of(network, self._networks, self._clients.get((network.id, address)))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to listen on."""
        return not self._listeners

    def close(self) -> None:
        """Listen no longer."""
        for listener in self._listeners.values():
            listener.close()
