# SPDX-License-Identifier: Apache-2.0
"""Probes of a container: a program in it, or HTTP, TCP or gRPC from its node."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping

import grpc

from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.io import execs
from orchestrator.agent.runtime.io.execs import ExecProgram, ExecSpec
from orchestrator.agent.tasks.health_checks import ProbeResult
from orchestrator.linux.processes import ProcessIdentity
from orchestrator.model.specs import HealthCheck
from orchestrator.model.validation.health_checks import target
from orchestrator.pb import health_pb2

_SHELL = ("/bin/sh", "-c")
_OUTPUT_LIMIT = 4096
"""Bytes of a probe's output that are kept, as in Docker."""
_LINE_LIMIT = 300
"""Characters of it that are shown."""
_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = 1
_OWN_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Errors of exhausted resources of the agent or its host."""


class Probes:
    """Probes the containers of a node."""

    def __init__(self, access: Callable[[str], ContainerHandle]) -> None:
        self._access = access
        self._hanging: dict[str, ProcessIdentity] = {}
        """Container → the program of a probe that could not be killed."""

    async def probe(
        self, container_id: str, check: HealthCheck, addresses: Mapping[str, str]
    ) -> ProbeResult:
        """The result of one probe. `addresses` (network → IP) are the container's; without any, it
        is in the node's network. An impossible probe counts as failed.

        Raises OSError if the agent lacks resources, which does not affect the container's health.
        """
        kind, *arguments = check.test
        address = next(iter(addresses.values()), "127.0.0.1")
        try:
            async with asyncio.timeout(check.timeout):
                match kind:
                    case "HTTP":
                        return await _http(address, *target(arguments[0]))
                    case "TCP":
                        return await _tcp(address, target(arguments[0])[0])
                    case "GRPC":
                        port, service = target(arguments[0])
                        return await _grpc(address, port, service.removeprefix("/"))
                    case _:
                        command = (*_SHELL, *arguments) if kind == "CMD-SHELL" else arguments
                        return await self._run(container_id, tuple(command))
        except TimeoutError:
            return ProbeResult(False, f"no answer within {check.timeout:g} s")
        except OSError as error:
            if error.errno in _OWN_ERRORS:
                raise
            return ProbeResult(False, (error.strerror or str(error)).lower())
        except RuntimeFailure as failure:
            return ProbeResult(False, str(failure))

    async def _run(self, container_id: str, command: tuple[str, ...]) -> ProbeResult:
        if (hanging := self._hanging.pop(container_id, None)) is not None and hanging.alive():
            # Programs that cannot be killed must not accumulate.
            self._hanging[container_id] = hanging
            return ProbeResult(
                False, f"an earlier probe hangs in the kernel (process {hanging.pid})"
            )
        program = await execs.start(self._access(container_id), ExecSpec(command))
        try:
            output = await _read(program)
            status = await program.wait()
        except BaseException:
            # Its result is no longer needed, so it must end.
            if (hanging := await asyncio.shield(program.end())) is not None:
                self._hanging[container_id] = hanging
            raise
        finally:
            program.close()
        return ProbeResult(
            status == 0, "" if status == 0 else _line(f"exit status {status}", output)
        )


async def _read(program: ExecProgram) -> bytes:
    """The beginning of its output; all of it is read."""
    output = bytearray()
    while (chunk := await program.read()) is not None:
        output += chunk[1][: _OUTPUT_LIMIT - len(output)]
    return bytes(output)


async def _tcp(address: str, port: int) -> ProbeResult:
    _, writer = await asyncio.open_connection(address, port)
    writer.close()
    return ProbeResult(True)


async def _http(address: str, port: int, path: str) -> ProbeResult:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        host = f"[{address}]" if ":" in address else address
        writer.write(
            f"GET {path or '/'} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            "User-Agent: orc-health\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
        )
        first = await reader.readline()
        words = first.decode("latin-1").split(None, 2)
        if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
            return ProbeResult(False, "the answer is not HTTP")
        if 200 <= int(words[1]) <= 399:
            return ProbeResult(True)
        return ProbeResult(False, _line(f"HTTP status {' '.join(words[1:])}"))
    except ValueError:
        return ProbeResult(False, "the answer is not HTTP")
    finally:
        writer.close()


async def _grpc(address: str, port: int, service: str) -> ProbeResult:
    host = f"[{address}]" if ":" in address else address
    async with grpc.aio.insecure_channel(
        f"{host}:{port}",
        options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)],
    ) as channel:
        check = channel.unary_unary(
            _CHECK,
            request_serializer=health_pb2.HealthProbe.SerializeToString,
            response_deserializer=health_pb2.HealthAnswer.FromString,
        )
        try:
            answer = await check(health_pb2.HealthProbe(service=service))
        except grpc.aio.AioRpcError as error:
            return ProbeResult(
                False, _line(error.code().name.lower(), (error.details() or "").encode())
            )
    if answer.status == _SERVING:
        return ProbeResult(True)
    return ProbeResult(False, "gRPC health status is not SERVING")


def _line(head: str, output: bytes = b"") -> str:
    """One line of a probe's output."""
    text = " ".join(output.decode(errors="replace").split())
    line = f"{head}: {text}" if text else head.strip()
    return line if len(line) <= _LINE_LIMIT else line[: _LINE_LIMIT - 1] + "…"
