# SPDX-License-Identifier: Apache-2.0
"""The network helper, a child process: started on demand, one request at a time."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

LINE_LIMIT = 16 << 20
"""Maximum bytes of a response."""
ATTEMPTS = 2
COMMAND = (sys.executable, "-m", "orchestrator.cni.helper")
EXIT_SECONDS = 2.0
NOT_AVAILABLE, INTERNAL = 50, 999


class NetworkError(Exception):
    """A network operation failed: the message is for the user.

    `code` is that of CNI's specification (from 100 on: `orchestrator.cni.errors.Code`), `details`
    is for the log.
    """

    def __init__(self, message: str, code: int = INTERNAL, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class HelperProcess:
    """Owns the process and restarts it if it dies; requests are idempotent, so they are resent."""

    def __init__(
        self, state_dir: Path, netns_dir: Path, timeout: float, command: Sequence[str] = COMMAND
    ) -> None:
        self._command = (*command, str(state_dir), str(netns_dir))
        self._timeout = timeout
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._number = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    @property
    def pid(self) -> int | None:
        """The process id of the running helper, if there is one."""
        return self._process.pid if self._process else None

    async def request(self, op: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request, return its result; raises `NetworkError`.

        Cancelling the caller does not undo the operation; its response is discarded.
        """
        async with self._turn:
            for _ in range(ATTEMPTS):
                try:
                    async with asyncio.timeout(self._timeout):
                        return await self._exchange(op, body)
                except TimeoutError:
                    await self._kill()
                    raise NetworkError(
                        f"the network helper did not answer within {self._timeout:g} s ({op});"
                        " it was restarted"
                    ) from None
                except (ConnectionError, EOFError):
                    await self._stop()
            raise NetworkError(f"the network helper died twice during: {op}")

    async def _exchange(self, op: str, body: Mapping[str, Any]) -> dict[str, Any]:
        process = await self._started()
        reader, writer = process.stdout, process.stdin
        assert reader is not None
        assert writer is not None
        self._number += 1
        request = {"id": self._number, "op": op, **body}
        writer.write(json.dumps(request).encode() + b"\n")
        await writer.drain()
        while True:
            line = await reader.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            answer = json.loads(line)
            # Skip answers to cancelled requests. None: the request was not understood.
            if answer["id"] in (self._number, None):
                break
        if "error" in answer:
            error = answer["error"]
            raise NetworkError(error["msg"], error["code"], error.get("details", ""))
        result: dict[str, Any] = answer["result"]
        return result

    async def _started(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                limit=LINE_LIMIT,
            )
        except OSError as error:
            raise NetworkError(f"the network helper cannot be started: {error.strerror}") from error
        return self._process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _stop(self) -> None:
        """Let it finish and exit, by closing its stdin."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            await self._kill()
