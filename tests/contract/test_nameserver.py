# SPDX-License-Identifier: Apache-2.0
"""The name server over real sockets, asked by another implementation of DNS (dnspython)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from orchestrator.agent.network.endpoint_table import Change
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.name_server import DnsClient, NameServerProcess, _Link, document
from orchestrator.nameserver import listeners, upstream
from orchestrator.nameserver import listeners as server_module
from orchestrator.nameserver.feed import parse
from orchestrator.nameserver.listeners import NameServer
from orchestrator.nameserver.upstream import HostServers
from orchestrator.pb import dispatch_pb2, types_pb2
from tests.freeports import free_ports
from tests.freezing import freeze

HERE, INTERNAL, HERE6 = "127.0.0.1", "127.0.0.3", "::1"
ELSEWHERE, DEAD = "127.0.0.2", "127.0.0.4"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
NETWORKS = [
    {"id": "net", "gateways": [HERE, HERE6], "ranges": ["127.0.0.0/8", "::1/128"]},
    {"id": "in", "gateways": [INTERNAL], "ranges": ["127.0.0.0/8"], "internal": True},
]


def endpoint(number: int, address: str, *, ready: bool = True) -> dict[str, Any]:
    return {
        "task": f"t{number}",
        "slot": number,
        "name": f"web.{number}",
        "address": address,
        "ready": ready,
    }


def web(*endpoints: dict[str, Any], network: str = "net") -> dict[str, Any]:
    return {"id": "s1", "network": network, "name": "web", "endpoints": list(endpoints)}


class Elsewhere(asyncio.DatagramProtocol):
    """An upstream name server that resolves every name, and counts the queries."""

    def __init__(self) -> None:
        self.asked = 0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        forged = bytearray(self.reply(data))
        forged[0] ^= 0xFF
        self._transport.sendto(bytes(forged), address)
        self._transport.sendto(self.reply(data), address)

    def reply(self, data: bytes) -> bytes:
        self.asked += 1
        query = dns.message.from_wire(data)
        reply = dns.message.make_response(query)
        name = query.question[0].name.to_text()
        reply.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
        return reply.to_wire()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(2), "big")
        reply = self.reply(await reader.readexactly(length))
        writer.write(len(reply).to_bytes(2, "big") + reply)
        await writer.drain()
        writer.close()


class Served:
    """A name server, and a client of it."""

    def __init__(self, server: NameServer, elsewhere: Elsewhere, port: int) -> None:
        self.server = server
        self.elsewhere = elsewhere
        self.port = port

    async def tell(self, revision: int, *entries: Any, **more: Any) -> None:
        await self.server.apply(parse({"revision": revision, "entries": entries, **more}))

    async def ask(
        self, name: str, kind: str = "A", at: str = HERE, *, tcp: bool = False
    ) -> list[str] | str:
        query = dns.message.make_query(name + ".", kind)
        send = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
        reply = await send(query, at, timeout=60, port=self.port)
        if reply.rcode() != dns.rcode.NOERROR:
            return dns.rcode.to_text(reply.rcode())
        return sorted(each.to_text() for rrset in reply.answer for each in rrset)


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    port = free_ports()
    monkeypatch.setattr(server_module, "PORT", port)
    monkeypatch.setattr(upstream, "PORT", port)
    resolv_conf = tmp_path / "resolv.conf"
    # The first is this very server, which must not ask itself.
    resolv_conf.write_text("".join(f"nameserver {each}\n" for each in (HERE, DEAD, ELSEWHERE)))
    loop = asyncio.get_running_loop()
    elsewhere = Elsewhere()
    transport, _ = await loop.create_datagram_endpoint(lambda: elsewhere, (ELSEWHERE, port))
    stream = await asyncio.start_server(elsewhere.converse, ELSEWHERE, port)
    async with asyncio.TaskGroup() as group:

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            group.create_task(work)

        server = NameServer(HostServers(resolv_conf), spawn)
        made = Served(server, elsewhere, port)
        await made.tell(1, web(endpoint(1, "10.0.0.1")), networks=NETWORKS)
        yield made
        server.close()
    transport.close()
    stream.close()


async def test_names_over_both_transports_and_families(served: Served) -> None:
    for at in (HERE, HERE6):
        for tcp in (False, True):
            assert await served.ask("web", at=at, tcp=tcp) == ["10.0.0.1"]


async def test_a_change_takes_effect_at_once(served: Served) -> None:
    assert await served.ask("web") == ["10.0.0.1"]
    changed = web(endpoint(1, "10.0.0.1", ready=False), endpoint(2, "10.0.0.2"))
    await served.tell(2, changed, base=1)
    assert await served.ask("web") == ["10.0.0.2"]
    await served.tell(3, base=2, removed=[["s1", "net"]])
    assert await served.ask("web") == ["192.0.2.1"]
    await served.tell(9, web(endpoint(3, "10.0.0.3")), networks=NETWORKS)
    assert await served.ask("web") == ["10.0.0.3"]


async def test_truncated_answers_are_complete_over_tcp(served: Served) -> None:
    many = [endpoint(number, f"10.0.1.{number}") for number in range(1, 201)]
    await served.tell(2, web(*many), base=1)
    query = dns.message.make_query("web.", "A")
    reply = await dns.asyncquery.udp(query, HERE, timeout=60, port=served.port)
    assert reply.flags & dns.flags.TC
    # Who cannot ask again has some.
    assert 20 <= len(reply.answer[0]) < 200
    reply, by_tcp = await dns.asyncquery.udp_with_fallback(
        query, HERE, timeout=60, port=served.port
    )
    assert by_tcp
    assert len(reply.answer[0]) == 200


async def test_other_names_are_forwarded_to_the_host(served: Served) -> None:
    assert await served.ask("example.com") == ["192.0.2.1"]
    assert await served.ask("example.com", tcp=True) == ["192.0.2.1"]
    count = served.elsewhere.asked
    assert await served.ask("web") == ["10.0.0.1"]
    assert await served.ask("2.web") == "NXDOMAIN"
    assert served.elsewhere.asked == count


async def test_a_hundred_queries_are_forwarded_at_once(served: Served) -> None:
    asked = (served.ask(f"host{number}.example.com") for number in range(100))
    assert await asyncio.gather(*asked) == [["192.0.2.1"]] * 100


async def test_an_upstream_server_that_times_out_is_skipped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "_UDP_TIMEOUT", 0.3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((DEAD, served.port))
        assert await served.ask("example.com") == ["192.0.2.1"]


async def test_without_a_reply_of_any_upstream_server_it_answers_servfail(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / "resolv.conf").write_text(f"nameserver {DEAD}\n")
    assert await served.ask("example.com") == "SERVFAIL"
    assert await served.ask("example.com", tcp=True) == "SERVFAIL"
    assert await served.ask("web") == ["10.0.0.1"]


async def test_queries_of_internal_networks_are_not_forwarded(served: Served) -> None:
    assert await served.ask("example.com", at=INTERNAL) == "NXDOMAIN"
    assert await served.ask("web", at=INTERNAL) == "NXDOMAIN"
    assert served.elsewhere.asked == 0


async def test_a_container_resolves_names_of_all_its_networks(served: Served) -> None:
    there = dict(web(endpoint(9, "10.0.9.9"), network="in"), id="s2", name="db")
    client = {"addresses": {"net": [HERE], "in": [HERE]}, "servers": [DEAD]}
    await served.tell(2, there, base=1)
    assert await served.ask("db") == "NXDOMAIN"
    await served.tell(3, base=2, clients={"t1": client})
    assert await served.ask("db") == ["10.0.9.9"]
    assert await served.ask("web", at=INTERNAL) == ["10.0.0.1"]
    # Wherever it asks, its first network goes first.
    two = dict(web(endpoint(8, "10.0.8.8"), network="in"), id="s3")
    await served.tell(4, two, base=3)
    assert await served.ask("web", at=INTERNAL) == await served.ask("web") == ["10.0.0.1"]
    # It has a way out, and wants another server asked there.
    assert await served.ask("example.com", at=INTERNAL) == "SERVFAIL"
    await served.tell(5, base=4, changed_clients={"t2": dict(client, addresses={})})
    assert await served.ask("db") == ["10.0.9.9"]
    # Another task has its address by now; then its removal is sent.
    await served.tell(6, base=5, changed_clients={"t3": client, "t1": None})
    assert await served.ask("db") == ["10.0.9.9"]
    await served.tell(7, base=6, changed_clients={"t3": None})
    assert await served.ask("db") == "NXDOMAIN"
    await served.tell(8, base=7, clients={"t1": client})
    await served.tell(9, base=8, clients={})
    assert await served.ask("db") == "NXDOMAIN"


async def test_clients_outside_the_network_get_no_answer(served: Served) -> None:
    network = {"id": "net", "gateways": [HERE], "ranges": ["10.0.0.0/8"]}
    await served.tell(2, base=1, networks=[network])
    query = dns.message.make_query("web.", "A")
    with pytest.raises(dns.exception.Timeout):
        await dns.asyncquery.udp(query, HERE, timeout=0.3, port=served.port)


async def connections(source: str, port: int, count: int) -> list[Connection]:
    return [await asyncio.open_connection(HERE, port, local_addr=(source, 0)) for _ in range(count)]


async def question(connection: Connection) -> list[str] | None:
    """The answer to a query on an open connection; None if the server has closed it."""
    reader, writer = connection
    query = dns.message.make_query("web.", "A").to_wire()
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        await writer.drain()
        reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    except (OSError, asyncio.IncompleteReadError):
        return None
    return sorted(each.to_text() for each in dns.message.from_wire(reply).answer[0])


async def test_connections_of_a_client_are_limited(served: Served) -> None:
    many = await connections("127.0.0.7", served.port, listeners.MAX_STREAMS_PER_ADDRESS)
    for each in many:
        assert await question(each) == ["10.0.0.1"]
    (more,) = await connections("127.0.0.7", served.port, 1)
    assert await question(more) is None
    (other,) = await connections("127.0.0.8", served.port, 1)
    assert await question(other) == ["10.0.0.1"]
    many[0][1].close()
    await many[0][1].wait_closed()
    assert await question(many[1]) == ["10.0.0.1"]
    (again,) = await connections("127.0.0.7", served.port, 1)
    assert await question(again) == ["10.0.0.1"]
    for _, writer in (*many, more, other, again):
        writer.close()


async def test_connections_of_all_clients_are_limited(served: Served) -> None:
    clients = listeners.MAX_STREAMS // listeners.MAX_STREAMS_PER_ADDRESS
    made: list[Connection] = []
    for number in range(clients):
        made += await connections(
            f"127.0.1.{number}", served.port, listeners.MAX_STREAMS_PER_ADDRESS
        )
    for each in made:
        assert await question(each) == ["10.0.0.1"]
    assert await question(made[0]) == ["10.0.0.1"]
    (new,) = await connections("127.0.2.1", served.port, 1)
    assert await question(new) == ["10.0.0.1"], "who comes gets the place of the longest unused"
    assert await question(made[1]) is None
    assert await question(made[0]) == ["10.0.0.1"]
    for _, writer in (*made, new):
        writer.close()


async def test_idle_connections_are_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_IDLE", 0.05)
    silent, half = await connections("127.0.0.7", served.port, 2)
    half[1].write(b"\0\x20only")
    for reader, writer in (silent, half):
        assert await reader.read() == b""
        writer.close()


async def test_an_address_in_use_is_reported_and_tried_again(served: Served) -> None:
    networks = [{"id": "net", "gateways": [HERE, DEAD], "ranges": ["127.0.0.0/8"]}]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((DEAD, served.port))
        raw = {"revision": 2, "base": 1, "networks": networks}
        complaint = await served.server.apply(parse(raw))
        assert f"no names at {DEAD}" in complaint
        assert await served.ask("web") == ["10.0.0.1"]
    assert await served.server.listen() == ""
    assert await served.ask("web", at=DEAD) == ["10.0.0.1"]


async def test_random_bytes_do_no_harm(served: Served) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noisy:
        for length in range(64):
            noisy.sendto(os.urandom(length), (HERE, served.port))
    for sent in (b"\xff\xff", b"\0\x05hello", b"\0"):
        _, writer = await asyncio.open_connection(HERE, served.port)
        writer.write(sent)
        writer.close()
    assert await served.ask("web") == ["10.0.0.1"]


async def test_the_address_of_a_removed_network_is_closed(served: Served) -> None:
    await served.tell(2, base=1, networks=NETWORKS[:1])
    assert await served.ask("web") == ["10.0.0.1"]
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(INTERNAL, served.port)


async def test_the_server_parses_the_agents_table(served: Served) -> None:
    networks = [
        dispatch_pb2.AssignedNetwork(
            id="net",
            name="front",
            cluster_cidr="127.0.0.0/8",
            subnet="127.0.0.0/24",
            cluster_cidr6="::/64",
            subnet6="::/64",
        ),
        dispatch_pb2.AssignedNetwork(
            id="in",
            name="back",
            cluster_cidr="127.0.0.0/8",
            subnet="127.0.0.0/24",
            gateway=INTERNAL,
            internal=True,
        ),
    ]
    entry = dispatch_pb2.ServiceEndpoints(
        id="s1",
        name="web",
        network_id="net",
        vip6="fd00::9",
        aliases=["www"],
        ports=[types_pb2.PortSpec(published=53, target=5353, protocol=types_pb2.PROTOCOL_UDP)],
        endpoints=[
            dispatch_pb2.Endpoint(
                task_id="t", slot=1, name="web.1", address="10.0.0.1", ready=ready
            )
            for ready in (True, False)
        ],
    )
    change = Change(2, None, (entry,), (), tuple(networks))
    await served.server.apply(parse(document(change)))
    for at in (HERE, HERE6):
        assert await served.ask("web", "AAAA", at) == ["fd00::9"]
        assert await served.ask("tasks.web", at=at) == ["10.0.0.1"]
    assert await served.ask("www", "AAAA") == ["fd00::9"]
    assert await served.ask("_53._udp.web", "SRV") == ["0 0 5353 web."]
    assert await served.ask("example.com", at=INTERNAL) == "NXDOMAIN"


# -- The process --------------------------------------------------------------------------------


@asynccontextmanager
async def name_server(folder: Path, lost: Callable[[], None]) -> AsyncIterator[NameServerProcess]:
    """The agent's client; a server that it starts is ended afterwards."""
    async with NameServerProcess(folder, lost) as process:
        yield process
        for pid in pids(folder):
            os.kill(pid, signal.SIGTERM)


def pids(folder: Path) -> list[int]:
    """The servers that run for a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder / "names.sock").encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def whole(revision: int = 1) -> Change:
    entry = dispatch_pb2.ServiceEndpoints(id="s1", network_id="n", name="web", vip="10.128.0.9")
    return Change(revision, None, (entry,), (), ())


async def test_a_server_outlives_the_agent_and_is_found_by_the_next(tmp_path: Path) -> None:
    async with NameServerProcess(tmp_path, lambda: None) as process:
        await process.follow(whole(), whole)
        (pid,) = pids(tmp_path)
        async with name_server(tmp_path, lambda: None) as next_one:
            # A change of another agent's table is useless: the whole table is sent.
            asked: list[int] = []

            def all_of_it() -> Change:
                asked.append(1)
                return whole(6)

            await next_one.follow(Change(6, 5, ()), all_of_it)
            assert asked == [1]
            assert pids(tmp_path) == [pid]


async def test_a_killed_server_is_replaced(tmp_path: Path) -> None:
    lost = asyncio.Event()
    async with name_server(tmp_path, lost.set) as process:
        await process.follow(whole(), whole)
        (pid,) = pids(tmp_path)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            await lost.wait()
            await process.follow(Change(1, 1, ()), whole)
        assert pids(tmp_path) not in ([], [pid])


async def test_a_hung_server_is_ended_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with name_server(tmp_path, lambda: None) as process:
        await process.follow(whole(), whole)
        (pid,) = pids(tmp_path)
        freeze(pid)
        monkeypatch.setattr("orchestrator.agent.network.name_server.ANSWER_SECONDS", 0.2)
        with pytest.raises(NetworkError, match=r"within 0.2 s"):
            await process.follow(Change(1, 1, ()), whole)
        monkeypatch.undo()
        await process.follow(whole(), whole)
        assert pid not in pids(tmp_path) != []


async def test_a_server_of_another_version_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with NameServerProcess(tmp_path, lambda: None) as process:
        await process.follow(whole(), whole)
        (pid,) = pids(tmp_path)
    stub = tmp_path / "newer.py"
    stub.write_text(
        "from orchestrator.nameserver import __main__ as server\n"
        "server.__version__ = '99'\n"
        "server.main()\n"
    )
    monkeypatch.setattr("orchestrator.agent.network.name_server.__version__", "99")
    async with NameServerProcess(
        tmp_path, lambda: None, command=(sys.executable, str(stub))
    ) as newer:
        await newer.follow(whole(), whole)
        (after,) = pids(tmp_path)
        assert after != pid
        os.kill(after, signal.SIGTERM)


async def test_each_new_client_is_sent_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many containers take twice the work, not four times."""
    sent: list[dict[str, Any]] = []
    ask = _Link.ask

    async def recorded(link: _Link, request: dict[str, Any]) -> dict[str, Any]:
        sent.append(request)
        return await ask(link, request)

    monkeypatch.setattr(_Link, "ask", recorded)
    there: dict[str, DnsClient] = {}
    looked: list[str] = []

    def client(task_id: str) -> DnsClient | None:
        looked.append(task_id)
        return there.get(task_id)

    every: list[int] = []

    def clients() -> dict[str, DnsClient]:
        every.append(len(there))
        return there

    networks = tuple(dispatch_pb2.AssignedNetwork(id=id, name=f"net-{id}") for id in ("a", "b"))
    first = replace(whole(), networks=networks)
    async with NameServerProcess(tmp_path, lambda: None, clients, client) as process:
        await process.follow(first, lambda: first)
        for number in range(30):
            addresses = {"net-a": (f"10.1.0.{number}",), "net-b": (f"10.2.0.{number}",)}
            there[f"t{number}"] = DnsClient(addresses, ())
            for _ in range(6):  # states that a start passes
                process.mark_client(f"t{number}")
                await process.follow(Change(1, 1, ()), whole)
        del there["t7"]
        process.mark_client("t7")
        await process.follow(Change(1, 1, ()), whole)
        assert every == [0]
        assert len(looked) == 30 * 6 + 1
        sizes = [len(each["changed_clients"]) for each in sent if "changed_clients" in each]
        assert sizes == [1] * 31
        assert sent[-1]["changed_clients"] == {"t7": None}
        # A new server is sent all clients.
        (pid,) = pids(tmp_path)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while pid in pids(tmp_path):  # noqa: ASYNC110 - another process's end is waited for
                await asyncio.sleep(0.01)
        with suppress(NetworkError):
            await process.follow(Change(1, 1, ()), lambda: first)
        await process.follow(Change(1, 1, ()), lambda: first)
        assert len(sent[-1].get("clients", sent[-2].get("clients", ()))) == 29
        for last in pids(tmp_path):
            os.kill(last, signal.SIGTERM)


async def test_a_server_without_agent_and_network_ends(tmp_path: Path) -> None:
    async with NameServerProcess(tmp_path, lambda: None) as process:
        await process.follow(whole(), whole)
        assert len(pids(tmp_path)) == 1
    async with asyncio.timeout(60):
        while pids(tmp_path):  # noqa: ASYNC110 - another process's end is waited for
            await asyncio.sleep(0.01)
