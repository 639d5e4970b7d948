# SPDX-License-Identifier: Apache-2.0
"""A client's end of one HTTP/2 connection (RFC 9113) over TLS, for threads.

Importing gRPC takes as long as the rest of a short command, so the client implements the subset of
HTTP/2 that its calls need.

Why not `h2`: its state machine closes the connection at the first GOAWAY and rejects later frames
(ProtocolError in 4.4.1), while a gRPC server that stops announces it by GOAWAY and still finishes
calls in progress. It adds 31 ms of CPU time to the 128 ms of `orc node ls` (minima of 41 runs by
turns on a busy machine; `hpack` alone 13 ms), and takes 6 µs per frame of data, this 0.8. Threads,
flow of data between them and detection of a silent peer, most of the code below, would remain.

One lock guards everything, including the TLS object. Senders append whole frames to the output
buffer and write as much as the socket accepts; the connection's thread reads, writes the rest, and
pings a silent peer. Readers of a stream wait for that thread's notification. A stream's data is
acknowledged when it is read, so a slow reader only slows the sender of its own stream. Ctrl-C is
deferred while the main thread holds the lock, and ends its waits.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress

from orchestrator.cli.app.interrupts import deferred, wait
from orchestrator.cli.rpc.header_blocks import BadHeaders, decode, encode

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = struct.Struct("!HBBBL")
"""A frame's length (16 and 8 bits), type, flags and stream."""
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    *(0, 1, 3, 4, 6, 7, 8, 9),
)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 1, 2, 4, 5
_NO_ERROR, _CANCEL = 0, 8

_DEFAULT_WINDOW, _DEFAULT_FRAME = 65535, 16384
_WINDOW = 1 << 20
"""Receive window of a stream: bytes that its reader has not consumed."""
_CONNECTION_WINDOW = 1 << 30
"""Receive window of the connection: practically unlimited."""
_OUT_LIMIT = 1 << 18
"""Bytes in the output buffer at which senders block."""
_CHUNK = 1 << 16

PING_AFTER = 2.0
"""Seconds of silence, while a stream is open, after which the peer is pinged."""
ANSWER_WITHIN = 2.0
"""Seconds to answer the ping before the connection is closed."""


class ConnectionBroken(Exception):
    """The connection broke; the text says how. `greeted`: whether the peer spoke HTTP/2; `silent`:
    whether it did not answer a ping."""

    def __init__(self, text: str, greeted: bool, silent: bool) -> None:
        super().__init__(text)
        self.greeted = greeted
        self.silent = silent


class StreamReset(Exception):
    """The peer reset a stream; `code` is the error code (RFC 9113, section 7)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the stream was reset ({code})")
        self.code = code


class Stream:
    """One request and its answer. Made by `Connection.open`."""

    def __init__(self, connection: Connection, number: int, window: int) -> None:
        self._connection = connection
        self.number = number
        self.window = window
        """Bytes that may still be sent."""
        self.fields: dict[str, str] = {}
        """Headers and trailers of the response."""
        self.chunks: deque[bytes] = deque()
        self.unacknowledged = 0
        """Bytes consumed and not yet acknowledged."""
        self.sent_all = False
        self.received_all = False
        self.reset: int | None = None

    def send(self, data: bytes, end: bool = False) -> None:
        """Send data, and the end of it; waits while the peer takes no more. Raises
        ConnectionBroken, StreamReset."""
        self._connection.send(self, data, end)

    def receive(self, until: float | None) -> bytes | None:
        """The next data; None at the end, when `fields` is complete. `until`: of the monotonic
        clock. Raises TimeoutError, ConnectionBroken, StreamReset."""
        return self._connection.receive(self, until)

    def cancel(self) -> None:
        """Cancel it; no-op if it has ended."""
        self._connection.cancel(self)


class Connection:
    """One connection. It has a thread of its own until it is closed or broken."""

    def __init__(self, tls: ssl.SSLSocket, ping_after: float | None = None) -> None:
        """`tls`: after the handshake; it is closed with the connection. `ping_after`: as
        PING_AFTER, which is the default."""
        self._ping_after = ping_after
        tls.setblocking(False)
        tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = tls
        self._changed = threading.Condition()
        self._wake, self._waker = socket.socketpair()
        """The connection's thread waits at one end for a byte from the other."""
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._streams: dict[int, Stream] = {}
        self._next_number = 1
        self._broken = ""
        self._greeted = self._silent = False
        self._window = _DEFAULT_WINDOW
        """Bytes that may still be sent, of all streams together."""
        self._first_window = _DEFAULT_WINDOW
        self._largest = _DEFAULT_FRAME
        self._received = 0
        """Bytes of data not acknowledged for the connection."""
        self._block = bytearray()
        """The header block that is coming in."""
        self._block_ends_stream = 0
        self._in = bytearray()
        settings = struct.pack(
            "!HLHLHLHL",
            *(_HEADER_TABLE_SIZE, 0, _ENABLE_PUSH, 0),
            *(_INITIAL_WINDOW_SIZE, _WINDOW, _MAX_FRAME_SIZE, _CHUNK),
        )
        self._out = bytearray(_PREFACE)
        self._frame(_SETTINGS, 0, 0, settings)
        self._frame(_WINDOW_UPDATE, 0, 0, struct.pack("!L", _CONNECTION_WINDOW - _DEFAULT_WINDOW))
        with deferred:
            threading.Thread(target=self._run, daemon=True).start()

    def await_greeting(self, within: float) -> bool:
        """Wait for the peer's first frame: False if it closes the connection without any. Raises
        TimeoutError after `within` seconds."""
        with deferred, self._changed:
            if not self._broken:
                self._send_pending()
            until = time.monotonic() + within
            while not (self._greeted or self._broken):
                if (left := until - time.monotonic()) <= 0:
                    raise TimeoutError
                wait(self._changed, left, self._wake_thread)
            return self._greeted

    def open(self, fields: Iterable[tuple[str, str]]) -> Stream:
        """Begin a request; its headers go out with its first data. Raises ConnectionBroken."""
        with deferred, self._changed:
            self._check()
            stream = Stream(self, self._next_number, self._first_window)
            self._next_number += 2
            self._streams[stream.number] = stream
            self._frame(_HEADERS, _END_HEADERS, stream.number, encode(fields))
            return stream

    def close(self) -> None:
        """Close it. Readers of its streams get ConnectionBroken."""
        with deferred, self._changed:
            if not self._broken:
                self._frame(_GOAWAY, 0, 0, struct.pack("!LL", 0, _NO_ERROR))
                self._flush()
                self._fail("it was closed")

    def send(self, stream: Stream, data: bytes, end: bool) -> None:
        """See `Stream.send`."""
        rest = memoryview(data)
        with deferred, self._changed:
            while True:
                if stream.received_all:
                    return  # the response is already complete
                self._check(stream)
                room = min(self._window, stream.window, self._largest)
                if rest and (room <= 0 or len(self._out) > _OUT_LIMIT):
                    self._send_pending()
                    wait(self._changed, None, self._wake_thread)
                    continue
                part, rest = rest[:room], rest[room:]
                self._window -= len(part)
                stream.window -= len(part)
                last = end and not rest
                if part or last:
                    self._frame(_DATA, _END_STREAM if last else 0, stream.number, part)
                if not rest:
                    break
            if end:
                stream.sent_all = True
                self._remove_if_closed(stream)
            self._send_pending()

    def receive(self, stream: Stream, until: float | None) -> bytes | None:
        """See `Stream.receive`."""
        with deferred, self._changed:
            while not stream.chunks:
                if stream.received_all:
                    return None
                self._check(stream)
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                wait(self._changed, left, self._wake_thread)
            data = stream.chunks.popleft()
            stream.unacknowledged += len(data)
            if (
                stream.unacknowledged >= _WINDOW // 2
                and not stream.received_all
                and not self._broken
            ):
                self._frame(
                    _WINDOW_UPDATE, 0, stream.number, struct.pack("!L", stream.unacknowledged)
                )
                stream.unacknowledged = 0
                self._send_pending()
            return data

    def cancel(self, stream: Stream) -> None:
        """See `Stream.cancel`."""
        with deferred, self._changed:
            if stream.number not in self._streams or self._broken:
                return
            stream.reset = _CANCEL
            del self._streams[stream.number]
            self._frame(_RST_STREAM, 0, stream.number, struct.pack("!L", _CANCEL))
            self._send_pending()
            self._changed.notify_all()

    def _check(self, stream: Stream | None = None) -> None:
        if stream is not None and stream.reset is not None:
            raise StreamReset(stream.reset)
        if self._broken:
            raise ConnectionBroken(self._broken, self._greeted, self._silent)

    def _frame(self, kind: int, flags: int, number: int, payload: bytes | memoryview) -> None:
        size = len(payload)
        self._out += _HEAD.pack(size >> 8, size & 255, kind, flags, number)
        self._out += payload

    def _send_pending(self) -> None:
        """Write what the socket accepts; the connection's thread writes the rest."""
        self._flush()
        if self._out:
            self._wake_thread()

    def _wake_thread(self) -> None:
        """Wake the connection's thread."""
        with suppress(OSError):  # earlier wake-ups are still pending, or the thread has ended
            self._waker.send(b"\0")

    def _flush(self) -> None:
        try:
            while self._out and not self._broken:
                del self._out[: self._tls.send(self._out)]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError:
            # The reading thread finds the reason, after the peer's last frames.
            self._out.clear()

    def _run(self) -> None:
        """The connection's thread."""
        selector = selectors.DefaultSelector()
        selector.register(self._wake, selectors.EVENT_READ)
        selector.register(self._tls, selectors.EVENT_READ)
        pinged = False
        while True:
            with self._changed:
                received_any = self._receive_available()
                if self._broken:
                    selector.close()
                    for each in (self._tls, self._wake, self._waker):
                        each.close()
                    return
                if received_any:
                    pinged = False
                self._flush()
                self._changed.notify_all()
                writes = selectors.EVENT_WRITE if self._out else 0
                selector.modify(self._tls, selectors.EVENT_READ | writes)
            ready = selector.select(ANSWER_WITHIN if pinged else self._ping_after or PING_AFTER)
            with self._changed:
                if any(key.fileobj is self._wake for key, _ in ready):
                    with suppress(BlockingIOError):
                        self._wake.recv(_CHUNK)
                if not ready and self._streams:
                    if pinged:
                        self._silent = True
                        self._fail("the manager does not answer")
                    pinged = True
                    self._frame(_PING, 0, 0, bytes(8))

    def _receive_available(self) -> bool:
        """Read all available data; whether there was any."""
        received_any = False
        try:
            while not self._broken:
                data = self._tls.recv(_CHUNK)
                if not data:
                    self._fail("the manager closed it")
                    return received_any
                received_any = True
                self._in += data
                self._parse()
        except ssl.SSLWantReadError:
            pass
        except (BadHeaders, struct.error) as error:
            self._fail(str(error))
        except OSError as error:
            self._fail((error.strerror or str(error)).lower())
        return received_any

    def _fail(self, why: str) -> None:
        if self._broken:
            return
        self._broken = why
        self._streams.clear()
        self._wake_thread()
        self._changed.notify_all()

    def _parse(self) -> None:
        while len(self._in) >= _HEAD.size:
            high, low, kind, flags, number = _HEAD.unpack_from(self._in)
            size = high << 8 | low
            if len(self._in) < _HEAD.size + size:
                return
            payload = bytes(memoryview(self._in)[_HEAD.size : _HEAD.size + size])
            del self._in[: _HEAD.size + size]
            self._handle(kind, flags, number & 0x7FFFFFFF, payload)

    def _handle(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        stream = self._streams.get(number)
        if kind == _DATA:
            self._handle_data(stream, payload, flags)
        elif kind in (_HEADERS, _CONTINUATION):
            self._handle_headers(stream, kind, payload, flags)
        elif kind == _RST_STREAM and stream is not None:
            stream.reset = struct.unpack("!L", payload)[0]
            del self._streams[number]
        elif kind == _SETTINGS and not flags & _ACK:
            self._greeted = True
            self._handle_settings(payload)
            self._frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE:
            more = struct.unpack("!L", payload)[0]
            if number == 0:
                self._window += more
            elif stream is not None:
                stream.window += more
        elif kind == _GOAWAY:
            last = struct.unpack_from("!L", payload)[0]
            if all(number > last for number in self._streams):
                self._fail("the manager is going away")

    def _handle_data(self, stream: Stream | None, payload: bytes, flags: int) -> None:
        self._received += len(payload)
        if self._received >= _CONNECTION_WINDOW // 2:
            self._frame(_WINDOW_UPDATE, 0, 0, struct.pack("!L", self._received))
            self._received = 0
        if stream is None:
            return
        if data := _unpadded(payload, flags):
            stream.chunks.append(data)
        self._end_if_last(stream, flags)

    def _handle_headers(self, stream: Stream | None, kind: int, payload: bytes, flags: int) -> None:
        if kind == _HEADERS:
            payload = _unpadded(payload, flags)
            self._block = bytearray(payload[5:] if flags & _PRIORITY else payload)
            self._block_ends_stream = flags & _END_STREAM
        else:
            self._block += payload
        if flags & _END_HEADERS and stream is not None:
            stream.fields.update(decode(bytes(self._block)))
            self._end_if_last(stream, self._block_ends_stream)

    def _handle_settings(self, payload: bytes) -> None:
        settings: Mapping[int, int] = dict(struct.iter_unpack("!HL", payload))
        self._largest = settings.get(_MAX_FRAME_SIZE, self._largest)
        window = settings.get(_INITIAL_WINDOW_SIZE, self._first_window)
        for stream in self._streams.values():
            stream.window += window - self._first_window
        self._first_window = window

    def _end_if_last(self, stream: Stream, flags: int) -> None:
        if flags & _END_STREAM:
            stream.received_all = True
            self._remove_if_closed(stream)

    def _remove_if_closed(self, stream: Stream) -> None:
        """Remove a stream that is closed in both directions."""
        if stream.sent_all and stream.received_all:
            self._streams.pop(stream.number, None)


def _unpadded(payload: bytes, flags: int) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload
