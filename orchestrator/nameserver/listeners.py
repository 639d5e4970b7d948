# SPDX-License-Identifier: Apache-2.0
"""The name server's sockets, UDP and TCP, and its table.

The number of TCP connections of all listeners is limited.
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
from orchestrator.nameserver.dnswire import MalformedQuery, Question, error_response, read_question
from orchestrator.nameserver.feed import Client, Network, Table, scope_of
from orchestrator.nameserver.upstream import HostServers
from orchestrator.nameserver.zones import Records

MAX_STREAMS = 512
"""TCP connections of all clients."""
MAX_STREAMS_PER_ADDRESS = 32
"""TCP connections of one address."""


class Streams:
    """The open TCP connections, least recently used first."""

    def __init__(
        self, limit: int = MAX_STREAMS, limit_per_address: int = MAX_STREAMS_PER_ADDRESS
    ) -> None:
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._sources: OrderedDict[StreamWriter, str] = OrderedDict()
        self._of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sources)

    def admit(self, writer: StreamWriter, source: str) -> bool:
        """Add a client's connection, unless the client has too many. If there are too many in all,
        the least recently used one is closed."""
        if self._of[source] >= self._limit_per_address:
            return False
        if len(self._sources) >= self._limit:
            oldest = next(iter(self._sources))
            self.remove(oldest)
            oldest.transport.abort()
        self._sources[writer] = source
        self._of[source] += 1
        return True

    def touch(self, writer: StreamWriter) -> None:
        """Mark a connection as used."""
        if writer in self._sources:
            self._sources.move_to_end(writer)

    def remove(self, writer: StreamWriter) -> None:
        """Remove a closed connection; idempotent."""
        source = self._sources.pop(writer, None)
        if source is not None:
            self._of[source] -= 1
            if not self._of[source]:
                del self._of[source]


PORT = 53
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
"""Bind to an address that does not exist yet (ip(7), linux/in6.h)."""
_BATCH = 64
"""Queries that are answered before other events."""
_BUFFER = 4 << 20
"""Receive buffer of a UDP socket, in bytes."""
_MAX_ANSWERS = 4096
"""Cached answers of each client."""
_MAX_CLIENTS = 4096
_MAX_FORWARDED = 512
"""Queries that are forwarded at a time."""
_IDLE = 10.0
"""Seconds after which an idle TCP connection is closed."""
_TCP_LIMIT = 65535

Spawn = Callable[[Coroutine[Any, Any, None]], None]
"""Runs a coroutine for as long as the server lives."""

_Answers = dict[bytes, Iterator[bytes]]
"""A query without its id → its answers without theirs, in turn."""


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
        """`scope` returns what a client address of the network may resolve; `streams` are the TCP
        connections of all listeners."""
        self.address = address
        self._network = network
        self._records = records
        self._scope = scope
        self._hosts = hosts
        self._spawn = spawn
        self._streams = streams
        self._cache: dict[str, tuple[Scope, _Answers]] = {}
        self._forwarded = 0
        self._udp: socket.socket | None = None
        self._tcp: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. Raises OSError."""
        self._udp = _bound(self.address, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        stream = _bound(self.address, socket.SOCK_STREAM)
        self._tcp = await asyncio.start_server(
            lambda reader, writer: self._spawn(self._serve_stream(reader, writer)),
            sock=stream,
            backlog=256,
        )
        asyncio.get_running_loop().add_reader(self._udp, self._drain, self._udp)

    def close(self) -> None:
        """Stop listening."""
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp)
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()

    def invalidate(self, network: Network | None) -> None:
        """Drop cached answers after a change of the table; `network` None leaves it unchanged."""
        self._network = network or self._network
        self._cache.clear()

    def _drain(self, sock: socket.socket) -> None:
        """Answer pending queries. The hot path: keep it short."""
        for _ in range(_BATCH):
            try:
                query, client = sock.recvfrom(4096)
            except BlockingIOError:
                return
            except OSError:
                continue  # ICMP error for an earlier answer
            known = self._cache.get(client[0])
            found = known[1].get(query[2:]) if known else None
            reply = query[:2] + next(found) if found else self._resolve(sock, query, client)
            if reply:
                with suppress(OSError):
                    sock.sendto(reply, client)

    def _resolve(self, sock: socket.socket, query: bytes, client: Any) -> bytes:
        """The answer to a query that is not cached; empty if there is none, or it is sent later."""
        known = self._client(client[0])
        if known is None:
            return b""
        scope, answers = known
        try:
            question = read_question(query)
        except MalformedQuery as error:
            return error_response(query, error.code)
        found = answer(self._records, scope, question, question.size)
        if found:
            if len(answers) >= _MAX_ANSWERS:
                answers.clear()
            turns = answers[query[2:]] = itertools.cycle(found)
            return query[:2] + next(turns)
        if self._forwarded >= _MAX_FORWARDED:
            return query[:2] + failure(question)
        self._spawn(self._forward(sock, scope, question, query, client))
        return b""

    def _client(self, address: str) -> tuple[Scope, _Answers] | None:
        """A client's scope and cached answers; None if it is not in the network."""
        known = self._cache.get(address)
        if known is None and self._network.has(address):
            if len(self._cache) >= _MAX_CLIENTS:
                self._cache.clear()
            known = self._cache[address] = self._scope(self._network, address), {}
        return known

    async def _forward(
        self, sock: socket.socket, scope: Scope, question: Question, query: bytes, client: Any
    ) -> None:
        self._forwarded += 1
        try:
            reply = await upstream.forward(query, self._upstreams(scope))
        finally:
            self._forwarded -= 1
        reply = reply or query[:2] + failure(question)
        with suppress(OSError):
            sock.sendto(reply, client)

    def _upstreams(self, scope: Scope) -> list[str]:
        asked = scope.servers or self._hosts.current()
        return [server for server in asked if server != self.address]

    async def _serve_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer a TCP client, one query after the other."""
        try:
            address = writer.get_extra_info("peername")[0]
            known = self._client(address)
            if known is None or not self._streams.admit(writer, address):
                return
            while True:
                async with asyncio.timeout(_IDLE):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    query = await reader.readexactly(length)
                self._streams.touch(writer)
                reply = await self._answer_stream(known[0], query)
                if not reply:
                    break
                writer.write(len(reply).to_bytes(2, "big") + reply)
                async with asyncio.timeout(_IDLE):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            self._streams.remove(writer)
            writer.close()

    async def _answer_stream(self, scope: Scope, query: bytes) -> bytes:
        try:
            question = read_question(query)
        except MalformedQuery as error:
            return error_response(query, error.code)
        found = answer(self._records, scope, question, _TCP_LIMIT)
        if found:
            return query[:2] + found[0]
        reply = await upstream.forward_stream(query, self._upstreams(scope))
        return reply or query[:2] + failure(question)


def _bound(address: str, kind: socket.SocketKind) -> socket.socket:
    """A socket at port 53 of an address, which need not exist yet."""
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
    """All listeners of this node, and the table."""

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
        """The table's revision; None before the first."""

    async def apply(self, table: Table) -> str:
        """Apply a table or a change; return as `listen`."""
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
            listener.invalidate(self._networks.get(network_id))
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
        """Listen on exactly the gateway addresses of the networks; return a message for the user
        about one that failed, or an empty string. It may be repeated."""
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
        """Stop listening."""
        for listener in self._listeners.values():
            listener.close()
