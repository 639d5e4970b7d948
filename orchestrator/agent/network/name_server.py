# SPDX-License-Identifier: Apache-2.0
"""The name server process of this node: starts and replaces it, and sends it the endpoint table.

Like containers, the server outlives the agent and resolves names without it. The next agent finds
it by its socket. A server that has died, or is of another version of Orc, is replaced immediately.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from orchestrator import __version__
from orchestrator.agent.netplugins.plugin_results import Place
from orchestrator.agent.network.endpoint_table import Change
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.model.networks import is_ours
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.nameserver.feed import PROTOCOL
from orchestrator.pb import dispatch_pb2, types_pb2

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "orchestrator.nameserver")
ANSWER_SECONDS = 10.0
"""Seconds after which the server counts as hung."""
_CONNECT_PAUSE = 0.02
"""Seconds between attempts to reach a server that was just started."""


@dataclass(frozen=True, slots=True)
class DnsClient:
    """A container that is on several networks, or has DNS servers of its own."""

    addresses: Mapping[str, tuple[str, ...]]
    """Network name → its addresses there, in the order of resolution."""
    servers: tuple[str, ...]
    """Upstream name servers; empty: the node's."""


def dns_client(task: Task, status: TaskStatus) -> DnsClient | None:
    """The DNS settings of a task's container; None: those of its network suffice."""
    servers = task.spec.container.dns
    addresses = {
        name: tuple(filter(None, (status.addresses.get(name), status.addresses6.get(name))))
        for name in task.spec.network_names
        if name in status.addresses or name in status.addresses6
    }
    return DnsClient(addresses, servers) if servers or len(addresses) > 1 else None


class NameServerProcess:
    """Keeps the node's name server in sync with the endpoint table; an async context manager. The
    server outlives it."""

    name = "the name server"

    def __init__(
        self,
        run_dir: Path,
        lost: Callable[[], None],
        clients: Callable[[], Mapping[str, DnsClient]] = dict,
        client: Callable[[str], DnsClient | None] = lambda task_id: None,
        places: Callable[[], Mapping[str, Place]] = dict,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`lost` is called when the server has ended and needs the whole table again. `clients` are
        the containers with DNS settings of their own, by task; `client` returns one of them, None
        for a container without; see `mark_client`. `places` are, by network id, the addresses that
        answer names in networks of plugins."""
        self._path = run_dir / "names.sock"
        self._lost = lost
        self._clients = clients
        self._client = client
        self._changed: set[str] = set()
        """Tasks whose settings may have changed."""
        self._places = places
        self._sent_places: Mapping[str, Place] = {}
        self._networks: dict[str, str] = {}
        """Name → id."""
        self._sent_clients: dict[str, dict[str, Any]] = {}
        """The clients that the server knows, by task."""
        self._problem = ""
        """The problem that the server last reported; empty: none."""
        self._command = (*command, str(self._path))
        self._process: subprocess.Popen[bytes] | None = None
        """The server, if this agent started it."""
        self._link: _Link | None = None
        self._revision: int | None = None
        """The revision of the table that the server has from this agent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._disconnect()

    def mark_client(self, task_id: str) -> None:
        """Mark a task as changed: its DNS settings are compared at the next update."""
        self._changed.add(task_id)

    async def follow(self, change: Change, whole: Callable[[], Change]) -> None:
        """Send a change to the server. Raises NetworkError."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                link = await self._connected()
                places = self._places()
                moved = places != self._sent_places
                if change.base is not None and (moved or change.base != self._revision):
                    change = whole()
                if change.networks is not None:
                    self._networks = {network.name: network.id for network in change.networks}
                clients = self._changed_clients(
                    complete=self._revision is None or change.networks is not None
                )
                changed = moved or change.revision != self._revision or clients
                self._revision = None
                update = document(change, places) | clients if changed else {}
                answer = await link.ask(update)
        except TimeoutError:
            self._disconnect()
            self._kill()
            raise NetworkError(
                f"the name server did not answer within {ANSWER_SECONDS:g} s; it was killed"
            ) from None
        except (OSError, EOFError, ValueError) as error:
            self._disconnect()
            raise NetworkError(f"the name server does not answer: {error}") from error
        except BaseException:
            self._disconnect()
            raise
        if "revision" not in answer:
            raise NetworkError(str(answer.get("error", "the name server has lost its table")))
        self._revision, self._sent_places = change.revision, places
        if (problem := answer["complaint"]) != self._problem:
            log.log(
                logging.ERROR if problem else logging.INFO,
                problem or "the name server answers again",
            )
            self._problem = problem

    def _changed_clients(self, *, complete: bool) -> dict[str, Any]:
        """The clients in an update: all if `complete`, else those that have changed."""
        changed, self._changed = self._changed, set()
        if complete:
            self._sent_clients = {
                task_id: _client(client, self._networks)
                for task_id, client in self._clients().items()
            }
            return {"clients": self._sent_clients}
        updates: dict[str, dict[str, Any] | None] = {}
        for task_id in sorted(changed):
            client = self._client(task_id)
            found = _client(client, self._networks) if client is not None else None
            if found == self._sent_clients.get(task_id):
                continue
            updates[task_id] = found
            if found is None:
                del self._sent_clients[task_id]
            else:
                self._sent_clients[task_id] = found
        return {"changed_clients": updates} if updates else {}

    async def _connected(self) -> _Link:
        if self._link is not None and self._link.open:
            return self._link
        self._link, self._revision = None, None
        link = await self._connect()
        while link is None or (link.version, link.protocol) != (__version__, PROTOCOL):
            if link is not None:
                log.info("replacing a name server of version %s", link.version)
                with suppress(EOFError):
                    await link.ask({"end": True})
            await self._start()
            link = await self._connect()
        link.lost = self._lost
        self._link = link
        return link

    async def _connect(self) -> _Link | None:
        """A connection to the running server; None if there is none."""
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_unix_connection(_Link, str(self._path))
            await link.greet()
        except (ConnectionError, FileNotFoundError, EOFError):
            return None
        return link

    async def _start(self) -> None:
        """Start a server; it ends if another one is running."""
        if self._process is not None and self._process.poll() is None:
            await asyncio.sleep(_CONNECT_PAUSE)
            return
        # Not asyncio's subprocess, which would kill it with the agent.
        self._process = await asyncio.to_thread(
            subprocess.Popen,
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        log.info("name server started", extra={"pid": self._process.pid})

    def _kill(self) -> None:
        """Kill the server that owns the socket, also if an earlier agent started it."""
        with suppress(OSError, ValueError):
            pid = int(self._path.with_suffix(".lock").read_text())
            if os.fsencode(self._path) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.lost = lambda: None
            self._link.close()
        self._link, self._revision = None, None


class _Link(asyncio.Protocol):
    """A connection to the server: one line per request and per answer."""

    def __init__(self) -> None:
        self.version = ""
        self.protocol = 0
        self.lost: Callable[[], None] = lambda: None
        self._transport: Any = None
        self._partial = bytearray()
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()

    @property
    def open(self) -> bool:
        """Whether the connection is open."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        self._partial = bytearray(rest)
        for line in lines:
            self._lines.put_nowait(bytes(line))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lines.put_nowait(b"")
        self.lost()

    async def greet(self) -> None:
        """Read the server's greeting. Raises EOFError."""
        greeting = await self._read()
        self.version, self.protocol = greeting["version"], greeting.get("protocol", 1)

    async def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its response. Raises EOFError if the server ends before."""
        if self._transport is None:
            raise EOFError("it has ended")
        self._transport.write(json.dumps(order).encode() + b"\n")
        return await self._read()

    async def _read(self) -> dict[str, Any]:
        line = await self._lines.get()
        if not line:
            raise EOFError("it has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


def document(change: Change, places: Mapping[str, Place] = MappingProxyType({})) -> dict[str, Any]:
    """A change in the format of `orchestrator.nameserver.feed`."""
    nowhere = Place((), ())
    document: dict[str, Any] = {
        "revision": change.revision,
        "base": change.base,
        "entries": list(map(_entry, change.entries)),
        "removed": [list(key) for key in change.removed],
    }
    if change.networks is not None:
        document["networks"] = [
            {
                "id": network.id,
                "gateways": list(place.gateways) or _gateways(network),
                "ranges": list(place.ranges)
                or [r for r in (network.cluster_cidr, network.cluster_cidr6) if r],
                "internal": network.internal,
            }
            for network in change.networks
            for place in (places.get(network.id, nowhere),)
        ]
    return document


def _client(client: DnsClient, networks: Mapping[str, str]) -> dict[str, Any]:
    return {
        "addresses": {
            networks[name]: list(addresses)
            for name, addresses in client.addresses.items()
            if name in networks
        },
        "servers": list(client.servers),
    }


def _gateways(network: dispatch_pb2.AssignedNetwork) -> list[str]:
    """This node's addresses in a network: by default the first of each of its subnets."""
    if network.driver and not is_ours(network.driver):
        return []
    subnets = [ip_network(each) for each in (network.subnet, network.subnet6) if each]
    given = [ip_address(network.gateway)] if network.gateway else []
    return [
        str(next((one for one in given if one in each), each.network_address + 1))
        for each in subnets
    ]


def _entry(entry: dispatch_pb2.ServiceEndpoints) -> dict[str, Any]:
    return {
        "id": entry.id,
        "network": entry.network_id,
        "name": entry.name,
        "vip": entry.vip,
        "vip6": entry.vip6,
        "container": entry.container,
        "aliases": list(entry.aliases),
        "ports": [
            {
                "protocol": "udp" if port.protocol == types_pb2.PROTOCOL_UDP else "tcp",
                "published": port.published,
                "target": port.target,
            }
            for port in entry.ports
        ],
        "endpoints": [
            {
                "task": endpoint.task_id,
                "slot": endpoint.slot,
                "name": endpoint.name,
                "aliases": list(endpoint.aliases),
                "address": endpoint.address,
                "address6": endpoint.address6,
                "ready": endpoint.ready,
            }
            for endpoint in entry.endpoints
        ],
    }
