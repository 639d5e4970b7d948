# SPDX-License-Identifier: Apache-2.0
"""Endpoints of a container's logs, processes and statistics."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from typing import Any

from orchestrator.cli.rpc.log_resumption import LogResumption
from orchestrator.dockerapi.containers.documents import Found
from orchestrator.dockerapi.containers.lookup import find
from orchestrator.dockerapi.containers.session import STDERR, STDOUT, frame
from orchestrator.dockerapi.gateway import Gateway, Streamed
from orchestrator.dockerapi.http.errors import bad_parameter, conflict
from orchestrator.dockerapi.http.exchange import MULTIPLEXED, RAW, Reply, Request, Stream
from orchestrator.dockerapi.http.routing import SAME, Routes
from orchestrator.dockerapi.parameters import moment, rfc3339
from orchestrator.dockerapi.resumed_stream import ResumedStream
from orchestrator.model.units import SHARES_PER_CORE
from orchestrator.pb import control_pb2, interact_pb2

ROUTES = Routes()
route = ROUTES.route

_PIECE = 1 << 16
"""Bytes of frames that are sent together."""


@route(
    "GET",
    "/containers/{id}/logs",
    follow=SAME,
    stdout=SAME,
    stderr=SAME,
    since=SAME,
    until=SAME,
    timestamps=SAME,
    tail=SAME,
)
def logs(gateway: Gateway, request: Request) -> Stream:
    """A container's output so far, and while it goes on."""
    found = find(gateway, request["id"])
    return stream_logs(gateway, request, found.task.id, tty=found.task.spec.container.tty)


def stream_logs(
    gateway: Gateway, request: Request, source: str, *, tty: bool = False, names: bool = False
) -> Stream:
    """The output of a task or service. `names`: before each line, as Swarm's clients read it."""
    stdout, stderr = request.flag("stdout"), request.flag("stderr")
    if not (stdout or stderr):
        raise bad_parameter("Bad parameters: you must choose at least one stream")
    now = time.time()
    tail = request.text("tail") or "all"
    wanted_lines = control_pb2.LogsRequest(
        service=source,
        follow=request.flag("follow"),
        # As in Docker, what is no number is all.
        tail=int(tail) if tail.isascii() and tail.isdecimal() else -1,
        since=moment(request.text("since"), "since", now),
        until=moment(request.text("until"), "until", now),
    )
    calls = ResumedStream(gateway, "Logs", LogResumption(wanted_lines))
    wanted = {False: stdout, True: stderr}
    frames = _frames(calls, wanted, request.flag("timestamps"), tty, names)
    multiplexed = not tty and request.version >= (1, 42)
    return Stream(frames, MULTIPLEXED if multiplexed else RAW, calls.cancel)


def past_output(gateway: Gateway, found: Found, *, stdout: bool, stderr: bool) -> Iterator[bytes]:
    """A container's output so far, as attached clients read it."""
    lines = control_pb2.LogsRequest(service=found.task.id, tail=-1)
    calls = ResumedStream(gateway, "Logs", LogResumption(lines))
    wanted = {False: stdout, True: stderr}
    return _frames(calls, wanted, False, found.task.spec.container.tty, False)


def _frames(
    calls: ResumedStream, wanted: dict[bool, bool], timestamps: bool, tty: bool, names: bool
) -> Iterator[bytes]:
    for batch in calls:
        pieces: list[bytes] = []
        size = 0
        for record in batch.records:
            if record.notice or not wanted[record.stderr]:
                continue
            text = record.line + b"\n"
            if names:
                text = _context(batch) + b" " + text
            if timestamps:
                text = rfc3339(record.at).encode() + b" " + text
            piece = text if tty else frame(STDERR if record.stderr else STDOUT, text)
            pieces.append(piece)
            size += len(piece)
            if size > _PIECE:
                yield b"".join(pieces)
                pieces, size = [], 0
        if pieces:
            yield b"".join(pieces)


def _context(batch: Any) -> bytes:
    """Swarm's details of a line."""
    from orchestrator.dockerapi.ids import swarm_id

    return (
        f"com.docker.swarm.node.id={batch.node},com.docker.swarm.service.id=,"
        f"com.docker.swarm.task.id={swarm_id(batch.task_id)}"
    ).encode()


@route("GET", "/containers/{id}/top", ps_args=SAME)
def top(gateway: Gateway, request: Request) -> Reply:
    """The processes of a container."""
    found = find(gateway, request["id"])
    if found.state not in ("running", "paused"):
        raise conflict(f"container {found.id} is not running")
    try:
        options = shlex.split(request.text("ps_args") or "-ef")
    except ValueError as error:
        raise bad_parameter(f"ps_args: {error}") from None
    message = interact_pb2.TopRequest(container=found.task.id, ps_options=options)
    reply = gateway.call("Interact.Top", message)
    rows = [list(row.fields) for row in reply.processes]
    return Reply({"Titles": list(reply.titles), "Processes": rows})


@route("GET", "/containers/{id}/stats", **{"stream": SAME, "one-shot": SAME})
def stats(gateway: Gateway, request: Request) -> Stream | Reply:
    """Resource usage, about every second."""
    found = find(gateway, request["id"])
    if found.state not in ("running", "paused"):
        document = _usage(found, None, None)
        return Reply(document)
    calls = gateway.stream("Interact.Stats", interact_pb2.StatsRequest(containers=[found.task.id]))
    endless, samples = request.flag("stream", True), 1 if request.flag("one-shot") else 2
    return Stream(_documents(calls, found, 0 if endless else samples), cancel=calls.cancel)


def _documents(calls: Streamed, found: Found, samples: int) -> Iterator[bytes]:
    """`samples`: which one alone is sent; 0: all."""
    before: Any = None
    number = 0
    for message in calls:
        for sample in message.containers:
            if sample.task_id != found.task.id:
                continue
            number += 1
            if samples in (0, number):
                yield json.dumps(_usage(found, sample, before)).encode() + b"\n"
            if number == samples:
                return
            before = sample


def _usage(found: Found, sample: Any, before: Any) -> dict[str, Any]:
    cores = 1
    if found.node is not None:
        cores = max(1, found.node.description.resources.shares // SHARES_PER_CORE)
    now = time.time()
    document: dict[str, Any] = {
        "read": rfc3339(now) if sample is not None else rfc3339(0),
        "preread": rfc3339(now - (sample.at - before.at)) if before is not None else rfc3339(0),
        "id": found.id,
        "name": f"/{found.name}",
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(sample, cores),
        "precpu_stats": _cpu(before, cores),
        "pids_stats": {},
        "memory_stats": {},
        "blkio_stats": {"io_service_bytes_recursive": None},
    }
    if sample is None:
        return document
    document["pids_stats"] = {"current": sample.pids}
    if sample.pids_limit:
        document["pids_stats"]["limit"] = sample.pids_limit
    document["memory_stats"] = {
        "usage": sample.memory,
        "limit": sample.memory_limit,
        "stats": {"inactive_file": 0, "total_inactive_file": 0},
    }
    document["blkio_stats"] = {
        "io_service_bytes_recursive": [
            {"major": 0, "minor": 0, "op": "read", "value": sample.block_read},
            {"major": 0, "minor": 0, "op": "write", "value": sample.block_written},
        ]
    }
    zeros = dict.fromkeys(
        ("rx_packets", "rx_errors", "rx_dropped", "tx_packets", "tx_errors", "tx_dropped"), 0
    )
    document["networks"] = {
        "eth0": {"rx_bytes": sample.net_received, "tx_bytes": sample.net_sent, **zeros}
    }
    return document


def _cpu(sample: Any, cores: int) -> dict[str, Any]:
    if sample is None:
        usage: dict[str, Any] = {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}
        return {"cpu_usage": usage, "throttling_data": _NOT_THROTTLED}
    return {
        "cpu_usage": {
            "total_usage": sample.cpu,
            "usage_in_kernelmode": 0,
            "usage_in_usermode": sample.cpu,
        },
        # Clients divide by the time of all processors.
        "system_cpu_usage": int(sample.at * 1e9) * cores,
        "online_cpus": cores,
        "throttling_data": _NOT_THROTTLED,
    }


_NOT_THROTTLED = {"periods": 0, "throttled_periods": 0, "throttled_time": 0}
