# SPDX-License-Identifier: Apache-2.0
"""A manager whose process is stopped, or whose host is cut off, is noticed by pings: its kernel
still answers for it, or nothing does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest

from orchestrator.agent.session.channels import IMPATIENT
from orchestrator.identity.tls import channel_options

_SERVER = """
import asyncio, grpc

async def session(requests, context):
    await context.write(b"welcome")
    async for _ in requests:
        pass

async def main():
    server = grpc.aio.server(options=[
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
        ("grpc.http2.max_ping_strikes", 0),
    ])
    handler = grpc.stream_stream_rpc_method_handler(session)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    """Its address and process id; it ends with the test, also if that is killed."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", _SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("options", [(), IMPATIENT], ids=["only one", "one of several"])
async def test_a_stopped_manager_is_noticed(
    server: tuple[str, int], options: tuple[tuple[str, int], ...]
) -> None:
    address, pid = server
    merged = [*(dict(channel_options()) | dict(options)).items()]
    async with grpc.aio.insecure_channel(address, options=merged) as channel:
        call = channel.stream_stream("/a.B/C")()
        await call.write(b"hello")
        assert await call.read() == b"welcome"
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(30):  # gRPC's own timeout is a minute
                await call.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
