# SPDX-License-Identifier: Apache-2.0
"""Errors of operations as gRPC status codes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from orchestrator.manager.api.grpc_status import streaming, unary
from orchestrator.manager.errors import ErrorKind, RequestError, not_found
from orchestrator.manager.operations.context import request_error
from orchestrator.manager.security.vault import VaultError
from orchestrator.manager.store.kv import Conflict, StoreFull, StoreUnavailable, TooLarge
from orchestrator.model.validation.service_specs import InvalidSpec
from orchestrator.pb import jobs_pb2, jobs_pb2_grpc, types_pb2


class _Jobs(jobs_pb2_grpc.JobsServicer):
    """Raises the error that a test wants."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @unary
    async def StartJob(self, request: Any, context: Any) -> Any:
        raise self._error

    @unary
    async def StopJob(self, request: Any, context: Any) -> Any:
        return types_pb2.Service(id=request.job)


async def _status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    jobs_pb2_grpc.add_JobsServicer_to_server(_Jobs(error), server)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = jobs_pb2_grpc.JobsStub(channel)
            assert (await stub.StopJob(jobs_pb2.StopJobRequest(job="web"))).id == "web"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.StartJob(jobs_pb2.StartJobRequest(job="web"))
            return caught.value.code(), caught.value.details() or ""
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (not_found("no job 'web'"), "NOT_FOUND", "no job 'web'"),
        (InvalidSpec("replicas", "negative"), "INVALID_ARGUMENT", "negative"),
        (VaultError("another key"), "FAILED_PRECONDITION", "another key"),
        (Conflict(("/orc/a",)), "ABORTED", "conflict: modified concurrently; retry"),
        (StoreFull("no space"), "FAILED_PRECONDITION", "no space"),
        (TooLarge("1 MiB"), "INVALID_ARGUMENT", "1 MiB"),
        (StoreUnavailable("no answer"), "UNAVAILABLE", "etcd is unavailable: no answer"),
        (ExceptionGroup("", [not_found("no node")]), "NOT_FOUND", "no node"),
        (KeyError("defect"), "INTERNAL", "see its log"),
    ],
)
async def test_a_caller_gets_the_status_of_an_operations_error(
    error: Exception, code: str, details: str
) -> None:
    status, text = await _status_of(error)
    assert status is grpc.StatusCode[code]
    assert details in text


def test_each_kind_of_error_is_a_status_code_of_grpc() -> None:
    assert all(grpc.StatusCode[kind.name] for kind in ErrorKind)


def test_a_defect_is_no_error_of_the_request() -> None:
    assert request_error(KeyError("x")) is None


async def test_a_stream_passes_on_replies_before_its_error() -> None:
    class Aborted(Exception):
        pass

    class Context:
        async def abort(
            self, code: grpc.StatusCode, details: str, trailers: tuple[object, ...]
        ) -> None:
            raise Aborted(code, details)

    class Handler:
        @streaming
        async def Numbers(self, request: int, context: Any) -> AsyncIterator[int]:
            yield request
            raise RequestError(ErrorKind.ABORTED, "changed")

    numbers = Handler().Numbers(1, Context())
    assert await anext(numbers) == 1
    with pytest.raises(Aborted) as caught:
        await anext(numbers)
    assert caught.value.args == (grpc.StatusCode.ABORTED, "changed")
