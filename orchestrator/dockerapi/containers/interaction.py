# SPDX-License-Identifier: Apache-2.0
"""Endpoints of attach and exec.

An exec is created by one request and started by another. Its id is its configuration, so any
gateway starts it; how it ended is known to the gateway that started it, and to the node.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from google.protobuf.message import DecodeError

from orchestrator.cli.app.errors import CliError
from orchestrator.cli.container.terminal import DETACH_KEYS, parse_keys
from orchestrator.dockerapi.containers.creation import console_size
from orchestrator.dockerapi.containers.documents import Found
from orchestrator.dockerapi.containers.lookup import find, until
from orchestrator.dockerapi.containers.output import past_output
from orchestrator.dockerapi.containers.session import STDERR, STDOUT, Session, exec_status
from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.errors import ApiError, bad_parameter, conflict, not_found
from orchestrator.dockerapi.http.exchange import MULTIPLEXED, RAW, Duplex, Hijack, Reply, Request
from orchestrator.dockerapi.http.routing import SAME, Routes
from orchestrator.dockerapi.ids import docker_id
from orchestrator.dockerapi.parameters import Fields
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.pb import containers_pb2, interact_pb2

ROUTES = Routes()
route = ROUTES.route

_MOST_ID = 1 << 15
"""Characters of an exec's id."""


@route(
    "POST",
    "/containers/{id}/attach",
    detachKeys=SAME,
    logs=SAME,
    stream=SAME,
    stdin=SAME,
    stdout=SAME,
    stderr=SAME,
)
def attach(gateway: Gateway, request: Request) -> Hijack:
    """Join a container's streams; before it is started, too. `logs`: after its output so far."""
    found = find(gateway, request["id"])
    if found.state == "paused":
        raise conflict(f"container {found.id} is paused, unpause the container before attach")
    streams, tty = _streams(request), found.task.spec.container.tty
    keys = _keys(request.text("detachKeys"))

    def write_logs(connection: Duplex) -> None:
        if request.flag("logs"):
            chosen = {"stdout": STDOUT in streams, "stderr": STDERR in streams}
            with suppress(CliError):  # the reply has begun: what is left is to go on
                for piece in past_output(gateway, found, **chosen):
                    connection.write(piece)

    if not request.flag("stream"):
        return Hijack(write_logs, _content_type(request, tty))
    _prepare(gateway, found)
    first = interact_pb2.AttachRequest(container=found.task.id, stdin=request.flag("stdin"))
    size = gateway.first_sizes.take(found.id)
    if size is not None and found.state == "created":
        first.size.rows, first.size.columns = size
    session = Session(gateway, first, keys=keys, streams=streams)
    if not request.flag("logs"):
        session.open()
    return _hijack(gateway, request, found.id, session, tty=tty, before=write_logs)


def _prepare(gateway: Gateway, found: Found) -> None:
    """Prepare the next run of one that has ended, so that the client attaches before its start."""
    task = found.task
    if not is_terminal(task.status.state):
        return
    message = containers_pb2.ContainerRequest(container=task.id)
    run = gateway.call("Containers.PrepareContainer", message).run
    until(
        gateway,
        task.id,
        lambda each, gone: (
            each.task.status.run >= run and each.task.status.state >= TaskState.READY
        ),
    )


def _streams(request: Request) -> tuple[int, ...]:
    wanted = [(STDOUT, request.flag("stdout")), (STDERR, request.flag("stderr"))]
    return tuple(stream for stream, asked in wanted if asked)


def _keys(text: str) -> bytes:
    try:
        return parse_keys(text or DETACH_KEYS)
    except ValueError as error:
        raise bad_parameter(f"Invalid detach keys ({text}) provided: {error}") from None


def _hijack(
    gateway: Gateway,
    request: Request,
    id: str,
    session: Session,
    *,
    tty: bool,
    before: Callable[[Duplex], None] = lambda connection: None,
) -> Hijack:
    """`before` writes what precedes the session's output."""

    def serve(connection: Duplex) -> None:
        gateway.sessions.add(id, session)
        try:
            before(connection)
            session.ensure_open()
            session.serve(connection)
        finally:
            gateway.sessions.remove(id, session)

    return Hijack(serve, _content_type(request, tty))


def _content_type(request: Request, tty: bool) -> str:
    return MULTIPLEXED if not tty and request.version >= (1, 42) else RAW


@route("GET", "/containers/{id}/attach/ws", "refused: attach by an upgrade of the connection")
def attach_websocket(gateway: Gateway, request: Request) -> Reply:
    """Not served."""
    raise ApiError(HTTPStatus.NOT_IMPLEMENTED, "attach over a WebSocket is not supported")


@route("POST", "/containers/{id}/resize", h=SAME, w=SAME)
def resize(gateway: Gateway, request: Request) -> Reply:
    """Give a container's terminal a size."""
    rows, columns = _size(request)
    found = find(gateway, request["id"])
    if found.state != "running":
        # Clients resize at once after a start, which may not have completed.
        raise conflict(f"Container {found.id} is not running")
    if not gateway.sessions.resize(found.id, rows, columns) and found.task.spec.container.tty:
        size = interact_pb2.TerminalSize(rows=rows, columns=columns)
        session = Session(gateway, interact_pb2.AttachRequest(container=found.task.id, size=size))
        session.open()
        session.close()
    return Reply()


def _size(request: Request) -> tuple[int, int]:
    rows, columns = request.number("h", -1), request.number("w", -1)
    if not (0 <= rows < 1 << 16 and 0 <= columns < 1 << 16):
        raise bad_parameter(
            f"invalid size of a terminal: h={request.text('h')}, w={request.text('w')}"
        )
    return rows, columns


@route(
    "POST",
    "/containers/{id}/exec",
    AttachStdin=SAME,
    AttachStdout=SAME,
    AttachStderr=SAME,
    ConsoleSize=SAME,
    DetachKeys=SAME,
    Tty=SAME,
    Env=SAME,
    Cmd=SAME,
    Privileged=SAME,
    User=SAME,
    WorkingDir=SAME,
)
def create_exec(gateway: Gateway, request: Request) -> Reply:
    """Describe a process that is to run in a container."""
    body = Fields(request.json())
    found = find(gateway, request["id"])
    if found.state == "paused":
        raise conflict(f"Container {request['id']} is paused, unpause the container before exec")
    if found.state != "running":
        raise conflict(f"container {found.id} is not running")
    command = body.texts("Cmd")
    if not command:
        raise bad_parameter("No exec command specified")
    keys = body.text("DetachKeys")
    _keys(keys)
    message = interact_pb2.ExecRequest(
        container=found.task.id,
        command=command,
        tty=body.flag("Tty"),
        stdin=body.flag("AttachStdin"),
        env=body.texts("Env"),
        user=body.text("User"),
        workdir=body.text("WorkingDir"),
        privileged=body.flag("Privileged"),
        session=os.urandom(16).hex(),
    )
    if "ConsoleSize" in body:
        message.size.rows, message.size.columns = console_size(body)
    flags = "".join("01"[body.flag(name)] for name in ("AttachStdout", "AttachStderr"))
    packed = zlib.compress(message.SerializeToString(), 9).hex()
    keys_part = keys.encode().hex()
    id = f"{flags}{len(keys_part):03x}{keys_part}{packed}"
    if len(id) > _MOST_ID:
        raise bad_parameter("the command and environment of an exec are too large")
    return Reply({"Id": id}, HTTPStatus.CREATED)


@dataclass(frozen=True, slots=True)
class _Described:
    """What an exec's id says."""

    message: Any
    stdout: bool
    stderr: bool
    keys: str


def _described(id: str) -> _Described:
    try:
        if not id.isascii() or id != id.lower():
            raise ValueError
        length = int(id[2:5], 16)
        keys = bytes.fromhex(id[5 : 5 + length]).decode()
        unpacker = zlib.decompressobj()
        packed = unpacker.decompress(bytes.fromhex(id[5 + length :]), _MOST_ID * 64)
        message = interact_pb2.ExecRequest.FromString(packed)
    except (ValueError, zlib.error, DecodeError, UnicodeDecodeError):
        raise not_found("exec instance", id[:64]) from None
    if not message.container or not message.command:
        raise not_found("exec instance", id[:64])
    return _Described(message, id[0] == "1", id[1] == "1", keys)


@route("POST", "/exec/{id}/start", Detach=SAME, Tty=SAME, ConsoleSize=SAME)
def start_exec(gateway: Gateway, request: Request) -> Reply | Hijack:
    """Run the process."""
    body = Fields(request.json())
    described = _described(request["id"])
    message, detach = described.message, body.flag("Detach")
    found = find(gateway, docker_id(message.container))
    if found.state != "running":
        raise conflict(f"Container {found.id} is not running")
    if "ConsoleSize" in body:
        message.size.rows, message.size.columns = console_size(body)
    run = gateway.execs.start(request["id"])

    def ended(code: int) -> None:
        run.running, run.exit_code = False, code

    streams = tuple(
        stream
        for stream, wanted in ((STDOUT, described.stdout), (STDERR, described.stderr))
        if wanted
    )
    session = Session(gateway, message, keys=_keys(described.keys), streams=streams, ended=ended)
    if detach:
        # Its streams are read until its end, which clients ask for.
        message.stdin = False
        session.open()
        threading.Thread(target=session.serve, args=(_Nothing(),), daemon=True).start()
        return Reply()
    # Opened once the headers are sent: a client may lose output that comes with them.
    return _hijack(gateway, request, request["id"], session, tty=session.tty)


class _Nothing:
    """A connection of a detached process: no input, output is dropped."""

    def read(self) -> bytes:
        return b""

    def write(self, data: bytes) -> None:
        pass


@route("POST", "/exec/{id}/resize", h=SAME, w=SAME)
def resize_exec(gateway: Gateway, request: Request) -> Reply:
    """Give a process's terminal a size."""
    rows, columns = _size(request)
    _described(request["id"])
    gateway.sessions.resize(request["id"], rows, columns)
    return Reply()


@route("GET", "/exec/{id}/json")
def inspect_exec(gateway: Gateway, request: Request) -> Reply:
    """A process's configuration, and how it ended."""
    id = request["id"]
    described = _described(id)
    message = described.message
    running, exit_code = _state(gateway, id, message)
    return Reply(
        {
            "ID": id,
            "Running": running,
            "ExitCode": exit_code,
            "ProcessConfig": {
                "tty": message.tty,
                "entrypoint": message.command[0],
                "arguments": list(message.command[1:]),
                "privileged": message.privileged,
                **({"user": message.user} if message.user else {}),
            },
            "OpenStdin": message.stdin,
            "OpenStderr": described.stderr,
            "OpenStdout": described.stdout,
            "CanRemove": False,
            "ContainerID": docker_id(message.container),
            "DetachKeys": described.keys,
            "Pid": 0,
        }
    )


def _state(gateway: Gateway, id: str, message: Any) -> tuple[bool, int | None]:
    """Whether an exec runs, and its exit status; None for one that has not ended."""
    run = gateway.execs.get(id)
    if run is not None and not run.running:
        return False, run.exit_code
    asked = interact_pb2.GetExecRequest(container=message.container, session=message.session)
    try:
        state = gateway.call("Interact.GetExec", asked)
    except CliError:  # the container or its node is gone
        return run is not None, None
    if state.state == interact_pb2.ExecState.EXITED:
        return False, exec_status(state.exit_code, state.error)
    return state.state == interact_pb2.ExecState.RUNNING or run is not None, None
