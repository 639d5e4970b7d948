# SPDX-License-Identifier: Apache-2.0
"""Calls of a manager over HTTP/2 of our own, against gRPC's own server."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

import grpc
import hpack
import pytest
from scripted_manager import Refusal, Relay

from orchestrator.cli.app import interrupts
from orchestrator.cli.app.contexts import save_context
from orchestrator.cli.app.errors import ManagerLost, Refused
from orchestrator.cli.rpc import calls, header_blocks, http2_connection
from orchestrator.cli.rpc.client import Client
from orchestrator.pb import control_pb2 as pb

MIB = 1 << 20
WAIT = (calls, http2_connection, interrupts, threading)
"""Modules whose code runs while a call waits."""


def batch(line: bytes) -> Any:
    return pb.LogBatch(records=[pb.LogRecord(line=line)])


@pytest.fixture
def client(manager: Any) -> Iterator[Client]:
    with Client(manager.context) as client:
        yield client


@pytest.fixture
def dying(manager: Any, authority: Any, tmp_path: Path) -> Iterator[Callable[[bool], Client]]:
    """Makes clients of managers that are killed when a client calls: in the middle of its
    handshake, or right after it, before they greet."""
    pair, file = authority.issue("manager"), tmp_path / "pair"
    file.write_text(pair.certificate + pair.key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    tls.set_alpn_protocols(["h2"])
    with ThreadPoolExecutor() as threads, ExitStack() as stack:

        def make(shakes_hands: bool) -> Client:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def live() -> None:
                connection, _ = server.accept()
                server.close()
                if shakes_hands:
                    connection = tls.wrap_socket(connection, server_side=True)
                else:
                    connection.recv(MIB)
                connection.close()

            threads.submit(live)
            endpoint = f"127.0.0.1:{server.getsockname()[1]}"
            context = replace(manager.context, endpoints=(endpoint, *manager.context.endpoints))
            return stack.enter_context(Client(context))

        yield make


@pytest.mark.parametrize("shakes_hands", [False, True])
def test_manager_that_dies_before_its_first_frame_counts_as_unreachable(
    manager: Any, dying: Callable[[bool], Client], shakes_hands: bool
) -> None:
    manager.script.answers["ListNodes"] = pb.ListNodesReply()
    client = dying(shakes_hands)
    # The next one serves.
    assert client.call("ListNodes", pb.ListNodesRequest()) == pb.ListNodesReply()
    assert client.endpoint == manager.context.endpoints[0]


@pytest.mark.parametrize("shakes_hands", [False, True])
def test_only_manager_dies_before_its_first_frame(
    dying: Callable[[bool], Client], shakes_hands: bool
) -> None:
    context = dying(shakes_hands).context
    alone = Client(replace(context, endpoints=context.endpoints[:1]))
    with alone as client, pytest.raises(ManagerLost) as lost:
        client.call("ListNodes", pb.ListNodesRequest())
    # In case it restarts, it is tried again.
    reached = f"cannot reach a manager at {context.endpoints[0]}: connection refused;"
    assert reached in str(lost.value)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in the real command."""
    before = signal.getsignal(signal.SIGINT)
    interrupts.install()
    yield
    signal.signal(signal.SIGINT, before)


class PressedAt:
    """Presses Ctrl-C before an instruction of the main thread, counted from `sys.settrace` on in
    the modules of a call's wait."""

    _FILES = frozenset(map(str, (each.__file__ for each in WAIT)))

    def __init__(self, instruction: int) -> None:
        self.left = instruction

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self._FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGINT)
        return self


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_before_any_instruction_of_a_wait(manager: Any, client: Client) -> None:
    """It raises KeyboardInterrupt, no other exception, and the connection goes on."""
    manager.script.answers["ListNodes"] = pb.ListNodesReply()
    pressed = threading.Event()

    def answer(_: Any) -> Iterator[Any]:
        yield batch(b"first")
        # As long as the client waits for more, and it ends a wait with all instructions before.
        pressed.wait(0.3)
        yield batch(b"second")

    manager.script.answers["Logs"] = answer
    for instruction in range(1, 10_000):
        batches = client.stream("Logs", pb.LogsRequest(service="web"))
        next(batches)
        pressed.clear()
        at = PressedAt(instruction)
        sys.settrace(at)
        try:
            next(batches)
        except KeyboardInterrupt:
            pressed.set()
        finally:
            sys.settrace(None)
        batches.close()
        assert client.call("ListNodes", pb.ListNodesRequest()) == pb.ListNodesReply()
        if at.left > 0:
            break
    assert instruction > 100
    assert not pressed.is_set()


def test_messages_larger_than_the_flow_control_window(manager: Any, client: Client) -> None:
    line = "x" * (9 * MIB)
    manager.script.answers["Logs"] = [batch(line.encode()) for _ in range(3)]
    batches = client.stream("Logs", pb.LogsRequest(service="web"))
    parts = [record.line for some in batches for record in some.records]
    assert parts == [line.encode()] * 3

    manager.script.answers["LoadImage"] = [pb.ImageProgress(line="loaded")]
    chunks = [bytes([number]) * (3 * MIB) for number in range(5)]
    upload = (pb.ImageUpload(data=chunk) for chunk in chunks)
    assert [message.line for message in client.stream("LoadImage", upload)] == ["loaded"]
    assert [message.data for message in manager.script.request("LoadImage")] == chunks


def test_slow_reader_blocks_only_its_own_stream(manager: Any, client: Client) -> None:
    made: list[int] = []
    stuck = threading.Event()

    def records(_: Any) -> Iterator[Any]:
        for number in range(200):
            made.append(number)
            if number == 100:
                stuck.set()
            yield batch(bytes(MIB))

    manager.script.answers["Logs"] = records
    manager.script.answers["ListNodes"] = pb.ListNodesReply()
    stream = client.stream("Logs", pb.LogsRequest(service="web"))
    next(stream)
    assert client.call("ListNodes", pb.ListNodesRequest()) == pb.ListNodesReply()
    assert not stuck.is_set()
    assert sum(1 for _ in stream) == 199
    assert len(made) == 200


def test_concurrent_calls_on_one_connection(manager: Any, client: Client) -> None:
    manager.script.answers["ListTasks"] = lambda request: Refusal(
        grpc.StatusCode.NOT_FOUND, f"no '{request.service}'"
    )
    said: list[str] = []

    def ask(number: int) -> None:
        for _ in range(20):
            with pytest.raises(Refused) as refused:
                client.call("ListTasks", pb.ListTasksRequest(service=f"s{number}"))
            said.append(refused.value.message)

    with pytest.raises(Refused):
        client.call("ListTasks", pb.ListTasksRequest(service="first"))
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(said)) == [f"no 's{number}'" for number in range(5)]
    assert len(said) == 100


def test_error_messages_are_unicode(manager: Any, client: Client) -> None:
    line = "es gibt keinen Dienst 'größe', 50% davon"
    manager.script.answers["ListNodes"] = Refusal(grpc.StatusCode.NOT_FOUND, line)
    with pytest.raises(Refused, match="größe', 50% davon"):
        client.call("ListNodes", pb.ListNodesRequest())


def test_closed_stream_is_cancelled_at_the_manager(manager: Any, client: Client) -> None:
    ended = threading.Event()

    def records(_: Any) -> Iterator[Any]:
        try:
            while True:
                yield batch(b"x" * 1000)
        finally:
            ended.set()

    manager.script.answers["Logs"] = records
    stream = client.stream("Logs", pb.LogsRequest(service="web"))
    next(stream)
    stream.close()
    assert ended.wait(10)


def test_call_cancelled_by_another_thread(manager: Any, client: Client) -> None:
    release = threading.Event()

    def records(_: Any) -> Iterator[Any]:
        yield batch(b"x")
        release.wait(10)

    manager.script.answers["Logs"] = records
    calls: list[Any] = []
    stream = client.stream("Logs", pb.LogsRequest(service="web"), opened=calls.append)
    next(stream)
    threading.Timer(0.05, calls[0].cancel).start()
    with pytest.raises(ManagerLost):
        next(stream)
    release.set()


@pytest.mark.parametrize("way", ["cut", "hold"])
def test_manager_vanishes_during_a_stream(
    manager: Any, relay: Relay, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(http2_connection, "PING_AFTER", 0.2)
    monkeypatch.setattr(http2_connection, "ANSWER_WITHIN", 0.2)
    release = threading.Event()

    def records(_: Any) -> Iterator[Any]:
        yield batch(b"x")
        release.wait(10)

    manager.script.answers["Logs"] = records
    with Client(replace(manager.context, endpoints=(relay.endpoint,))) as client:
        stream = client.stream("Logs", pb.LogsRequest(service="web"))
        next(stream)
        getattr(relay, way)()
        with pytest.raises(ManagerLost, match="broke; is it still running"):
            next(stream)
    release.set()


def test_idle_stream_stays_open(
    manager: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_connection, "PING_AFTER", 0.02)
    monkeypatch.setattr(http2_connection, "ANSWER_WITHIN", 60.0)
    asked: list[int] = []
    frame = http2_connection.Connection._frame
    enough = threading.Event()

    def counted(self: Any, kind: int, *rest: Any) -> None:
        if kind == http2_connection._PING:
            asked.append(kind)
            if len(asked) == 3:  # so the first two were answered
                enough.set()
        frame(self, kind, *rest)

    def records(_: Any) -> Iterator[Any]:
        assert enough.wait(60)
        yield batch(b"x")

    monkeypatch.setattr(http2_connection.Connection, "_frame", counted)
    manager.script.answers["Logs"] = records
    assert len(list(client.stream("Logs", pb.LogsRequest(service="web")))) == 1


def test_exception_of_the_request_iterator_is_raised(manager: Any, client: Client) -> None:
    def upload() -> Iterator[Any]:
        yield pb.ImageUpload(data=b"x")
        raise FileNotFoundError(2, "No such file", "sub/x")

    manager.script.answers["LoadImage"] = []
    with pytest.raises(FileNotFoundError, match="sub/x"):
        list(client.stream("LoadImage", upload()))


def test_a_call_needs_no_heavy_module(manager: Any) -> None:
    manager.script.answers["ListNodes"] = pb.ListNodesReply()
    save_context(manager.context)
    code = (
        "import sys; from orchestrator.cli.main import orc\n"
        "try: orc.main(['node', 'ls'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'grpc', 'rich', 'cryptography', 'asyncio', 'numpy', 'tempfile'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 300, 20000])
def test_headers_of_any_length(length: int) -> None:
    fields = [(":path", "/x"), ("name", "v" * length)]
    assert list(header_blocks.decode(header_blocks.encode(fields)).items()) == fields


def test_huffman_coded_headers() -> None:
    fields = [(":status", "200"), ("grpc-status", "5"), ("grpc-message", "no service 'wéb' ~")]
    fields = [(name, quote(value, safe=" '~")) for name, value in fields]
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    block = encoder.encode(fields, huffman=True)
    assert b"grpc" not in block
    assert header_blocks.decode(block) == dict(fields)
    with pytest.raises(header_blocks.BadHeaders, match="not valid Huffman code"):
        header_blocks.decode(bytes.fromhex("0003616263 84 ffffffff"))


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        # RFC 7541, C.2.2 and C.6.1's first byte; a table's size; an indexed status.
        ("040c 2f73 616d 706c 652f 7061 7468", {}),
        ("20 88", {":status": "200"}),
        ("48 03 333032", {":status": "302"}),
        ("48 82 6402", {":status": "302"}),
        ("0003 6162 6301 78", {"abc": "x"}),
    ],
)
def test_header_encodings_of_other_implementations(block: str, fields: dict[str, str]) -> None:
    assert header_blocks.decode(bytes.fromhex(block)) == fields


@pytest.mark.parametrize("block", ["80", "be", "00", "0005 6162", "ff ffffffffff7f", "7f"])
def test_malformed_headers(block: str) -> None:
    with pytest.raises(header_blocks.BadHeaders):
        header_blocks.decode(bytes.fromhex(block))
