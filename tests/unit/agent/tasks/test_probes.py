# SPDX-License-Identifier: Apache-2.0
"""What a node asks containers, of real servers on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.tasks.health_checks import ProbeResult
from orchestrator.agent.tasks.probes import Probes
from orchestrator.model.specs import HealthCheck
from orchestrator.pb import health_pb2


def no_access(container_id: str) -> ContainerHandle:
    raise RuntimeFailure("the container does not run any more")


async def ask(kind: str, argument: str, timeout: float = 5.0) -> ProbeResult:
    check = HealthCheck((kind, argument), timeout=timeout)
    return await Probes(no_access).probe("c1", check, {"default": "127.0.0.1"})


@asynccontextmanager
async def server(answer: bytes | None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that reads a request and answers so, or never (None): its port, and what came."""
    requests: list[bytes] = []
    open_writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)  # one that is collected closes its connection
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        if answer is not None:
            writer.write(answer)
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1], requests
        for writer in open_writers:
            writer.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nfine", ProbeResult(True)),
        (b"HTTP/1.0 302 Found\r\nLocation: /login\r\n\r\n", ProbeResult(True)),
        (b"HTTP/1.1 503 Not now\r\n\r\n", ProbeResult(False, "HTTP status 503 Not now")),
        (b"HTTP/1.1 404\r\n\r\n", ProbeResult(False, "HTTP status 404")),
        (b"SSH-2.0-OpenSSH_9\r\n", ProbeResult(False, "the answer is not HTTP")),
        (b"", ProbeResult(False, "the answer is not HTTP")),
    ],
)  # fmt: skip
async def test_http_probe(answer: bytes, expected: ProbeResult) -> None:
    async with server(answer) as (port, requests):
        assert await ask("HTTP", f"{port}/ready?now=1") == expected
    assert requests[0].startswith(b"GET /ready?now=1 HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_http_without_a_path_asks_for_the_root() -> None:
    async with server(b"HTTP/1.1 204 No Content\r\n\r\n") as (port, requests):
        assert (await ask("HTTP", str(port))).passed
    assert requests[0].startswith(b"GET / HTTP/1.1\r\n")


async def test_no_welcome_in_time() -> None:
    async with server(None) as (port, _):
        assert await ask("HTTP", str(port), 0.05) == ProbeResult(False, "no answer within 0.05 s")


async def test_tcp_probe() -> None:
    async with server(b"") as (port, _):
        assert await ask("TCP", str(port)) == ProbeResult(True)
    answer = await ask("TCP", str(port))
    assert not answer.passed
    assert "connect call failed" in answer.output or "refused" in answer.output


@asynccontextmanager
async def grpc_server(status: int) -> AsyncIterator[tuple[int, list[str]]]:
    """A server of grpc.health.v1 that always answers so: its port, and which services were
    asked for."""
    asked: list[str] = []

    async def check(request: health_pb2.HealthProbe, _: object) -> health_pb2.HealthAnswer:
        asked.append(request.service)
        return health_pb2.HealthAnswer(status=status)

    made = grpc.aio.server()
    made.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "grpc.health.v1.Health",
                {
                    "Check": grpc.unary_unary_rpc_method_handler(
                        check,
                        request_deserializer=health_pb2.HealthProbe.FromString,
                        response_serializer=health_pb2.HealthAnswer.SerializeToString,
                    )
                },
            )
        ]
    )
    port = made.add_insecure_port("127.0.0.1:0")
    await made.start()
    try:
        yield port, asked
    finally:
        await made.stop(None)


async def test_grpc_probe() -> None:
    async with grpc_server(1) as (port, asked):
        assert await ask("GRPC", str(port)) == ProbeResult(True)
        assert await ask("GRPC", f"{port}/shop.Cart") == ProbeResult(True)
    assert asked == ["", "shop.Cart"]
    async with grpc_server(2) as (port, _):
        assert await ask("GRPC", str(port)) == ProbeResult(
            False, "gRPC health status is not SERVING"
        )
    answer = await ask("GRPC", str(port))
    assert answer.output.startswith("unavailable: ")


async def test_a_container_that_cannot_be_entered_fails_its_probe() -> None:
    answer = await ask("CMD-SHELL", "true")
    assert answer == ProbeResult(False, "the container does not run any more")
